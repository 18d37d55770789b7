"""The commands of releases as their users meet them: real servers, real managers, and what is in the bucket after."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.cli import editing
from cdm.cli.plans import Edit, scaling
from cdm.cli.service import ServiceLook
from cdm.errors import Conflict
from cdm.model.artifact import Artifact
from cdm.store.wire import WRITER
from tests.harness.agents import agents
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.processes import command_line, environment
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

QUICK = {"instances": 2, "min_healthy": 0, "env": {"LEVEL": "info"}, "drain_delay": 0}


class Cluster:
    """A cluster whose agents do as they are told, and somebody who types commands."""

    def __init__(self, server: NatsServer, user: Raw, nodes: Nodes | None = None) -> None:
        self.server = server
        self.user = user
        self._nodes = nodes

    async def heard(self) -> None:
        """Wait until whoever leads knows all that was written so far; see `Nodes.heard`."""
        assert self._nodes is not None
        await self._nodes.heard()

    async def cdm(self, *arguments: str, code: int = 0) -> str:
        """Type a command; returns what it said. On standard error there is a line at most."""
        return "".join(await self._type(*arguments, code=code))

    async def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Type a command with ``--json``."""
        found = json.loads((await self._type(*arguments, "--json", code=code))[0])
        assert isinstance(found, dict)
        return found

    async def _type(self, *arguments: str, code: int) -> tuple[str, str]:
        done = await command_line(*arguments, env={"NATS_URL": self.server.url}, within=40)
        out, told = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, out + told
        # A server that stands still for some seconds is left, and that is told.
        err = "".join(line for line in told.splitlines(keepends=True) if "to NATS" not in line)
        assert len(err.splitlines()) <= 1
        assert "Traceback" not in err
        return out, err

    async def blueprint(self, version: str) -> Any:
        """A blueprint as it stands in the bucket."""
        record = (await self.user.contents("blueprints"))[f"acme/web/{version}"]
        return json.loads(record.data)

    async def settles(self, version: str, condition: str = "Ready") -> None:
        """Wait until the leader says so of a version."""

        async def settled() -> bool:
            newest = (await self.user.contents("blueprints"))[f"acme/web/{version}"].sequence
            status = await self.user.status(f"acme/web/{version}")
            return status.get("condition") == condition and status["observed_revision"] == newest

        await eventually(settled, what=f"{version} is {condition}")

    async def phase(self, phase: str, step: int | None = None) -> None:
        """Wait until the rollout is in this phase, and the leader says so of its new version."""

        async def there() -> bool:
            record = (await self.user.contents("slices")).get("_rollout.acme/web")
            value = record.value if record else {}
            if value.get("phase") != phase or step not in (None, value.get("step", 0)):
                return False
            told = (await self.user.status(f"acme/web/{value['to']['version']}")).get("rollout") or {}
            return told.get("phase") == phase and told.get("step") == value.get("step", 0) + 1

        await eventually(there, what=f"the rollout is {phase}")


@asynccontextmanager
async def cluster(server: NatsServer, *nodes: str) -> AsyncIterator[Cluster]:
    async with raw(server) as user, nodes_on(server) as running:
        await running.start(*nodes)
        await running.leader()
        async with agents(server, *nodes):
            yield Cluster(server, user, running)
        running.unharmed()


async def only(it: Cluster, version: str) -> bool:
    """Whether there are slices of this version alone. Those that end may outlast the command by a moment."""
    return {key.partition(".")[2][:10] for key in await it.user.slices()} == {f"acme/web/{version}"}


