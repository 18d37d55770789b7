"""A cluster that is watched: what promtool, a real Prometheus and those who ask for health make of it."""

from __future__ import annotations

import asyncio
import http.client
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cdm.model.node import HttpAt
from tests.docs.documents import adapted, blocks, section
from tests.harness.agents import agents
from tests.harness.monitoring import (
    DASHBOARD,
    RULES,
    alert_metrics,
    dashboard_queries,
    http_of,
    program,
    prometheus,
    promtool,
)
from tests.harness.nodes import nodes_on
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.store import connected
from tests.harness.waiting import eventually
from tests.harness.web import WebAnswer, ask, asked
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio


@pytest.mark.quick
def test_the_alert_rules_do_what_they_are_for() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yml")))
    promtool("test", "rules", str(RULES.with_name("cdm.rules.test.yml")))


async def test_a_prometheus_finds_data_for_every_query_of_dashboard_and_alerts(
    server: NatsServer, tmp_path: Path
) -> None:
    program("prometheus")
    (shown,) = blocks("Prometheus", "yaml")
    wanted = [*dashboard_queries(), *sorted(alert_metrics())]
    assert len(wanted) > 50, DASHBOARD
    async with (
        raw(server) as user,
        nodes_on(server, capacity=10, node_ttl=2.0) as nodes,
        agents(server, "n1", "n2"),
        connected(server) as connection,
    ):
        for name in ("n1", "n2", "n3"):
            await nodes.start(name, http=HttpAt(free_port()))
        async with (
            http_of(nodes.all["n1"].node) as one,
            http_of(nodes.all["n2"].node) as two,
            http_of(connection) as only,
        ):
            told = {"10.0.0.9:8280": only, "30s": "1s", "cdm.rules.yml": str(RULES)}
            async with prometheus(tmp_path, adapted(shown, told)) as watching:
                await nodes.all["n3"].crash()
                vitals = {"disk_size": 100, "disk_free": 50}  # which only a node with a folder tells
                await user.put("nodes", "n9", {"role": "agent", "capacity": 0, "vitals": vitals})
                canary = {"kind": "canary", "steps": [{"weight": 50}, {"pause": "approve"}]}
                await user.put("blueprints", "g/web/1", {"instances": 2, "min_healthy": 0})
                await user.put("blueprints", "g/far/1", {"instances": 2, "require": ["zone = mars"]})
                await user.put("nodes", "n2.intent", {"schedule": "drain"})
                await eventually(user.slices, what="there are slices")
                new = {"instances": 2, "min_healthy": 0, "restarted": "once", "rollout": canary}
                await user.put("blueprints", "g/web/1", new)

                async def lacking() -> bool:
                    nonlocal wanted
                    wanted = await watching.without_data(wanted)
                    return not wanted

                try:
                    await eventually(lacking, 30, "every query has data", pause=0.3)
                except AssertionError:
                    raise AssertionError(wanted) from None
                rules = (await watching.data("rules"))["groups"]
                assert [rule["name"] for group in rules for rule in group["rules"] if rule["health"] != "ok"] == []
                # A node that is lost is asked until it is forgotten.
                ups = ("count(up{job='cdm'} == 1) == 3", "up{instance='n1'} == 1", "up{instance='n3'} == 0")
                for query in (*ups, "sum(cdm_leads) == 1", "cdm_node_lost{node='n3'} == 1"):
                    await eventually(partial(watching.found, query), 30, query)
            # Those that follow all say the same of the cluster; a node says besides how it fares itself.
            said = {at: (await asked(at, "/metrics")).body for at in (one, two, only)}
            assert b"cdm_leads " in said[two]
            assert b"cdm_leads " not in said[only]
            for at, text in said.items():
                assert b'cdm_unplaced_instances{artifact="g:far:1",reason="label"} 2.0' in text, at
                promtool("check", "metrics", given=text)
            names = set(re.findall(r"^# TYPE (cdm_\w+ \w+)$", said[two].decode(), re.MULTILINE))
            tables = "".join(
                section("docs/monitoring.md", f"Metrics of {of}") for of in ("the cluster", "a process", "a node")
            )
            assert {
                f"{name} {kind}" for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", tables, re.MULTILINE)
            } == names
            kind = (
                await asked(only, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            ).headers
            assert kind["content-type"].startswith("application/openmetrics-text; version=1.0.0")


def _asked_in(seconds: float, at: str, path: str) -> WebAnswer:
    time.sleep(seconds)
    return ask(at, path)


def _hangs(at: str) -> bool:
    connection = http.client.HTTPConnection(at, timeout=0.3)
    try:
        connection.request("GET", "/livez")
        connection.getresponse()
    except TimeoutError:
        return True
    finally:
        connection.close()
    return False


@FORGIVEN
@pytest.mark.usefixtures("sockets_forgiven")
async def test_a_process_is_ready_while_nats_answers_and_its_event_loop_gets_round(server: NatsServer) -> None:
    async with nodes_on(server) as nodes, connected(server) as connection:
        await nodes.start("n1")
        async with http_of(nodes.all["n1"].node) as node, http_of(connection) as alone:

            async def says(status: int, what: str) -> bool:
                answers = [await asked(at, "/readyz") for at in (node, alone)]
                return all(answer.status == status and what in answer.body.decode() for answer in answers)

            await eventually(lambda: says(200, "ready"), what="both are ready")
            server.pause()
            await eventually(lambda: says(503, "there is no connection to NATS"), what="both miss NATS")
            await eventually(lambda: says(503, "what is known of slices is "), what="both know that they know little")
            assert (await asked(node, "/livez")).status == 200
            assert b"\ncdm_nats_connected 0.0\n" in (await asked(alone, "/metrics")).body
            server.resume()
            await eventually(lambda: says(200, "ready"), 30, "both are ready again")
            # While it hangs nobody is answered, which is the truth; whoever asked meanwhile hears that it is not ready.
            asked_meanwhile = [
                asyncio.get_running_loop().run_in_executor(None, _asked_in, 0.5, at, "/readyz") for at in (node, alone)
            ]
            hung = ThreadPoolExecutor(1).submit(_hangs, node)
            time.sleep(2.5)  # noqa: ASYNC251  # this is what is tested
            assert hung.result(), "and goes on to, for a thread that was late"
            for each in asked_meanwhile:
                answer = await each
                assert answer.status == 503, "the first answer after it already says so"
                assert re.search(rb"the event loop stood still for [2-9]\.", answer.body)
            # What happened meanwhile it says it does not know, for as long as the server does not tell.
            server.pause()
            time.sleep(1.5)  # noqa: ASYNC251
            await eventually(lambda: says(503, "what happened meanwhile is not known yet"), what="both know little")
            server.resume()
            await eventually(lambda: says(200, "ready"), 30, "both are ready again")
