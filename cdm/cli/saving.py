"""Takes an image from the container engine of this machine, to be pushed."""

from __future__ import annotations

from pathlib import Path

import anyio

from cdm.cli.transfer_bar import TransferBar
from cdm.errors import UsageError
from cdm.runtimes.container.engine import Engine, EngineFailed


def save_image(name: str, path: Path) -> Path:
    """Write an image to a file, as the engine archives it; returns the file.

    Raises:
        UsageError: there is no such image, no engine, or none that answers.
        OSError: the file cannot be written.
    """
    return anyio.run(_save, name, path)


async def _save(name: str, path: Path) -> Path:
    engine = Engine.of_machine()
    try:
        found = await engine.ask("GET", f"/images/{name}/json")
        # By its id, and without its names: what is pushed is the same whatever it is called here.
        with TransferBar(f"reading {name}") as shown, path.open("wb") as file:
            done = 0
            async with engine.stream("GET", f"/images/{found['Id']}/get") as parts:
                async for part in parts:
                    file.write(part)
                    done += len(part)
                    shown(done, max(done, found["Size"]))
        return path
    except EngineFailed as error:
        raise UsageError(f"--image {name}: {error}") from None
    finally:
        await engine.close()
