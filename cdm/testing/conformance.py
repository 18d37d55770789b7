"""The tests that every runtime passes: what the agent relies on, whatever slices are."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from cdm.clock import now
from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest, Readiness, Restart, RestartPolicy, Tcp
from cdm.model.secret import SecretRef
from cdm.runtimes import Surroundings, Work
from cdm.testing.deeds import FIRST_WORDS, LAST_WORDS, STATUS, Deed, script
from cdm.testing.trial import SERVING, Trial, ask, slice_processes

NEVER = Restart(policy=RestartPolicy.NEVER)
HASTY = replace(SERVING, readiness=Readiness(check=Tcp(), interval=0.02, timeout=0.5))
"""Of what never is ready."""


class RuntimeConformance(ABC):
    """Tests of a runtime. Inherit in a class whose name pytest collects, and say how the runtime is made.

    A runtime that runs programs of the artifact's folder, as processes of this machine that have the variables that
    `process` gives its slices, needs `make_runtime` alone. For others override `work` and `running`.
    """

    pytestmark = pytest.mark.anyio

    patience = 120.0
    """Seconds to wait at most for anything."""
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
        made = Trial(folder, self.make_runtime, lambda *of: self.work(folder, *of), self.patience)
        await made.start()
        try:
            yield made
        finally:
            await made.runtime.close()
            assert not await self._run(made), "close leaves something running"

    async def _run(self, trial: Trial) -> Collection[str]:
        found = self.running(trial.node)
        return await found if inspect.isawaitable(found) else found

    async def _stopped(self, trial: Trial, port: int | None = None) -> None:
        assert not await self._run(trial), "it was to be stopped, and something of it runs"
        if port is not None:
            assert await ask(port) is None, f"it was to be stopped, and something listens on its port {port}"

    # Starting and stopping

    async def test_stop_means_stopped(self, trial: Trial) -> None:
        """`deactivate` and `unload` return when nothing of the slice runs; calls that ask for nothing do nothing."""
        key = await trial.load(Deed.SERVE)
        assert trial.runtime.slices == {key: False}
        await self._stopped(trial)
        port = await trial.activate(key)
        assert trial.runtime.slices == {key: True}
        assert await ask(port) is not None
        runs = await self._run(trial)
        assert runs, "a slice is active, and `running` tells of nothing"
        assert await trial.runtime.activate(key) == port, "activated again, it has another port"
        assert sorted(await self._run(trial)) == sorted(runs), "activated again, it is another one"
        await trial.runtime.deactivate(key)
        await self._stopped(trial, port)
        assert trial.runtime.slices == {key: False}
        await trial.runtime.deactivate(key)
        again = await trial.activate(key)
        assert await ask(again) is not None, "what was deactivated cannot be activated again"
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

    # Cancelled

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
        assert await ask(await trial.activate(key)) is not None, "it cannot be activated any more"
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

    # Ports and variables

    async def test_each_slice_has_its_own_port(self, trial: Trial) -> None:
        """Which `activate` returns; also where several are started at once."""
        ports: dict[SliceKey, int] = {}

        async def up(ordinal: int) -> None:
            key, port = await trial.up(Deed.SERVE, ordinal=ordinal)
            ports[key] = port

        async with anyio.create_task_group() as tasks:
            for ordinal in range(3):
                tasks.start_soon(up, ordinal)
        assert len(set(ports.values())) == 3
        assert trial.runtime.slices == dict.fromkeys(ports, True)
        stopped = trial.key(1)
        await trial.runtime.unload(stopped)
        answers = {key: await ask(port) is not None for key, port in ports.items()}
        assert answers == {key: key != stopped for key in ports}, "one slice was stopped, and no other"

    async def test_the_manifests_variables_are_the_slices(self, trial: Trial) -> None:
        """Beside them it is told whose it is."""
        key, port = await trial.up(Deed.OBEY, replace(SERVING, env={"WORD": "spring water"}))
        assert await ask(port, "tell WORD") == "spring water"
        assert await ask(port, "tell CDM_NODE") == str(trial.node)
        assert await ask(port, "tell CDM_ARTIFACT") == str(key.artifact)

    async def test_secrets_are_read_when_it_starts(self, trial: Trial) -> None:
        """Where the runtime gives slices any; one that is not there is told by its name."""
        if not trial.runtime.gives_secrets:
            pytest.skip("the runtime gives slices no secrets")
        work = replace(trial.work(Deed.OBEY), secrets={"WORD": SecretRef("password")})
        await trial.runtime.load(work)
        with pytest.raises(SliceFailed, match="password"):
            await trial.runtime.activate(work.key)
        await self._stopped(trial)
        trial.keep_secret("password", "open sesame")
        assert await ask(await trial.activate(work.key), "tell WORD") == "open sesame"

    # What fails

    async def test_what_cannot_be_run_is_refused_with_the_reason(self, trial: Trial) -> None:
        """By `load` or by `activate`; trying again is futile, and it says so."""
        work = trial.work(Deed.FAIL)

        async def begin() -> None:
            await trial.runtime.load(work)
            await trial.runtime.activate(work.key)

        with pytest.raises(SliceFailed) as caught:
            await begin()
        assert caught.value.fatal
        _is_a_reason(str(caught.value))
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
        _is_a_reason(str(caught.value), part)
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
        _is_a_reason(reason, str(STATUS), *((LAST_WORDS,) if trial.runtime.logs else ()))
        assert trial.runtime.slices == {key: False, other: True}
        assert await ask(port) is None
        assert await ask(stays) is not None
        await trial.runtime.unload(other)
        await self._stopped(trial)
        assert await ask(await trial.activate(key)) is not None, "what ended cannot be activated again"
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
        _is_a_reason(first.more[0], str(STATUS))
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

    # Output

    async def test_output_can_be_read(self, trial: Trial) -> None:
        """While it runs and after it has ended, with the stream of each line, of runtimes that keep it."""
        if not trial.runtime.logs:
            pytest.skip("the runtime keeps no output")
        key, port = await trial.up(Deed.OBEY, replace(SERVING, restart=NEVER))
        await self._reads(trial, key, [("out", FIRST_WORDS)])
        await ask(port, "end")
        await trial.end_of(key)
        both = [("out", FIRST_WORDS), ("err", LAST_WORDS)]
        await self._reads(trial, key, both)
        assert len([line async for batch in trial.runtime.read(key, lines=1) for line in batch]) == 1
        await trial.runtime.unload(key)
        await self._reads(trial, key, both)

    async def _reads(self, trial: Trial, key: SliceKey, wanted: list[tuple[str, str]]) -> None:
        assert list(trial.runtime.written(key.artifact)) == [key]
        assert list(trial.runtime.written(trial.key(name="other").artifact)) == []

        async def read() -> bool:
            return await _read(trial, key) == wanted

        await trial.eventually(read, f"{wanted} is read")

    # The node's process comes and goes

    async def test_the_next_process_goes_on_with_what_runs(self, trial: Trial) -> None:
        """`detach`, `found` and `adopt`, of runtimes whose slices can outlive the node's process."""
        work, port = await self._left(trial)
        assert trial.runtime.slices == {}, "what was found is not loaded"
        before = sorted(await self._run(trial))
        assert await trial.runtime.adopt(work) == port
        assert trial.runtime.found == {}
        assert trial.runtime.slices == {work.key: True}
        assert sorted(await self._run(trial)) == before, "it was started anew"
        assert await ask(port) is not None
        assert await trial.runtime.activate(work.key) == port
        await trial.runtime.deactivate(work.key)
        await self._stopped(trial, port)
        assert await ask(await trial.activate(work.key)) is not None, "what was adopted cannot be activated again"
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
        _is_a_reason(reason, str(STATUS))
        await self._stopped(trial, port)

    async def test_what_is_not_to_run_any_more_is_not_adopted(self, trial: Trial) -> None:
        """It is stopped, and that is said."""
        work, port = await self._left(trial)
        changed = replace(work, manifest=replace(work.manifest, env={"NEW": "1"}))
        with pytest.raises(SliceFailed) as caught:
            await trial.runtime.adopt(changed)
        _is_a_reason(str(caught.value))
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


async def _read(trial: Trial, key: SliceKey) -> list[tuple[str, str]]:
    """What the slice wrote; not what the runtime may have noted beside it."""
    found = [(line.stream, line.text) async for batch in trial.runtime.read(key) for line in batch]
    return [(stream, text) for stream, text in found if stream in ("out", "err")]


def _is_a_reason(text: str, *parts: str) -> None:
    assert text.strip(), "it does not say why"
    assert "\n" not in text, f"a reason is one line: {text!r}"
    for part in parts:
        assert part in text, f"the reason does not name {part!r}: {text!r}"