@pytest.mark.quick
async def test_a_service_is_deployed_released_and_rolled_back(server: NatsServer) -> None:
    async with cluster(server, "n1", "n2") as it:
        first = await it.cdm("deploy", "acme:web:1", "--instances", "2", "--no-wait")
        assert "acme:web: 1, 2 instances" in first
        assert "acme:web:1 is not in the store" in first
        assert await it.blueprint("1") == 2
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")

        released = await it.cdm("deploy", "acme:web:2")
        assert re.search(r"^\d\d:\d\d:\d\d  acme:web: 1 -> 2, 2 instances$", released, re.MULTILINE)
        assert re.search(r"^\d\d:\d\d:\d\d  acme:web:2: complete$", released, re.MULTILINE)
        assert await it.blueprint("2") == {**QUICK, "rollout": {"from": "1"}}
        await eventually(partial(only, it, "2"), what="what is replaced is gone")

        again = await it.json("deploy", "acme:web:2")
        assert (again["changed"], again["result"]) == (False, "complete")
        refused = await it.cdm("rollout", "approve", "acme:web", code=1)
        assert "no rollout of acme:web is under way (the last one, 1 -> 2, is complete)" in refused

        back = await it.json("rollback", "acme:web")
        assert (back["artifact"], back["from"], back["result"]) == ("acme:web:2", "1", "reverted")
        await eventually(partial(only, it, "1"), what="what is taken back is gone")
        assert "2 was taken back already" in await it.cdm("rollback", "acme:web", code=1)
        (why,) = (each for each in (await it.json("history", "acme:web"))["revisions"] if each["state"] == "reverted")
        assert (why["version"], why["reason"]) == ("2", "aborted after it was complete")
        table, reasons = (await it.cdm("history", "acme:web")).split(f"{why['revision']} (2) reverted: ")
        assert reasons == "aborted after it was complete\n"
        assert "aborted" not in table
        assert "`cdm rollout retry acme:web` tries it again" in await it.cdm("deploy", "acme:web:2", code=1)
        told = await it.cdm("rollout", "status", "acme:web", code=3)
        assert "1 -> 2 reverted" in told
        assert "`cdm rollout retry acme:web` tries 2 once more" in told
        assert (await it.json("rollout", "retry", "acme:web", "--watch"))["result"] == "complete"

        found = (await it.json("history", "acme:web"))["revisions"]
        states = [(each["version"], each["state"]) for each in found if each["state"]]
        assert states == [("1", "superseded"), ("2", "in force")]
        assert [each["by"] == "unknown" for each in found] == [False, True, False, False, False]
        assert found[3]["changes"] == ["rollout.abort true"]
        shown = await it.cdm("history", "acme:web")
        assert "rollout.abort true" in shown


async def test_a_canary_is_paused_resumed_and_approved(server: NatsServer) -> None:
    async with cluster(server, "n1", "n2") as it:
        await it.user.put("blueprints", "acme/web/1", {**QUICK, "instances": 4})
        await it.settles("1")
        assert (await it.json("deploy", "acme:web:2", "--canary", "25,approve,50,approve", "--no-wait"))["changed"]
        await it.phase("paused", 1)
        shown = await it.cdm("rollout", "status", "acme:web")
        assert "paused 1 -> 2, step 2 of 5" in shown
        assert "waiting for an approval: cdm rollout approve acme:web" in shown
        status = await it.cdm("status")
        assert status.count("paused 1 -> 2, step 2 of 5") == 1
        assert re.search(r"acme:web:1 +Superseded +3/0 +3", status)
        refused = await it.cdm("rollout", "resume", "acme:web", code=1)
        assert "waits for approval 1: `cdm rollout approve acme:web`" in refused
        assert "is being replaced (in force: 2)" in await it.cdm("scale", "acme:web:1", "9", code=1)

        assert (await it.json("rollout", "pause", "acme:web"))["changed"]
        assert not (await it.json("rollout", "pause", "acme:web"))["changed"]
        await it.settles("2", "Progressing")
        assert (await it.json("rollout", "resume", "acme:web"))["changed"]
        assert (await it.blueprint("2"))["rollout"].get("paused") is None
        assert (await it.json("rollout", "approve", "acme:web"))["changed"]
        await it.phase("paused", 3)
        document = await it.json("rollout", "status", "acme:web")
        assert document["rollout"]["awaits_approval"]
        assert document["rollout"]["share"] == 50
        done = await it.cdm("rollout", "approve", "acme:web", "--watch")
        assert done.splitlines()[-1].endswith("acme:web:2: complete")
        assert "1 -> 2 complete" in await it.cdm("rollout", "status", "acme:web")
        assert (await it.blueprint("2"))["rollout"]["approved"] == 2


