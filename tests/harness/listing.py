"""``cdm endpoints --watch --json`` as a process beside a test, and the lists that it has told."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.harness import forked
from tests.harness.forked import Child
from tests.harness.processes import environment
from tests.harness.servers import Addressed
from tests.harness.waiting import LEAST, eventually, in_time, patience


class Listing:
    """The command, running. Made by `listing`."""

    def __init__(self, process: Child, folder: Path) -> None:
        self.process = process
        self._output = folder / "endpoints.out"
        self._remarks = folder / "endpoints.err"

    @property
    def output(self) -> str:
        """What it wrote."""
        return self._output.read_text()

    @property
    def lists(self) -> list[list[dict[str, Any]]]:
        """All lists so far."""
        assert self.process.poll() is None, self.remarks
        whole = self.output.rpartition("\n")[0].splitlines()
        return [json.loads(line)["endpoints"] for line in whole]

    @property
    def ports(self) -> list[int]:
        """The ports in the last list; none where there is no list yet."""
        lists = self.lists
        return [each["port"] for each in lists[-1]] if lists else []

    @property
    def remarks(self) -> str:
        """What it said beside."""
        return self._remarks.read_text()

    async def comes_to(self, *ports: int, promised: float | None = None, within: float = LEAST) -> None:
        """Wait until these ports are what it lists, perhaps within a time that is promised."""

        def listed() -> bool:
            return sorted(self.ports) == sorted(ports)

        what = f"{ports} are listed"
        await (eventually(listed, within, what) if promised is None else in_time(listed, promised, what))

    async def stop(self) -> None:
        """End it in good order."""
        self.process.send_signal(signal.SIGTERM)
        await eventually(lambda: self.process.poll() is not None, what="it ends")
        assert self.process.returncode == 0, self.remarks


def _started(arguments: Sequence[str], folder: Path) -> Child:
    with (folder / "endpoints.out").open("wb") as out, (folder / "endpoints.err").open("wb") as err:
        return forked.started(*arguments, env=environment(), stdout=out, stderr=err)


@asynccontextmanager
async def listing(server: Addressed, service: str, folder: Path, *options: str) -> AsyncIterator[Listing]:
    """Follow the endpoints of a service; the first list is there."""
    command = ["endpoints", service, "--watch", "--server", server.url]
    process = _started([*command, *(options or ("--json",))], folder)
    try:
        found = Listing(process, folder)
        await eventually(lambda: (folder / "endpoints.out").stat().st_size or process.poll() is not None, 15)
        assert process.poll() is None, found.remarks
        yield found
    finally:
        process.kill()
        process.wait(patience())
