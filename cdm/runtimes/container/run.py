"""One container: what the engine tells of it, and what its program writes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from cdm import clock
from cdm.log import Lasting, Log
from cdm.model.keys import SliceKey
from cdm.model.manifest import Line, Manifest
from cdm.model.quantity import memory_shown
from cdm.output import OutputLine
from cdm.output.files import OutputWriter
from cdm.output.reading import tail
from cdm.runtimes.container.engine import Engine, EngineFailed
from cdm.runtimes.keeper.protocol import Exited
from cdm.runtimes.process.handle import RunHandle

log = Log("cdm.container")

PAUSE = 0.2
"""Seconds until the engine is asked again, when it ended an answer, or does not answer."""
DRAIN = 5.0
"""Seconds that the last lines of a container may take that has ended."""
LOOKED_AT = 1000
"""Most lines of one moment that are known again."""
DAMAGED = 10.0
"""The same where what it kept of the output is damaged."""
_STREAMS = {1: "out", 2: "err"}
_HEADER = struct.Struct(">BxxxL")
REMOVED = "somebody removed its container"


class ContainerRun(RunHandle):
    """A container, from before it is created.

    Args:
        engine: whose container it is.
        name: its name.
        key: the slice's.
        manifest: how it is run.
        output: the folder of the slice's output.
        begun: when it was started, in seconds on `cdm.clock`; None: now.
    """

    def __init__(
        self, engine: Engine, name: str, key: SliceKey, manifest: Manifest, output: Path, begun: float | None = None
    ) -> None:
        super().__init__(name, key, begun)
        check = manifest.readiness.check
        line = check.text if isinstance(check, Line) else None
        self._engine = engine
        self._memory = manifest.limits.memory
        self._output = output
        self._writer = OutputWriter(output, manifest.logs, line, self._now)
        self._moment, self._of_moment = 0, 0
        """The time of the last line, in milliseconds since the epoch, and how many lines had it."""
        self._status_known = asyncio.Event()

    @property
    def unfit(self) -> bool:
        """Whether there is no such program in the image, or none that can be run, as shells and inits tell it."""
        return isinstance(self.ended, Exited) and self.ended.status in (126, 127)

    @property
    def words(self) -> str:
        """How it ended; empty: it has not."""
        return self.ended.words if isinstance(self.ended, Exited) else ""

    async def follow(self, *, goes_on: bool = False) -> None:
        """Keep its output, until it is over; it was started.

        Args:
            goes_on: whether an earlier process of the node began it, and kept its output until that ended.
        """
        try:
            if goes_on:
                self._writer.go_on()
                with suppress(OSError, RuntimeError):  # a shortage; lines may be kept twice
                    await self._find_place()
            else:
                self._writer.begin()
            self.started.set()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, tasks.cancel_scope)
                self.ended = await self._until_ended()
                self._status_known.set()
                tasks.cancel_scope.deadline = anyio.current_time() + DRAIN
        finally:
            self._writer.close(self.words)
            self.last = self._writer.last
            if self.ended is not None:
                self.over.set()

    async def _until_ended(self) -> Exited:
        """Wait for its end. While the engine is away, and while it cannot be known, it counts as running."""
        silent = Lasting(log, "the container engine tells of the slice again")
        while True:
            try:
                answer = await self._engine.ask(
                    "POST", f"/containers/{self.name}/wait", patience=None, condition="not-running"
                )
                facts = await self._engine.ask("GET", f"/containers/{self.name}/json")
            except EngineFailed as error:
                if error.is_missing:
                    return Exited(self.name, -9, REMOVED)
                about = {"slice": str(self.key), "reason": str(error)}
                silent.goes_on(clock.now(), "the container engine tells nothing of a slice", **about)
                await anyio.sleep(PAUSE)
                continue
            silent.over(clock.now(), slice=str(self.key))
            return Exited(self.name, answer["StatusCode"], self._words(answer["StatusCode"], facts["State"]))

    def _words(self, status: int, state: dict[str, Any]) -> str:
        if state.get("OOMKilled") and self._memory is not None:
            return f"killed: over its memory limit of {memory_shown(self._memory)}"
        problem = " ".join(str(state.get("Error") or "").split())
        return f"exit status {status}" + (f" ({problem})" if problem else "")

    # Output

    async def _read(self, scope: anyio.CancelScope) -> None:
        damaged = Lasting(log, "the container engine can read the slice's output again")
        while True:
            ended = self._status_known.is_set()
            seen, pause = self._of_moment, PAUSE
            query: dict[str, object] = {"follow": 1, "stdout": 1, "stderr": 1, "timestamps": 1}
            if self._moment:
                query["since"] = f"{self._moment / 1000:.3f}"
            try:
                async with self._engine.stream("GET", f"/containers/{self.name}/logs", query=query) as parts:
                    since = self._moment
                    async for stream, line in _frames(parts):
                        stamp, _, text = line.partition(b" ")
                        moment = _milliseconds(stamp)
                        if moment is None:  # words of the engine's own: it cannot read all that it kept
                            about = {"slice": str(self.key), "reason": line.decode(errors="replace").strip()}
                            damaged.goes_on(clock.now(), "the container engine cannot read a slice's output", **about)
                            pause = DAMAGED  # it may end there, and read all before that again each time
                        elif moment == since and seen:
                            seen -= 1  # it was read before
                        else:
                            damaged.over(clock.now(), slice=str(self.key))
                            self._take(stream, moment, text)
            except EngineFailed as error:
                if error.is_missing:
                    return
            if ended:
                scope.cancel()
                return
            with anyio.move_on_after(pause):
                await self._status_known.wait()

    def _take(self, stream: str, moment: int, text: bytes) -> None:
        self._of_moment = self._of_moment + 1 if moment == self._moment else 1
        self._moment = moment
        self._writer.feed(stream, text)
        if self._writer.said:
            self.said.set()

    async def _find_place(self) -> None:
        """Where the earlier process of the node stopped reading: at the last line that it kept."""
        last: list[OutputLine] = []
        async for line in tail(self._output, lines=LOOKED_AT):
            if line.stream in _STREAMS.values():
                last = [*last, line] if last and last[0].time == line.time else [line]
        if last:
            self._moment, self._of_moment = round(last[0].time.timestamp() * 1000), len(last)

    def _now(self) -> float:
        """When what is written just now was written, as the engine tells it; remarks of cdm's come after that."""
        return (self._moment + 0.5) / 1000 if self._moment else datetime.now(UTC).timestamp()


async def _frames(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """The lines of a stream that has those of both streams, each with the name of its own."""
    rest = b""
    async for part in parts:
        rest += part
        while len(rest) >= _HEADER.size:
            number, length = _HEADER.unpack_from(rest)
            end = _HEADER.size + length
            if len(rest) < end:
                break
            line, rest = rest[_HEADER.size : end], rest[end:]
            yield _STREAMS.get(number, "out"), line


def _milliseconds(stamp: bytes) -> int | None:
    """A time in milliseconds since the epoch; None: this is none."""
    try:
        return round(datetime.fromisoformat(stamp.decode()).timestamp() * 1_000_000) // 1000
    except ValueError:
        return None