async def test_a_rollout_is_watched_until_it_is_over(server: NatsServer) -> None:
    async with cluster(server, "n1") as it:
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")
        await it.cdm("deploy", "acme:web:2", "--canary", "50,approve", "--no-wait")
        await it.phase("paused", 1)
        command = [sys.executable, "-m", "cdm", "rollout", "status", "acme:web", "--watch", "--json"]
        where = {**environment(), "NATS_URL": server.url}
        async with await anyio.open_process(command, env=where, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            with bounded(20):
                said = await process.stdout.receive()
                await it.cdm("rollout", "approve", "acme:web")
                said += b"".join([chunk async for chunk in process.stdout])
                assert await process.wait() == 0
        shown = said.decode().splitlines()
        phases = [json.loads(line)["rollout"]["phase"] for line in shown]
        assert (phases[0], phases[-1]) == ("paused", "complete")
        assert len(set(shown)) == len(shown), "each line tells something new"


async def test_whoever_stops_waiting_is_told_that_it_goes_on(server: NatsServer) -> None:
    assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", "acme/web/1", 1)
        command = [sys.executable, "-m", "cdm", "scale", "acme:web:1", "2", "--wait", "--server", server.url]
        async with await anyio.open_process(command, env=environment(), stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = b""
            with bounded(20):
                while b"no leader has taken it up so far" not in said:
                    said += await process.stdout.receive()
                process.send_signal(signal.SIGINT)
                told = b"".join([chunk async for chunk in process.stderr])
                assert await process.wait() == 130
        assert told.endswith(b"cdm: no longer waited for, but it goes on; see `cdm rollout status acme:web`\n")


async def test_a_rollout_is_aborted_and_whoever_waits_for_it_hears_so(server: NatsServer) -> None:
    async with cluster(server, "n1") as it:
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")
        waited: dict[str, Any] = {}

        async def deploy() -> None:
            waited.update(await it.json("deploy", "acme:web:2", "--canary", "50,approve", code=3))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deploy)
            await it.phase("paused", 1)
            aborted = await it.cdm("rollout", "abort", "acme:web", "--watch")
        assert "acme:web: 1 -> 2: going back to 1" in aborted
        assert "acme:web:2: reverted: aborted" in {line[10:] for line in aborted.splitlines()}
        assert waited["result"] == "reverted"
        assert "was taken back already" in await it.cdm("rollout", "abort", "acme:web", code=1)


async def test_a_rollback_goes_back_and_forth_between_settings_and_past_restarts(server: NatsServer) -> None:
    async with cluster(server, "n1") as it:
        for level in ("info", "debug"):
            await it.user.put("blueprints", "acme/web/1", {**QUICK, "env": {"LEVEL": level}})
            await it.settles("1")
        await it.json("restart", "acme:web:1")
        stamp = (await it.blueprint("1"))["restarted"]
        for level in ("info", "debug"):
            assert (await it.json("rollback", "acme:web"))["result"] == "complete"
            there = await it.blueprint("1")
            assert (there["env"], there["restarted"]) == ({"LEVEL": level}, stamp)
        assert list((await it.json("restart", "acme:web:1", "--no-wait")).items())[-2:] == [
            ("result", None),
            ("reason", ""),
        ]


async def test_after_a_restart_a_rollback_passes_over_a_version_that_was_replaced_before_it_was_complete(
    server: NatsServer,
) -> None:
    async with cluster(server, "n1", "n2") as it:
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")
        await it.cdm("deploy", "acme:web:2", "--canary", "50,approve", "--no-wait")
        await it.phase("paused", 1)
        await it.cdm("deploy", "acme:web:3", "--rolling")
        await it.cdm("restart", "acme:web:3")
        assert "acme:web: 3 -> 1, 2 instances" in await it.cdm("rollback", "acme:web")


async def test_what_is_in_force_is_scaled_where_new_settings_were_taken_back(server: NatsServer) -> None:
    async with cluster(server, "n1", "n2") as it:
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")
        other = {
            "env": {"LEVEL": "debug"},
            "rollout": {"kind": "canary", "steps": [{"weight": 50}, {"pause": "approve"}]},
        }
        await it.user.put("blueprints", "acme/web/1", {**QUICK, **other})
        await it.phase("paused", 1)
        await it.cdm("rollout", "abort", "acme:web", "--watch")
        assert "acme:web:1: complete" in await it.cdm("scale", "acme:web:1", "3", "--wait")
        stored = await it.user.contents("slices")
        values = [record.value for key, record in stored.items() if not key.startswith("_")]
        assert [each["overrides"]["env"] for each in values] == [{"LEVEL": "info"}] * 3


async def test_scale_and_restart_keep_what_people_wrote(server: NatsServer) -> None:
    async with cluster(server, "n1", "n2") as it:
        await it.user.put("blueprints", "acme/web/1", b"2")
        assert (await it.json("scale", "acme:web:1", "3"))["changed"]
        newest = (await it.user.contents("blueprints"))["acme/web/1"]
        assert newest.data == b"3"
        assert re.fullmatch(r"\S+@\S+", newest.headers[WRITER])
        typed = b'{"min_healthy": 0,\n "instances": 3, "env": {"A": "x"}}'
        await it.user.put("blueprints", "acme/web/1", typed)
        await it.settles("1")
        restarted = await it.json("restart", "acme:web:1")
        assert restarted["result"] == "complete"
        written = await it.blueprint("1")
        assert list(written) == ["min_healthy", "instances", "env", "restarted"]
        assert "`cdm deploy acme:web:9 PATH` pushes a program and makes one" in await it.cdm(
            "scale", "acme:web:9", "3", code=1
        )
        assert "write the version too" in await it.cdm("restart", "acme:web", code=2)
        assert "write the service, acme:web" in await it.cdm("history", "acme:web:1", code=2)
        unknown = "there is no blueprint of acme:wep (did you mean acme:web?)"
        for command in ("rollout status", "rollout abort", "rollback"):
            assert unknown in await it.cdm(*command.split(), "acme:wep", code=1)


async def test_a_program_is_pushed_and_serves(server: NatsServer, tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text("print('hello')", encoding="utf-8")
    async with cluster(server, "n1") as it:
        deployed = await it.json("deploy", "acme:web:1", str(program), "--no-wait")
        assert (deployed["pushed"], deployed["from"]) == ("stored", None)
        assert "there is no artifact acme:web:2 (did you mean acme:web:1?)" in await it.cdm(
            "deploy", "acme:web:2", code=1
        )
        program.write_text("print('other')", encoding="utf-8")
        refused = await it.cdm("deploy", "acme:web:1", str(program), code=4)
        assert "already stored with other content" in refused
        with_program = await it.cdm("deploy", "acme:web:2", str(program), "--blue-green", "--rolling", code=2)
        assert "choose one" in with_program
        assert "choose" not in await it.cdm("deploy", "acme:web:2", str(program), "--canary", "x", code=2)


async def test_a_new_version_is_run_as_the_one_before_unless_a_manifest_says_otherwise(
    server: NatsServer, tmp_path: Path
) -> None:
    first, second, manifest = tmp_path / "one.py", tmp_path / "two.py", tmp_path / "m.toml"
    for program in (first, second):
        program.write_text("print('hello')", encoding="utf-8")
    manifest.write_text('args = ["-v"]\nport = "auto"\n', encoding="utf-8")
    async with cluster(server, "n1") as it:
        told = await it.json("deploy", "acme:web:1", str(first), "--manifest", str(manifest), "--no-wait")
        assert (told["pushed"], told["manifest_from"]) == ("stored", None)
        said = await it.cdm("deploy", "acme:web:2", str(second), "--no-wait")
        assert "acme:web:2: pushed, to be run as 1 is: args, port" in said
        manifest.write_text('args = ["-q"]\n', encoding="utf-8")
        other = await it.cdm("deploy", "acme:web:3", str(second), "--manifest", str(manifest), "--no-wait")
        assert "cdm: note: the manifest of 2 says port; that of 3 does not" in other
        told = await it.json("deploy", "acme:web:4", str(first), "--entry", "one.py", "--no-wait")
        assert told["manifest_from"] == "3"
        stored = {each["artifact"]: each["manifest"] for each in (await it.json("artifact", "ls"))["artifacts"]}
        assert [stored[f"acme:web:{version}"]["entry"] for version in "1234"] == [
            "one.py",
            "two.py",
            "two.py",
            "one.py",
        ]
        assert [stored[f"acme:web:{version}"]["args"] for version in "1234"] == [["-v"], ["-v"], ["-q"], ["-q"]]
        assert [stored[f"acme:web:{version}"]["port"] for version in "1234"] == ["auto", "auto", None, None]
        await it.cdm("artifact", "push", "acme:web:5", str(first))
        assert "the manifest of 4 says args; that of 5 does not" in await it.cdm("deploy", "acme:web:5", "--no-wait")


async def test_what_is_pushed_over_the_version_in_force_replaces_what_runs(server: NatsServer, tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text("print('hello')", encoding="utf-8")
    async with cluster(server, "n1") as it:
        await it.user.put("blueprints", "acme/web/1", QUICK)
        await it.settles("1")
        assert (await it.json("deploy", "acme:web:1", str(program)))["changed"] is False
        program.write_text("print('other')", encoding="utf-8")
        assert "replace it: --force" in await it.cdm("deploy", "acme:web:1", str(program), code=4)
        told = await it.json("deploy", "acme:web:1", str(program), "--force")
        assert (told["pushed"], told["changed"], told["result"]) == ("replaced", True, "complete")
        assert "restarted" in await it.blueprint("1")
        again = await it.json("deploy", "acme:web:1", str(program), "--force")
        assert (again["pushed"], again["changed"]) == ("unchanged", False)
        assert "no path is given" in await it.cdm("deploy", "acme:web:1", "--force", code=2)


async def test_what_is_refused_pushes_nothing(server: NatsServer, tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text("print('hello')", encoding="utf-8")
    async with cluster(server, "n1") as it:
        await it.cdm("deploy", "acme:web:1", str(program), "--from", "0", "--no-wait", code=2)
        assert (await it.json("artifact", "ls"))["artifacts"] == []


@pytest.mark.quick
async def test_what_others_write_meanwhile_is_kept_and_after_a_few_tries_it_is_a_conflict(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw(server) as user:
        assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
        await user.put("blueprints", "acme/web/1", {"instances": 1, "env": {"A": "0"}})
        monkeypatch.setattr(editing, "PAUSE", 0.01)
        web = Artifact("acme", "web", "1")
        meddling = 1

        async with connected(server) as connection:
            looked = editing.looked

            async def disturbed(*arguments: Any) -> Any:
                nonlocal meddling
                found = await looked(*arguments)
                if meddling:
                    meddling -= 1
                    await user.put("blueprints", "acme/web/1", {"instances": 1, "env": {"A": str(meddling + 1)}})
                return found

            monkeypatch.setattr(editing, "looked", disturbed)
            made = await editing.edited(connection, web.service, lambda look: scaling(look, web, 5))
            assert (await user.contents("blueprints"))["acme/web/1"].sequence == made.revision
            stored = (await user.contents("blueprints"))["acme/web/1"].value
            assert stored == {"instances": 5, "env": {"A": "1"}}, "the edit was made anew, on what others wrote"
            meddling = 100
            with pytest.raises(Conflict, match="cdm history acme:web"):
                await editing.edited(connection, web.service, lambda look: scaling(look, web, 9))


async def test_an_edit_without_an_answer_is_not_made_twice(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored after all: whoever looks again finds it, and does not take it for what others wrote."""
    async with raw(server) as user:
        assert (await command_line("init", env={"NATS_URL": server.url})).returncode == 0
        await user.put("blueprints", "acme/web/1", {"instances": 1})
        web, looks = Artifact("acme", "web", "1"), 0

        async with connected(server) as connection:
            looked = editing.looked

            async def disturbed(*arguments: Any) -> Any:
                nonlocal looks
                looks += 1
                if looks > 1:
                    server.resume()
                    await eventually(lambda: connection.is_up)
                found = await looked(*arguments)
                if looks == 1:
                    server.pause()
                return found

            def one_more(look: ServiceLook) -> Edit:
                return scaling(look, web, int(look.versions["1"].instances) + 1)

            monkeypatch.setattr(editing, "looked", disturbed)
            try:
                with bounded(30):
                    made = await editing.edited(connection, web.service, one_more)
            finally:
                server.resume()
            assert looks > 1
            stored = (await user.contents("blueprints"))["acme/web/1"]
            assert (stored.value, stored.sequence) == ({"instances": 2}, made.revision)
