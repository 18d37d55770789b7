"""What all tests of a runtime stand on: how it is made, what its slices do, what runs of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Collection
from pathlib import Path
from typing import Any

import pytest

from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest, Restart, RestartPolicy
from cdm.runtimes import Surroundings, Work
from cdm.testing.deeds import Deed, script
from cdm.testing.trial import Trial, ask, slice_processes

NEVER = Restart(policy=RestartPolicy.NEVER)


class RuntimeTests(ABC):
    """Tests of a runtime: of one subject each class that inherits, and of all `RuntimeConformance`."""

    pytestmark = pytest.mark.anyio

    patience = 30.0
    """Seconds to wait at most for what a runtime tells, and for lines that it keeps."""
    cuts = 6
    """Moments of each call at which it is cancelled; fewer where a start takes long."""

    @abstractmethod
    def make_runtime(self, surroundings: Surroundings) -> Any:
        """What the runtime's entry point does: make it. Its folder is empty, or another runtime of the test had it."""

    def work(self, folder: Path, deed: Deed, key: SliceKey, manifest: Manifest) -> Work | None:
        """What has a slice do something.

        Args:
            folder: where an artifact's folder can be made.
            deed: what the slice is to do.
            key: the slice's.
            manifest: with the port, the readiness and so on that the test wants.

        Returns:
            None where the runtime has no slices that do this: the tests of it are skipped.
        """
        return script(folder, deed, key, manifest)

    def running(self, node: NodeId) -> Collection[str] | Awaitable[Collection[str]]:
        """What runs of the node's slices, asked from outside: not the runtime itself must tell that."""
        return slice_processes(node)

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The event loop of cdm."""
        return "asyncio"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A folder for runtime and artifacts; override it where slices could not reach this one."""
        return tmp_path

    @pytest.fixture
    async def trial(self, folder: Path) -> AsyncIterator[Trial]:
        """A started runtime; nothing is left of it after the test."""
        made = self._trial(folder)
        await made.start()
        try:
            yield made
        finally:
            await made.runtime.close()
            assert not await self._run(made), "close leaves something running"

    def _trial(self, folder: Path) -> Trial:
        return Trial(folder, self.make_runtime, lambda *of: self.work(folder, *of), self.patience)

    async def _run(self, trial: Trial) -> Collection[str]:
        found = self.running(trial.node)
        return await found if inspect.isawaitable(found) else found

    async def _stopped(self, trial: Trial, port: int | None = None) -> None:
        assert not await self._run(trial), "it was to be stopped, and something of it runs"
        if port is not None:
            assert await ask(port) is None, f"it was to be stopped, and something listens on its port {port}"

    async def _serves(self, port: int, but: str = "the slice is active") -> None:
        if await ask(port) is None:  # in words alone: what pytest adds to an assert says nothing here
            raise AssertionError(f"{but}, and nothing accepts connections on its port {port}")

    async def _reads(self, trial: Trial, key: SliceKey, wanted: list[tuple[str, str]]) -> None:
        assert list(trial.runtime.written(key.artifact)) == [key]
        assert list(trial.runtime.written(trial.key(name="other").artifact)) == []

        async def read() -> bool:
            return await _read(trial, key) == wanted

        await trial.eventually(read, f"{wanted} is read")


async def _read(trial: Trial, key: SliceKey) -> list[tuple[str, str]]:
    """What the slice wrote; not what the runtime may have noted beside it."""
    found = [(line.stream, line.text) async for batch in trial.runtime.read(key) for line in batch]
    return [(stream, text) for stream, text in found if stream in ("out", "err")]


def is_a_reason(text: str, *parts: str) -> None:
    """A runtime said why something failed: in one line, which names all of this."""
    assert text.strip(), "it does not say why"
    assert "\n" not in text, f"a reason is one line: {text!r}"
    for part in parts:
        assert part in text, f"the reason does not name {part!r}: {text!r}"
