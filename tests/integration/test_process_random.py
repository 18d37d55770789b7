"""Anything at any time, on real processes: what the runtime says is what lives."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdm.errors import SliceFailed
from cdm.model.keys import SliceKey
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from tests.harness.examples import examples
from tests.harness.proc import all_pids, exists
from tests.harness.programs import Stage, key_of, staged
from tests.harness.waiting import eventually

KEYS = [key_of(ordinal=number) for number in range(3)]
PROGRAMS = {
    "good": "print('READY=1', flush=True)\ntime.sleep(600)",
    "family": "fork(SLEEP)\nfork(SLEEP, leave=True)\nprint('READY=1', flush=True)\ntime.sleep(600)",
    "stubborn": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('READY=1', flush=True)\ntime.sleep(600)",
    "broken": "sys.exit(1)",
    "brief": "print('READY=1', flush=True)\ntime.sleep(0.05)\nsys.exit(1)",
    "slow": "time.sleep(600)",
}
POLICIES = [Restart(attempts=2, backoff=0.02), Restart(policy=RestartPolicy.NEVER)]

keys = st.sampled_from(KEYS)
steps = st.one_of(
    st.tuples(st.just("load"), keys, st.sampled_from(sorted(PROGRAMS)), st.sampled_from(POLICIES)),
    st.tuples(st.just("activate"), keys, st.sampled_from([0, 0.01, 0.05, 5])),
    st.tuples(st.just("activate"), keys, st.just(5)),
    st.tuples(st.just("deactivate"), keys, st.sampled_from([0, 0.01, 5])),
    st.tuples(st.just("unload"), keys, st.sampled_from([0, 0.01, 5])),
    st.tuples(st.just("kill"), keys),
    st.tuples(st.just("kill keeper")),
    st.tuples(st.just("wait")),
)


class Player:
    """Plays steps, and judges."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.runtime = stage.runtime

    async def play(self, step: tuple[object, ...]) -> None:
        match step:
            case ("load", SliceKey() as key, str(name), Restart() as restart):
                manifest = Manifest(stop_grace=0.2, readiness=Readiness(check=Line(), timeout=1.5), restart=restart)
                program = "print('key', os.environ['CDM_ORDINAL'])\n" + PROGRAMS[name]
                await self.stage.load(program, manifest, key)
                assert self.runtime.slices[key] is False
            case ("activate", SliceKey() as key, (int() | float()) as patience):
                with anyio.move_on_after(patience):
                    try:
                        await self.runtime.activate(key)
                    except SliceFailed:
                        assert not self.runtime.slices.get(key)
            case ("deactivate" | "unload" as what, SliceKey() as key, (int() | float()) as patience):
                with anyio.move_on_after(patience) as scope:
                    await (self.runtime.deactivate(key) if what == "deactivate" else self.runtime.unload(key))
                if not scope.cancelled_caught:
                    assert self.of(key) == []
                    assert not self.runtime.slices.get(key)
                    assert what == "deactivate" or key not in self.runtime.slices
            case ("kill", SliceKey() as key):
                for pid in self.of(key)[:1]:
                    with suppress(ProcessLookupError):  # it may end by itself
                        os.kill(pid, signal.SIGKILL)
            case ("kill keeper",):
                if self.runtime.keeper is not None:
                    os.kill(self.runtime.keeper, signal.SIGKILL)
                await anyio.lowlevel.checkpoint()
            case _:
                await anyio.sleep(0.05)

    def of(self, key: SliceKey) -> list[int]:
        """Processes of a slice that live, by their environment."""
        wanted = {f"CDM_ORDINAL={key.ordinal}".encode(), f"PIDS={self.stage.pids_file}".encode()}
        found = []
        for name in all_pids():
            try:
                environment = Path("/proc", name, "environ").read_bytes()
            except OSError:
                continue
            if wanted <= set(environment.split(b"\0")):
                found.append(int(name))
        return found

    async def rest(self) -> None:
        """In the end slices that are active live, and no others do."""
        await eventually(
            lambda: all(bool(self.of(key)) == bool(self.runtime.slices.get(key)) for key in KEYS),
            within=10,
        )
        await anyio.sleep(0.3)  # one that is started again now and then is given up, or lives


@pytest.mark.parametrize("cgroups", [True, False], ids=["cgroups", "plain"])
@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(steps, min_size=1, max_size=15))
def test_what_it_says_is_what_lives(cgroups: bool, steps: list[tuple[object, ...]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with staged(Path(folder), cgroups=cgroups) as stage:
                player = Player(stage)
                for step in steps:
                    await player.play(step)
                await player.rest()
                await stage.runtime.close()
                assert not [key for key in KEYS if player.of(key)]
                assert not [pid for pid in stage.pids if exists(pid)]

    anyio.run(main)
