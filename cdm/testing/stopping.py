"""Tests of a runtime: what is stopped is stopped, at whatever moment a call is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from cdm.clock import now
from cdm.testing.base import RuntimeTests
from cdm.testing.deeds import Deed
from cdm.testing.trial import SERVING, Trial


class StoppingTests(RuntimeTests):
    """Starting and stopping, also where a call is cancelled."""

    async def test_a_look_at_the_machine_makes_nothing(self, folder: Path) -> None:
        """`check_machine` comes before anything else, of nodes that then end, too. `close` may follow at once."""
        trial = self._trial(folder)
        before = _within(folder)
        await trial.runtime.check_machine()
        await trial.runtime.close()
        assert _within(folder) == before
        assert not await self._run(trial), "it was only to look"

    async def test_stop_means_stopped(self, trial: Trial) -> None:
        """`deactivate` and `unload` return when nothing of the slice runs; calls that ask for nothing do nothing."""
        key = await trial.load(Deed.SERVE)
        assert trial.runtime.slices == {key: False}
        await self._stopped(trial)
        port = await trial.activate(key)
        assert trial.runtime.slices == {key: True}
        await self._serves(port)
        runs = await self._run(trial)
        assert runs, "a slice is active, and `running` tells of nothing"
        assert await trial.runtime.activate(key) == port, "activated again, it has another port"
        assert sorted(await self._run(trial)) == sorted(runs), "activated again, it is another one"
        await trial.runtime.deactivate(key)
        await self._stopped(trial, port)
        assert trial.runtime.slices == {key: False}
        await trial.runtime.deactivate(key)
        again = await trial.activate(key)
        await self._serves(again, "what was deactivated is activated again")
        await trial.runtime.unload(key)
        await self._stopped(trial, again)
        assert trial.runtime.slices == {}
        await trial.runtime.deactivate(key)
        await trial.runtime.unload(key)
        assert not trial.told, "a slice that was stopped is told to have ended by itself"

    async def test_what_ignores_the_signal_is_stopped_all_the_same(self, trial: Trial) -> None:
        """At the latest when its grace is over."""
        key, port = await trial.up(Deed.LINGER, replace(SERVING, stop_grace=0.3))
        await trial.runtime.deactivate(key)
        await self._stopped(trial, port)

    async def test_loading_again_replaces_what_runs(self, trial: Trial) -> None:
        """Nothing of what was loaded before is left."""
        key, port = await trial.up(Deed.SERVE)
        await trial.runtime.load(trial.work(Deed.SERVE))
        await self._stopped(trial, port)
        assert trial.runtime.slices == {key: False}

    async def test_close_stops_everything(self, trial: Trial) -> None:
        """Also what is only loaded is forgotten by whoever comes next."""
        _, port = await trial.up(Deed.SERVE)
        await trial.load(Deed.SERVE, ordinal=1)
        await trial.runtime.close()
        await self._stopped(trial, port)
        trial.another()
        await trial.start()
        assert trial.runtime.slices == {}
        assert trial.runtime.found == {}
        assert (await trial.up(Deed.SERVE))[1]

    async def test_a_start_that_is_cancelled_leaves_nothing(self, trial: Trial) -> None:
        """At any moment of it; once `deactivate` has followed."""
        key = await trial.load(Deed.SERVE)
        began = now()
        await trial.activate(key)
        took = now() - began
        await trial.runtime.deactivate(key)
        for cut in range(self.cuts):
            with anyio.move_on_after(took * cut / self.cuts):
                await trial.runtime.activate(key)
            await trial.runtime.deactivate(key)
            await self._stopped(trial)
            assert trial.runtime.slices == {key: False}
        await self._serves(await trial.activate(key), "what was cancelled and stopped is activated again")
        assert not trial.told

    @pytest.mark.parametrize("call", ["deactivate", "unload", "load"])
    async def test_a_stop_that_is_cancelled_can_be_done_again(self, trial: Trial, call: str) -> None:
        """At any moment of it; whatever stops it."""
        work = trial.work(Deed.SERVE)
        key = work.key
        stop: Callable[[], Awaitable[None]] = {
            "deactivate": lambda: trial.runtime.deactivate(key),
            "unload": lambda: trial.runtime.unload(key),
            "load": lambda: trial.runtime.load(work),
        }[call]
        took = 0.0
        for cut in range(-1, self.cuts // 2):
            await trial.runtime.load(work)
            await trial.activate(key)
            began = now()
            with anyio.move_on_after(None if cut < 0 else took * cut / (self.cuts // 2)):
                await stop()
            took = took or now() - began
            await trial.runtime.unload(key)
            await self._stopped(trial)
            assert trial.runtime.slices == {}
        assert not trial.told


def _within(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))
