"""A cdm in each of two JetStream domains, worked from one hub of NATS by domain."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from cdm.cli import Exit
from cdm.model.keys import SLICES
from cdm.store.access import API, Access, api_of
from cdm.store.bucket import Bucket
from cdm.store.connection import connect
from tests.docs.documents import commands
from tests.harness import forked
from tests.harness.nodes import nodes_on
from tests.harness.processes import environment
from tests.harness.regions import add_context, running_regions
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_two_domains_are_worked_through_one_hub(tmp_path: Path) -> None:
    env = {**environment(), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "200"}

    async def cdm(*arguments: str, code: int = Exit.OK) -> str:
        done = await forked.run(*arguments, env=env, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode()

    *contexts, push, apply, status, logs, each_named, with_variable = commands("Working regions")
    (tmp_path / "web").write_text("#!/bin/sh\necho it speaks\nexec sleep 1000\n", encoding="utf-8")
    (tmp_path / "shop.yaml").write_text("artifact: acme:web:1\ninstances: 4\nmin_healthy: 0\n", encoding="utf-8")
    async with running_regions("east", "west") as regions:

        def typed(line: str) -> list[str]:
            return shlex.split(line.replace("nats://hub.example.org", regions.hub.url))[1:]

        for line in contexts:
            _, _, name, _, url, _, domain = typed(line)
            add_context(tmp_path, name, url=url, jetstream_domain=domain)
        async with (
            nodes_on(regions.leaves["east"], prefix="east", runtime="process") as near,
            nodes_on(regions.hub, api_of("east"), prefix="east", runtime="process") as far,
            nodes_on(regions.leaves["west"], prefix="west") as other,
        ):
            # One of the same id is another one elsewhere; and one that reaches its domain through the hub is as good.
            await near.start("n1", folder=tmp_path / "n1")
            await far.start("n2", folder=tmp_path / "n2")
            await other.start("n1")

            await cdm(*typed(push))
            await cdm(*typed(apply))
            east = ("--context", "east", "--prefix", "east")
            shown = json.loads(await cdm("status", "--json", *east))
            assert sorted(each["node"] for each in shown["slices"]) == ["n1", "n1", "n2", "n2"]

            async def speaks() -> bool:
                return (await cdm(*typed(logs))).count("it speaks") == 4

            await eventually(speaks, what="all output is read through the hub")
            await cdm("cordon", "n2", *east)

            async def happened() -> bool:
                return "cordon" in await cdm("events", *east)

            await eventually(happened, what="it is an event")

            async def well() -> bool:
                done = await forked.run("doctor", *east, env=env, cwd=tmp_path)
                return done.returncode == Exit.OK and b"write blueprints" in done.stdout

            await eventually(well, what="it may ask everything, and all is well")

            west = ("--server", regions.hub.url, "--js-api-prefix", api_of("west"), "--prefix", "west")
            shown = json.loads(await cdm(*typed(status), "--json"))
            assert ([each["node"] for each in shown["nodes"]], shown["slices"], shown["blueprints"]) == (["n1"], [], [])
            assert "no artifact" in await cdm("artifact", "ls", *west)
            assert "cordon" not in await cdm("events", *west)

            # Whoever may lead leads, also from afar.
            await near.all["n1"].stop()
            await eventually(lambda: [each for each in far.active() if each.active > 1], what="n2 leads")
            shown = (await cdm(*typed(each_named))).splitlines()
            assert [line for line in shown if line.startswith("region ")] == ["region east", "region west"]
            assert [line.split()[:2] for line in shown if line.startswith("leader ")] == [
                ["leader", "n2"],
                ["leader", "n1"],
            ]
            regions.leaves["west"].kill()
            assert "nobody answers at $JS.west.API" in await cdm(*typed(status), code=Exit.FAILED)
            variable, *words = shlex.split(with_variable)
            name, _, value = variable.partition("=")
            env[name] = value
            done = await forked.run(*words[1:], env=env, cwd=tmp_path)
            found = json.loads(done.stdout)
            assert (done.returncode, done.stderr, found["east"]["leader"]) == (Exit.FAILED, b"", "n2")
            assert "nobody answers at $JS.west.API" in found["west"]["error"]
            told = (await cdm("status", "--all-regions", "--check", code=Exit.FAILED)).splitlines()
            assert any(line.startswith("west: nobody answers") for line in told)
            far.unharmed()


async def test_who_reaches_a_server_through_another_one_is_not_told_of_its_restart_by_the_connection() -> None:
    async with running_regions("east") as regions:
        for server, api, alone in ((regions.hub, API, True), (regions.leaves["east"], api_of("hub"), False)):
            async with connect(Access(servers=(server.url,), api=api), name="test", prefix="x") as connection:
                bucket = Bucket(connection, SLICES)
                await bucket.ensure(create=True)
                assert (await bucket.state()).alone is alone
