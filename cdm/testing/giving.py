"""Tests of a runtime: what slices are given, and what is read of what they write."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from cdm.errors import SliceFailed
from cdm.model.keys import SliceKey
from cdm.model.secret import SecretRef
from cdm.testing.base import NEVER, RuntimeTests
from cdm.testing.deeds import FIRST_WORDS, LAST_WORDS, Deed
from cdm.testing.trial import SERVING, Trial, ask


class GivingTests(RuntimeTests):
    """Ports, variables and secrets; output."""

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
