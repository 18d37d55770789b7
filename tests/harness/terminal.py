"""A terminal to type into what the README shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

from tests.harness.paths import ROOT
from tests.harness.proc import end_keepers, left_keepers
from tests.harness.processes import environment
from tests.harness.servers import binary
from tests.harness.waiting import bounded

STAND_IN = """
import asyncio, os, sys
import nats

async def main(verb, *words):
    client = await nats.connect(os.environ["NATS_URL"])
    bucket, key, *value = [word for word in words if not word.startswith("-")]
    store = await client.jetstream().key_value(bucket)
    if verb == "put":
        await store.put(key, value[0].encode())
    elif verb == "get":
        print((await store.get(key)).value.decode())
    else:
        await store.delete(key)
    await client.close()

asyncio.run(main(*sys.argv[2:]))
"""
"""What the first steps use of the nats tool, where there is none."""

_DONE = re.compile(r"--- done (\d+)\n\Z")


class Terminal:
    """Somebody's shell."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        self._output = TextReceiveStream(process.stdout)
        self.code = 0
        """The exit code of what was typed last."""

    async def type(self, block: str, within: float = 30) -> str:
        """Have it run, and return what it printed."""
        await self._input.send(f'{block}\necho "--- done $?"\n'.encode())
        shown = ""
        with bounded(within):
            while (done := _DONE.search(shown)) is None:
                shown += await self._output.receive()
        self.code = int(done[1])
        return shown[: done.start()]

    async def good(self, block: str) -> str:
        """Have it run, and return what it printed; it must not fail."""
        shown = await self.type(block)
        assert self.code == 0, f"{block}: {self.code}\n{shown}"
        return shown

    async def start(self, command: str, name: str) -> None:
        """Have it run in the background: it writes to ``name``.log, and its pid is in ``$name``."""
        await self.good(f"touch {name}.log; {command} &> {name}.log & {name}=$!")


@asynccontextmanager
async def terminal(folder: Path, **variables: str) -> AsyncIterator[Terminal]:
    """A shell in a folder that looks like this repository's; all that it starts ends with it.

    Python, cdm and nats-server are those of the tests.
    """
    tools = folder / "tools"
    tools.mkdir()
    for name in ("examples", "nats"):
        (folder / name).symlink_to(ROOT / name)
    program(tools / "cdm", f'exec {sys.executable} -m cdm "$@"')
    for name in ("python", "python3"):
        program(tools / name, f'exec {sys.executable} "$@"')
    program(tools / "nats-server", f'exec {binary()} "$@"')
    if shutil.which("nats") is None:
        (tools / "nats.txt").write_text(STAND_IN, encoding="utf-8")
        program(tools / "nats", f'exec {sys.executable} {tools / "nats.txt"} "$@"')
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "XDG_CONFIG_HOME": str(folder / "config"), **variables}
    async with await anyio.open_process(
        ["bash"], cwd=folder, env=env, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield Terminal(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            end_keepers(*left_keepers(folder))


def program(path: Path, line: str) -> None:
    """Make an executable script of one line."""
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
