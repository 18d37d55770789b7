"""The prober as a process beside a test, and what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness.paths import ROOT
from tests.harness.processes import environment
from tests.harness.waiting import LEAST, eventually, patience

PROBER = ROOT / "tests" / "harness" / "prober.py"
WEB_SLICE = ROOT / "tests" / "harness" / "web_slice.py"


class Probed(NamedTuple):
    """What a prober found."""

    requests: int
    answers: dict[str, int]
    """Good answers, by version."""
    first: dict[str, float]
    """When the first good answer of each version came, in seconds since 1970."""
    slowest: float
    """Seconds that the slowest good answer took."""
    lists: int
    """How often it was told whom to ask."""
    failures: list[dict[str, Any]]
    """Each with ``time``, ``to``, ``reason`` and ``after`` so many seconds."""

    def flawless(self, least: int = 1) -> None:
        """Not one request failed, of at least so many."""
        print(f"{len(self.failures)} of {self.requests} requests failed, the slowest took {self.slowest} s")
        assert not self.failures, f"{len(self.failures)} of {self.requests} failed: {self.failures[:20]}"
        assert self.requests >= least, f"only {self.requests} requests were sent"


class Probing:
    """A prober that runs. Made by `probing`."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def ready(self) -> bool:
        """Whether it has somebody to ask, and asks."""
        assert self._process.poll() is None, f"the prober has ended: {self._output.read_text()}"
        return self._output.read_text().startswith("READY")

    @property
    def told(self) -> tuple[int, int]:
        """How many lists it has heard, and how many requests it has sent."""
        assert self.ready
        (*_, last), _, _ = (part.split("\n") for part in self._output.read_text().rpartition("\n"))
        lists, _, requests = last.partition(" ")
        return (int(lists), int(requests)) if requests else (0, 0)

    async def heard(self, lists: int) -> None:
        """Wait until it has heard so many lists."""
        await eventually(lambda: self.told[0] >= lists, 20, f"the prober has heard {lists} lists")

    async def sent(self, requests: int) -> None:
        """Wait until it has sent so many more requests."""
        wanted = self.told[1] + requests
        await eventually(lambda: self.told[1] >= wanted, 20, f"the prober has sent {requests} requests more")

    async def stop(self, least: int = 0) -> Probed:
        """Have it end once it has sent so many requests in all, and tell."""
        await eventually(lambda: self.told[1] >= least, 20, f"the prober has sent {least} requests")
        self._process.send_signal(signal.SIGTERM)
        await eventually(lambda: self._process.poll() is not None, 20, "the prober ends")
        text = self._output.read_text()
        assert self._process.returncode == 0, text
        return Probed(**json.loads(text.splitlines()[-1]))

    def kill(self) -> None:
        """End it, and what it has started, whatever it does."""
        if self._process.poll() is None:
            self._process.terminate()  # it ends its command
            try:
                self._process.wait(patience())
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(patience())


def _started(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "prober.out").open("wb") as out, (folder / "prober.err").open("ab") as err:
        return subprocess.Popen(
            [sys.executable, str(PROBER), *arguments],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )


@asynccontextmanager
async def probing(
    folder: Path, command: Sequence[str], rate: float = 50, timeout: float = 10, within: float = LEAST
) -> AsyncIterator[Probing]:
    """Ask whom this command names, from now on; it has to name somebody soon."""
    asking = ["--rate", str(rate), "--timeout", str(timeout), "--", *command]
    found = Probing(_started(asking, folder), folder / "prober.out")
    try:
        await eventually(lambda: found.ready, within, "the prober has somebody to ask")
        yield found
    finally:
        found.kill()


def endpoints(service: str, url: str) -> list[str]:
    """The command that tells where a service is, ``group:name``, and goes on telling."""
    return [sys.executable, "-m", "cdm", "endpoints", service, "--watch", "--json", "--server", url]
