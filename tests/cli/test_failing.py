"""What commands that wait say of programs that do not come up: on a real node, with a real program that raises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.cli.editing import edited
from cdm.cli.following import followed
from cdm.cli.judging import End, Ended
from cdm.cli.plans import scaling
from cdm.model.artifact import Artifact
from tests.cli.test_releases import Cluster
from tests.harness.processes import command_line, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

BAD = """
def connect():
    raise RuntimeError("no database")

print("starting")
connect()
"""
SHOP = """
artifact: shop:web:1
instances: 1
after: [shop:db]
---
artifact: shop:db:1
instances: 1
"""
GOOD = "import time\ntime.sleep(600)\n"


async def test_what_does_not_come_up_is_told_at_once_in_lines_that_can_be_read(
    server: NatsServer, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_text(BAD, encoding="utf-8")
    good.write_text(GOOD, encoding="utf-8")
    async with raw(server) as user:
        it = Cluster(server, user)
        await it.cdm("init")
        with node_processes(server, tmp_path) as nodes:
            node = nodes.start("n1", "--runtime", "process", "--folder", str(tmp_path / "n1"))

            async def leads() -> bool:
                node.unharmed()
                return bool(await user.lease())

            await eventually(leads, 30, "n1 leads")
            failed = (await it.cdm("deploy", "acme:web:1", str(bad), "--instances", "2", code=3)).splitlines()
            assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in failed), failed
            assert not any("Traceback" in line or "raise RuntimeError" in line for line in failed)
            assert re.search(r"acme:web:1: failed: .*; last output: RuntimeError: no database$", failed[-2])
            assert failed[-1].endswith("`cdm logs acme:web:1` shows what its instances wrote")

            async def logged() -> bool:
                done = await command_line("logs", "acme:web:1", env={"NATS_URL": server.url}, within=40)
                return done.returncode == 0 and b"no database" in done.stdout

            await eventually(logged, what="its node answers in time")

            await it.cdm("deploy", "acme:web:1.1", str(good), "--canary", "50,approve", "--no-wait")
            nothing = await it.json("rollback", "acme:web", code=3)
            assert nothing["result"] == "failed", "it is taken back, and what it went back to never came up"
            assert "no database" in nothing["reason"]

            # What is put beside a version that is taken back is in force beside it, once the leader knows of it.
            await user.delete("blueprints", "acme/web/1.1")
            put = await user.put("blueprints", "acme/web/1", {"instances": 1, "min_healthy": 3, "drain_delay": 0})

            async def seen() -> bool:
                known = (await user.status("acme/web/1")).get("observed_revision", 0) >= put
                return known and not await user.status("acme/web/1.1")

            await eventually(seen, what="the leader knows it")
            assert (await it.json("deploy", "acme:web:2", str(good)))["result"] == "complete"
            back = (await it.cdm("rollback", "acme:web", code=3)).splitlines()
            assert "acme:web:2: failed: going back to 1: " in back[-2]

            async def stuck() -> dict[str, Any]:
                """It is tried again every few seconds, and counts as stuck in between."""
                found: dict[str, Any] = (await it.json("rollout", "status", "acme:web"))["rollout"]
                return found if found.get("stuck") else {}

            told = await eventually(stuck, what="it is stuck")
            assert "1 old instance failed or restarted" in told["why"]
            assert [key for key in await user.slices() if "acme/web/2" in key], "what serves stays"

            # What waits for something that does not come up is not waited for any longer than that.
            shop = tmp_path / "shop.yaml"
            shop.write_text(SHOP, encoding="utf-8")
            await it.cdm("artifact", "push", "shop:web:1", str(good))
            lines = (await it.cdm("apply", "-f", str(shop), "--wait", code=3)).splitlines()
            told = dict(line[10:].split(": failed: ", 1) for line in lines if ": failed: " in line)
            assert "there is no artifact shop:db:1" in told["shop:db:1"], lines
            assert told["shop:web:1"].startswith("waiting for shop:db, which does not come up: "), lines
            assert sum("`cdm explain shop:db:1` tells more" in line for line in lines) == 2, lines
            assert any(line.endswith("0 of 2 complete; failed: shop:web:1, shop:db:1") for line in lines), lines
            assert not any("cdm logs" in line for line in lines), "none of it was ever started"

            for shown in (await it.cdm("rollout", "status", "acme:web"), await it.cdm("history", "acme:web")):
                assert "raise RuntimeError" not in shown


async def test_the_time_for_which_nats_is_away_does_not_count(server: NatsServer) -> None:
    web, deadline = Artifact("acme", "web", "1"), 10.0
    async with raw(server) as user, connected(server) as connection:
        assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
        await user.put("blueprints", "acme/web/1", {"instances": 1, "rollout": {"deadline": f"{deadline:g}s"}})
        made = await edited(connection, web.service, lambda look: scaling(look, web, 2))
        told = {"observed_revision": made.revision, "desired": 2, "reason": "starting"}
        await user.put("status", "acme/web/1", {"condition": "Progressing", **told})
        said: list[str] = []
        ends: list[Ended] = []

        async def follow() -> None:
            ends.append(await followed(connection, made, said.append))

        with bounded(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await eventually(lambda: said, what="it is followed")
                server.kill()
                await anyio.sleep(deadline + 2)
                assert not ends
                await server.restart()
                await user.stubborn("status", "acme/web/1", {"condition": "Ready", **told, "active": 2, "healthy": 2})
    assert [each.end for each in ends] == [End.COMPLETE], ends
