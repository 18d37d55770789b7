"""``cdm doctor`` on a real server, in each of its formats, before and after it mended something."""

from __future__ import annotations

from functools import partial

import pytest

from cdm.cli import Exit
from tests.cli.test_releases import Cluster
from tests.docs.documents import commands
from tests.harness.nodes import nodes_on
from tests.harness.processes import command_line
from tests.harness.servers import NatsServer, free_port
from tests.harness.waiting import TTL, eventually
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio


@pytest.mark.quick
async def test_a_cluster_is_looked_over_and_mended(server: NatsServer) -> None:
    text, fix, as_json, nagios, prometheus = (each.split()[1:] for each in commands("Looking the cluster over"))
    async with raw(server) as user:
        it = Cluster(server, user)
        assert "blueprints: does not exist\n          -> cdm init" in await it.cdm(*text, code=Exit.UNHEALTHY)
        # Nodes mend the same in their rounds.
        async with nodes_on(server, reconcile_interval=3600.0) as running:
            await running.start("n1")
            await running.leader()
            shown = await eventually(partial(_well, server, *text), 30, "all is well", pause=1)
            assert "ok        server: nats-server 2." in shown
            assert "manage (write slices), read logs and change buckets" in shown
            assert "leader n1: leads, in term 1" in shown
            assert "disk: there is room" in shown

            await running.start("n2", node_ttl=2 * TTL)
            await user.put("slices", "rubbish", 1)
            config = (await user.api("STREAM.INFO.KV_blueprints"))["config"]
            await user.api("STREAM.UPDATE.KV_blueprints", {**config, "max_age": 86_400 * 10**9})
            config = (await user.api("STREAM.INFO.KV_status"))["config"]
            before = {"allow_rollup_hdrs": True, "subject_delete_marker_ttl": 900 * 10**9}
            await user.api("STREAM.UPDATE.KV_status", {**config, **before})
            expected = {
                ("buckets", "critical", "blueprints"),
                ("changeover", "warning", "status"),
                ("ttl", "warning", ""),
                ("keys", "warning", "slices/rubbish"),
            }
            await eventually(partial(_finds, it, expected, *as_json), 30, f"it finds {expected}", pause=1)
            assert (await it.cdm(*nagios, code=2)).startswith("CDM CRITICAL - buckets blueprints: has other settings ")
            assert 'cdm_doctor_finding{kind="ttl",severity="warning",where=""} 1\n' in await it.cdm(*prometheus)

            mended = await it.cdm(*fix, code=Exit.UNHEALTHY)
            assert mended.startswith("blueprints: mended: has other settings than cdm needs; to be changed: max_age=0")
            assert "status: mended: still takes roll-ups" in mended
            assert (await user.api("STREAM.INFO.KV_blueprints"))["config"]["max_age"] == 0
            assert not (await user.api("STREAM.INFO.KV_status"))["config"]["allow_rollup_hdrs"]
            left = {each for each in expected if each[0] in ("ttl", "keys")}
            await eventually(partial(_finds, it, left, *as_json), 30, "nothing else is touched", pause=1)
            assert "rubbish" in await user.contents("slices")
            assert (await it.cdm(*nagios, code=1)).startswith("CDM WARNING - ")
        refused = await it.cdm("doctor", "--format", "nagios", "--json", code=Exit.USAGE)
        assert "leave one of them out" in refused
    done = await command_line("doctor", "--format", "nagios", env={"NATS_URL": f"nats://127.0.0.1:{free_port()}"})
    assert (done.returncode, done.stdout[:15]) == (2, b"CDM CRITICAL - ")


async def _well(server: NatsServer, *typed: str) -> str:
    """What it says where nothing is to be told; a heartbeat that took long is told of until the next one."""
    done = await command_line(*typed, env={"NATS_URL": server.url}, within=40)
    return done.stdout.decode() if done.returncode == Exit.OK else ""


async def _finds(it: Cluster, expected: set[tuple[str, str, str]], *typed: str) -> bool:
    """Whether this is what is not well, as JSON tells it."""
    found = [each for each in (await it.json(*typed, code=Exit.UNHEALTHY))["findings"] if each["severity"] != "ok"]
    print(found)
    return {(each["kind"], each["severity"], each["where"]) for each in found} == expected
