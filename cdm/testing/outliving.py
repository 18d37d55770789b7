"""Tests of a runtime whose slices can outlive the node's process: the next one finds them, and goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from cdm.errors import SliceFailed
from cdm.runtimes import Work
from cdm.testing.base import NEVER, RuntimeTests, is_a_reason
from cdm.testing.deeds import FIRST_WORDS, STATUS, Deed
from cdm.testing.trial import SERVING, Trial, ask


class OutlivingTests(RuntimeTests):
    """The node's process comes and goes."""

    async def test_the_next_process_goes_on_with_what_runs(self, trial: Trial) -> None:
        """`detach`, `found` and `adopt`, of runtimes whose slices can outlive the node's process."""
        work, port = await self._left(trial)
        assert trial.runtime.slices == {}, "what was found is not loaded"
        before = sorted(await self._run(trial))
        assert await trial.runtime.adopt(work) == port
        assert trial.runtime.found == {}
        assert trial.runtime.slices == {work.key: True}
        assert sorted(await self._run(trial)) == before, "it was started anew"
        await self._serves(port, "it was adopted")
        assert await trial.runtime.activate(work.key) == port
        await trial.runtime.deactivate(work.key)
        await self._stopped(trial, port)
        await self._serves(await trial.activate(work.key), "what was adopted, and stopped, is activated again")
        assert not trial.told

    async def test_output_goes_on_without_a_gap(self, trial: Trial) -> None:
        """Also with what was written while the node had no process; nothing is there twice."""
        if not trial.runtime.logs:
            pytest.skip("the runtime keeps no output")
        work, port = await self._left_behind(trial, Deed.OBEY, lambda port: ask(port, "say before"))
        await ask(port, "say between")
        await self._next_process(trial, work)
        await trial.runtime.adopt(work)
        await ask(port, "say after")
        words = [FIRST_WORDS, "before", "between", "after"]
        await self._reads(trial, work.key, [("out", word) for word in words])

    async def test_the_end_of_what_was_adopted_is_told(self, trial: Trial) -> None:
        """Its restart policy holds as before."""
        work, port = await self._left(trial, Deed.OBEY)
        await trial.runtime.adopt(work)
        await ask(port, "end")
        reason, _ = (await trial.end_of(work.key)).more
        is_a_reason(reason, str(STATUS))
        await self._stopped(trial, port)

    async def test_what_is_not_to_run_any_more_is_not_adopted(self, trial: Trial) -> None:
        """It is stopped, and that is said."""
        work, port = await self._left(trial)
        changed = replace(work, manifest=replace(work.manifest, env={"NEW": "1"}))
        with pytest.raises(SliceFailed) as caught:
            await trial.runtime.adopt(changed)
        is_a_reason(str(caught.value))
        assert trial.runtime.found == {}
        assert trial.runtime.slices == {}
        await self._stopped(trial, port)

    @pytest.mark.parametrize("call", ["load", "deactivate", "unload", "close"])
    async def test_what_was_found_is_stopped_by_any_other_call(self, trial: Trial, call: str) -> None:
        """Nothing runs beside it."""
        work, port = await self._left(trial)
        if call == "close":
            await trial.runtime.close()
        elif call == "load":
            await trial.runtime.load(work)
            assert trial.runtime.slices == {work.key: False}
        else:
            await getattr(trial.runtime, call)(work.key)
            assert trial.runtime.slices == {}
        await self._stopped(trial, port)
        if call != "close":
            assert trial.runtime.found == {}

    async def _left(self, trial: Trial, deed: Deed = Deed.SERVE) -> tuple[Work, int]:
        """A slice that an earlier process of the node left, which the next one has found; and its port."""
        work, port = await self._left_behind(trial, deed)
        await self._next_process(trial, work)
        return work, port

    async def _left_behind(
        self, trial: Trial, deed: Deed, before: Callable[[int], Awaitable[object]] | None = None
    ) -> tuple[Work, int]:
        """A slice whose node has no process any more; and its port."""
        if not trial.runtime.outlives:
            pytest.skip("no slice of the runtime outlives the node's process")
        work = trial.work(deed, replace(SERVING, restart=NEVER))
        await trial.runtime.load(work)
        port = await trial.activate(work.key)
        if before is not None:
            await before(port)
        runs = sorted(await self._run(trial))
        await trial.runtime.detach()
        assert sorted(await self._run(trial)) == runs, "it did not outlive the node's process"
        return work, port

    async def _next_process(self, trial: Trial, work: Work) -> None:
        runs = sorted(await self._run(trial))
        trial.another()
        await trial.start()
        assert trial.runtime.found == {work.key: work.folder}
        assert sorted(await self._run(trial)) == runs, "what was found is not what ran before"
