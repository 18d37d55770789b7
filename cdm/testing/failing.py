"""Tests of a runtime: what fails, ends or must not run is told, with the reason."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.clock import now
from cdm.errors import SliceFailed
from cdm.model.manifest import Readiness, Restart, Tcp
from cdm.testing.base import NEVER, RuntimeTests, is_a_reason
from cdm.testing.deeds import LAST_WORDS, STATUS, Deed
from cdm.testing.trial import SERVING, Trial, ask

HASTY = replace(SERVING, readiness=Readiness(check=Tcp(), interval=0.02, timeout=0.5))
"""Of what never is ready."""


class FailingTests(RuntimeTests):
    """Failures, ends, and what follows from them."""

    async def test_what_cannot_be_run_is_refused_with_the_reason(self, trial: Trial) -> None:
        """By `load` or by `activate`; trying again is futile, and it says so."""
        work = trial.work(Deed.FAIL)

        async def begin() -> None:
            await trial.runtime.load(work)
            await trial.runtime.activate(work.key)

        with pytest.raises(SliceFailed) as caught:
            await begin()
        assert caught.value.fatal
        is_a_reason(str(caught.value))
        assert not trial.runtime.slices.get(work.key)
        await self._stopped(trial)
        await trial.runtime.unload(work.key)
        assert trial.runtime.slices == {}

    @pytest.mark.parametrize(("deed", "part"), [(Deed.BREAK, str(STATUS)), (Deed.DALLY, "0.5 s")])
    async def test_what_never_is_ready_is_stopped_with_the_reason(self, trial: Trial, deed: Deed, part: str) -> None:
        """Its exit status, or for how long it was waited for. It stays loaded."""
        key = await trial.load(deed, HASTY if deed is Deed.DALLY else replace(SERVING, restart=NEVER))
        with pytest.raises(SliceFailed) as caught:
            await trial.runtime.activate(key)
        assert not caught.value.fatal
        is_a_reason(str(caught.value), part)
        await self._stopped(trial)
        assert trial.runtime.slices == {key: False}
        assert not trial.told, "what was never active cannot end"

    async def test_an_end_is_told_with_the_reason(self, trial: Trial) -> None:
        """Exit status and last lines of output; once, and only of the slice that ended."""
        key, port = await trial.up(Deed.OBEY, replace(SERVING, restart=NEVER))
        other, stays = await trial.up(Deed.SERVE, ordinal=1)
        await ask(port, "end")
        reason, fatal = (await trial.end_of(key)).more
        assert not fatal
        is_a_reason(reason, str(STATUS), *((LAST_WORDS,) if trial.runtime.logs else ()))
        assert trial.runtime.slices == {key: False, other: True}
        assert await ask(port) is None, f"its end was told, and something accepts connections on its port {port}"
        await self._serves(stays, "another slice ended, and this one is active")
        await trial.runtime.unload(other)
        await self._stopped(trial)
        await self._serves(await trial.activate(key), "what ended is activated again")
        assert len(trial.told) == 1

    async def test_what_is_started_again_keeps_its_port(self, trial: Trial) -> None:
        """A runtime that starts slices again tells of each end, and when it is ready, or gives up with the reason."""
        restart = Restart(attempts=1, backoff=0.05)
        key, port = await trial.up(Deed.OBEY, replace(SERVING, restart=restart))
        await ask(port, "end")
        await trial.eventually(lambda: trial.told, "the end is told")
        if trial.told[0].what == "crashed":
            pytest.skip("the runtime starts no slice again")
        await trial.eventually(lambda: trial.told[1:], "it is told that it is ready again")
        first, second = trial.told
        assert (first.what, first.key) == ("restarting", key)
        is_a_reason(first.more[0], str(STATUS))
        assert first.more[1] >= restart.backoff
        assert (second.what, second.key, second.more) == ("restarted", key, (port,))
        assert trial.runtime.slices == {key: True}
        await ask(port, "end")
        await trial.end_of(key)
        assert len(trial.told) == 3
        assert trial.runtime.slices == {key: False}
        await self._stopped(trial, port)

    async def test_what_is_not_trusted_any_more_is_not_started_again(self, trial: Trial) -> None:
        """`Work.may_start` is asked before each start that the runtime makes by itself."""
        trusted = True

        async def judge() -> None:
            if not trusted:
                raise SliceFailed("nobody trusts the signer", fatal=True)

        work = trial.work(Deed.OBEY, replace(SERVING, restart=Restart(backoff=0.05)))
        await trial.runtime.load(replace(work, may_start=judge))
        port = await trial.activate(work.key)
        trusted = False
        await ask(port, "end")
        await trial.end_of(work.key)
        assert "restarted" not in {each.what for each in trial.told}
        await self._stopped(trial, port)

    async def test_it_ends_where_the_node_is_not_heard_of(self, trial: Trial) -> None:
        """`Work.stop_after`, of runtimes that can do this."""
        if not trial.runtime.lapses:
            pytest.skip("the runtime does not stop slices by itself")
        work = replace(trial.work(Deed.SERVE), stop_after=1.0)
        await trial.runtime.load(work)
        trial.runtime.heard(now())
        try:
            await trial.runtime.activate(work.key)
        except SliceFailed:  # on a machine where that takes longer
            pass
        else:
            await trial.end_of(work.key)
        await self._stopped(trial)
        assert trial.runtime.slices == {work.key: False}
