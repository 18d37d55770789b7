"""Who may do what under the configuration that is shipped (``nats/secure.conf``), and how a refusal is told."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import nats.errors
import pytest
from msgspec.structs import replace

from cdm import clock
from cdm.artifacts.cache import Cache
from cdm.artifacts.repository import Artifacts
from cdm.cli import Exit
from cdm.errors import AccessDenied, Unreachable, Untrusted
from cdm.leader.slot import DENIED_PAUSE
from cdm.model.artifact import Artifact, node_id
from cdm.model.node import Role
from cdm.node.holders import holders_of
from cdm.node.managing import Managing
from cdm.node.node import NodeSettings
from cdm.node.node import node as node_of
from cdm.store.access import Access
from cdm.store.batch import Write
from cdm.store.bucket import buckets
from cdm.store.connection import connect
from tests.harness.agents import agents_of
from tests.harness.processes import Processes, command_line
from tests.harness.secure import (
    Certificates,
    Fortress,
    Insider,
    JwtFortress,
    fortress,
    permissions_of_node,
)
from tests.harness.servers import FORGIVEN, free_port, running_server
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import ANSWER, Raw, Rejection, Tenant

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = "g/one/1"
BUCKETS = ("blueprints", "slices", "nodes", "status")


@asynccontextmanager
async def prepared(
    folder: Path, *nodes: str, managers: Sequence[str] = ("manager-1",), before: bool = False
) -> AsyncIterator[Fortress]:
    """A fortress with its buckets."""
    async with fortress(folder, *nodes, managers=managers, before=before) as found:
        made = await command_line("init", *found.options("admin"))
        assert made.returncode == 0, made.stderr
        yield found


@contextmanager
def running(found: Fortress, node_ttl: float = 20) -> Iterator[Processes]:
    """Processes on a fortress."""
    times = ("--lease-ttl", "20", "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
    processes = Processes(found.url, found.folder, times)
    try:
        yield processes
    finally:
        processes.kill()


def silent(found: Fortress, text: str) -> None:
    """Nothing secret is in the text."""
    for secret in found.secrets:
        assert secret not in text


@pytest.mark.quick
@pytest.mark.parametrize("before", [False, True])
async def test_a_cluster_lives_on_what_each_may_do(tmp_path: Path, before: bool) -> None:
    """Init, election, blueprint, slices, drain, hand-over, an orderly end: nobody misses a permission."""
    managers = ("m1", "m2")
    async with (
        prepared(tmp_path, "node-1", "node-2", managers=managers, before=before) as found,
        found.client("operator") as operator,
    ):
        user = Raw(operator.client)
        with running(found) as nodes:
            for name in managers:
                nodes.start(name, "--role", "manager", *found.who("manager" if before else name))
            for name in ("node-1", "node-2"):
                nodes.start(name, "--role", "agent", *found.who(name))
            await eventually(lambda: _registered(user, 4))
            await nodes.heard(user)
            async with (
                found.client("node-1") as one,
                found.client("node-2") as two,
                agents_of(_agent(one, before), "node-1"),
                agents_of(_agent(two, before), "node-2"),
            ):
                await user.put("blueprints", ONE, 4)
                await eventually(lambda: _active(user, {"node-1": 2, "node-2": 2}))
                for typed in (
                    ("cordon", "node-1", "node-2"),
                    ("uncordon", "node-1", "node-2"),
                    ("drain", "node-1", "--wait"),
                ):
                    done = await command_line(*typed, *found.options("operator"), within=40)
                    assert done.returncode == 0, done.stderr
                await eventually(lambda: _active(user, {"node-2": 4}))
                if not before:
                    await _looked_over(found)
                lease = await user.lease()
                nodes.all[lease["node"]].send(signal.SIGKILL)
                await eventually(lambda: _term_above(user, lease["term"]))
                await user.delete("blueprints", ONE)
                await eventually(lambda: _active(user, {}))
                if not before:  # a leader that stops does not wait for long until all is told
                    await eventually(lambda: _second_is_told_of(found), pause=0.5)
                assert not one.refusals
                assert not two.refusals
            for process in nodes.all.values():
                if process.code is None:
                    process.send(signal.SIGTERM)
                    assert await process.ends() == 0, process.log
            # Managers of today ask for what those of before did without.
            known = r'denied: (subscribe "cdm\.watch\.\*"|publish "cdm\.event\.)' if before else "(?!)"
            for process in nodes.all.values():
                assert "denied" not in re.sub(known, "", process.log)
                assert process.log.count("events are not told") <= before, "one line"
                assert "violation" not in process.log.lower()
                silent(found, process.log)
            shown = await command_line("status", *found.options("operator"))
            assert shown.returncode == Exit.UNHEALTHY, shown.stderr
            told = await command_line("events", "--kind", "leader,intent", *found.options("operator"))
            assert told.returncode == (Exit.DENIED if before else Exit.OK), told.stderr
            assert told.stdout.count(b"leads, term") == (0 if before else 2)
        assert not operator.refusals


async def _second_is_told_of(found: Fortress) -> bool:
    told = await command_line("events", "--kind", "leader", *found.options("operator"))
    return told.stdout.count(b"leads, term") == 2


async def _looked_over(found: Fortress) -> None:
    """The doctor knows what each may do, and finds nothing else to tell; also by what operators read."""
    for who, may in {
        "operator": "may read the buckets, write blueprints, cordon and drain nodes, push artifacts and read logs; may "
        "not manage (write slices) or change buckets",
        "m1": "may read the buckets and manage (write slices); may not write blueprints, cordon and drain nodes, push "
        "artifacts, read logs or change buckets",
    }.items():
        # A heartbeat that took long is told of until the next one.
        await eventually(partial(_nothing_else, found, who, may), 30, f"{who}: nothing else is told", pause=1)


async def _nothing_else(found: Fortress, who: str, may: str) -> bool:
    done = await command_line("doctor", "--json", *found.options(who), within=40)
    silent(found, done.stdout.decode() + done.stderr.decode())
    told = {(each["kind"], each["severity"], each["what"]) for each in json.loads(done.stdout)["findings"]}
    print(who, sorted(told))
    rest = {each[:2] for each in told if each[1] != "ok"}
    return done.returncode == Exit.OK and ("permissions", "ok", may) in told and rest <= {("buckets", "note")}


def _agent(insider: Insider, before: bool) -> Raw:
    """What plays a node's agent."""
    if before:
        return Raw(insider.client, keys=f"{insider.name}.>")
    return Tenant(insider.client, insider.name)


async def _registered(user: Raw, count: int) -> bool:
    return len(await user.registrations()) == count


async def _active(user: Raw, wanted: dict[str, int]) -> bool:
    found = await user.slices()
    counts = {node: sum(key.startswith(f"{node}.") for key in found) for node in wanted}
    return counts == wanted and sum(wanted.values()) == len(found) and set(found.values()) <= {"ACTIVE"}


async def _term_above(user: Raw, term: int) -> bool:
    lease = await user.lease()
    return bool(lease) and lease["term"] > term


REFUSED = {
    "node-1": [
        "$KV.slices._leader",
        "$KV.slices._term",
        f"$KV.slices.node-2.{ONE}",
        f"$KV.slices.node-10.{ONE}",
        "$KV.nodes.node-2",
        "$KV.nodes.node-1.intent",
        f"$KV.blueprints.{ONE}",
        f"$KV.status.{ONE}",
        "$JS.API.STREAM.CREATE.KV_slices",
        "$JS.API.STREAM.UPDATE.KV_slices",
        "$JS.API.STREAM.PURGE.KV_slices",
        "$JS.API.STREAM.DELETE.KV_slices",
        "$JS.API.STREAM.MSG.GET.KV_slices",
        "$JS.API.STREAM.INFO.KV_blueprints",
        "$JS.API.DIRECT.GET.KV_slices.$KV.slices._term",
        f"$JS.API.DIRECT.GET.KV_slices.$KV.slices.node-2.{ONE}",
        "$JS.API.DIRECT.GET.KV_nodes",
        "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.node-2",
        "$JS.API.CONSUMER.CREATE.KV_slices",
        "$JS.API.CONSUMER.CREATE.KV_slices.c",
        "$JS.API.CONSUMER.CREATE.KV_slices.c.$KV.slices.>",
        "$JS.API.CONSUMER.CREATE.KV_slices.c.$KV.slices.node-2.>",
        "$JS.API.CONSUMER.CREATE.KV_nodes.c.$KV.nodes.>",
        "$JS.API.CONSUMER.LIST.KV_slices",
        "cdm.node.node-2",
        "cdm.leader.1",
        "cdm.logs.node-2",
        "cdm.event.leader.node-1._",
        "$JS.API.DIRECT.GET.cdm_events",
        "_INBOX_manager-1.x",
        "_INBOX_operator.x",
    ],
    "operator": [
        "$KV.slices._leader",
        "$KV.slices._term",
        f"$KV.slices.node-1.{ONE}",
        "$KV.nodes.node-1",
        f"$KV.status.{ONE}",
        "$JS.API.STREAM.CREATE.KV_slices",
        "$JS.API.STREAM.UPDATE.KV_slices",
        "$JS.API.STREAM.PURGE.KV_slices",
        "$JS.API.STREAM.DELETE.KV_slices",
        "cdm.node.node-1",
        "cdm.event.leader.node-1._",
        "$JS.API.STREAM.PURGE.cdm_events",
        "_INBOX_manager-1.x",
    ],
    "manager-1": [
        "$JS.API.STREAM.DELETE.cdm_events",
        f"$KV.blueprints.{ONE}",
        "$KV.nodes.node-1.intent",
        "$JS.API.STREAM.CREATE.KV_slices",
        "$JS.API.STREAM.UPDATE.KV_slices",
        "$JS.API.STREAM.PURGE.KV_slices",
        "$JS.API.STREAM.DELETE.KV_slices",
        "_INBOX_operator.x",
    ],
    "admin": [
        "$KV.slices._leader",
        "$KV.slices._term",
        f"$KV.slices.node-1.{ONE}",
        "$KV.nodes.node-1",
        f"$KV.blueprints.{ONE}",
        f"$KV.status.{ONE}",
        "$JS.API.STREAM.DELETE.KV_slices",
    ],
}
ALLOWED = {
    "node-1": [f"$KV.slices.node-1.{ONE}", "$KV.nodes.node-1", "cdm.node.node-1"],
    "operator": [f"$KV.blueprints.{ONE}", "$KV.nodes.node-1.intent", "$KV.nodes.node-1.seen", "cdm.logs.node-1"],
    "manager-1": [
        "$KV.slices._leader",
        "$KV.slices._term",
        f"$KV.slices.node-1.{ONE}",
        "$KV.nodes.manager-1",
        "$KV.nodes.node-1.seen",
        f"$KV.status.{ONE}",
        "cdm.leader.1",
        "cdm.node.node-1",
        "cdm.event.leader.manager-1._",
    ],
    "admin": ["$JS.API.STREAM.CREATE.KV_slices", "$JS.API.STREAM.UPDATE.KV_status"],
}
UNHEARD = {
    "node-1": [
        ">",
        "$KV.>",
        "$KV.slices.>",
        "cdm.>",
        "cdm.node.node-2",
        "cdm.leader.1",
        "cdm.logs.node-2",
        "cdm.event.>",
        "_INBOX.>",
        "_INBOX_manager-1.>",
    ],
    "operator": [
        ">",
        "$KV.slices.>",
        "cdm.leader.1",
        "cdm.logs.node-1",
        "_INBOX.>",
        "_INBOX_manager-1.>",
        "_INBOX_node-1.>",
    ],
    "manager-1": [">", "$KV.blueprints.>", "_INBOX.>", "_INBOX_operator.>", "_INBOX_node-1.>"],
    "admin": [">", "$KV.slices.>", "_INBOX.>"],
}


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_what_each_user_may_and_may_not(tmp_path: Path, name: str) -> None:
    async with prepared(tmp_path) as found, found.client(name) as insider:
        for subject in ALLOWED[name]:
            assert await insider.may_publish(subject, b"{}"), f"{name} may write {subject}"
        async with found.client(found.managers[0]) as manager:  # the operator reads copies, which may be behind
            before = await _contents(manager)
            for subject in REFUSED[name]:
                assert not await insider.may_publish(subject, b"{}"), f"{name} must not write {subject}"
            assert await _contents(manager) == before
        for subject in UNHEARD[name]:
            assert not await insider.may_subscribe(subject), f"{name} must not hear {subject}"
        assert await insider.may_subscribe(f"_INBOX_{name}.x.>")


async def _contents(reader: Insider) -> dict[str, dict[str, int]]:
    user = Raw(reader.client)
    return {name: {key: record.sequence for key, record in (await user.contents(name)).items()} for name in BUCKETS}


async def test_the_operator_pushes_artifacts_and_nodes_fetch_them(tmp_path: Path) -> None:
    script = tmp_path / "hello.py"
    script.write_text("print()")
    async with prepared(tmp_path, "node-1") as found, found.client("operator") as operator:
        options = found.options("operator")
        pushed = await command_line("artifact", "push", "g:one:1", str(script), *options)
        assert pushed.returncode == 0, pushed.stderr
        again = await command_line("artifact", "push", "g:one:1", str(script), *options)
        assert b"unchanged" in again.stdout, again.stderr
        replaced = await command_line("artifact", "push", "g:one:1", str(script), "--force", *options)
        assert b"replaced" in replaced.stdout
        await operator.client.request("$KV.blueprints.g/one/1", b"3", timeout=ANSWER)
        for who in ("node-1", "manager-1"):
            async with connect(found.access(who), name="test") as connection:
                cache = Cache(tmp_path / who, Artifacts(connection))
                assert (await cache.get(Artifact("g", "one", "1"))).manifest.entry == "hello.py"
            refused = await command_line("artifact", "push", "g:one:2", str(script), *found.options(who))
            assert refused.returncode == Exit.DENIED
        assert (await command_line("artifact", "rm", "g:one:1", *options)).returncode == Exit.CONFLICT
        removed = await command_line("artifact", "rm", "g:one:1", "--force", *options)
        assert removed.returncode == 0, removed.stderr
        shown = await command_line("artifact", "ls", *options)
        assert b"no artifacts" in shown.stdout
        info = await Raw(operator.client).api("STREAM.INFO.OBJ_artifacts")
        assert info["state"]["messages"] == 1  # the record of the removal: no part is left
        assert not operator.refusals


async def test_the_operator_releases_by_command(tmp_path: Path) -> None:
    program = tmp_path / "web.py"
    program.write_text("print('hello')")
    async with prepared(tmp_path) as found, found.client("operator") as operator:
        options = found.options("operator")
        for *command, code in (
            ("deploy", "acme:web:1", str(program), "--no-wait", Exit.OK),
            ("deploy", "acme:web:2", str(program), "--no-wait", Exit.OK),
            ("scale", "acme:web:2", "3", Exit.OK),
            ("restart", "acme:web:2", "--timeout", "1s", Exit.UNHEALTHY),
            ("plan", "acme:web:2", "--instances", "9", "--detailed-exitcode", 10),
            ("apply", "acme:web:2", "--set", "env.LEVEL=debug", Exit.OK),
            ("export", "--all", Exit.OK),
            ("history", "acme:web", Exit.OK),
            ("rollout", "status", "acme:web", Exit.OK),
            ("rollout", "abort", "acme:web", Exit.FAILED),
        ):
            done = await command_line(*command, *options)
            assert done.returncode == code, (command, done.stderr)
            silent(found, done.stdout.decode() + done.stderr.decode())
        assert (await Raw(operator.client).contents("blueprints"))["acme/web/2"].value["instances"] == 3


async def test_of_nodes_whose_role_changes_only_those_manage_whose_credentials_let_them(tmp_path: Path) -> None:
    async with prepared(tmp_path, "node-1", managers=("m1",)) as found, found.client("operator") as operator:
        user = Raw(operator.client)
        with running(found, node_ttl=8) as nodes:  # with less, one late answer to a heartbeat is warned of
            for name in ("node-1", "m1"):
                nodes.start(name, "--role", "auto", "--runtime", "external", *found.who(name))
            await eventually(lambda: _roles(user, {"m1": "all", "node-1": "agent"}))
            await eventually(lambda: _led(user, "m1"))
            nodes.all["m1"].kill()
            await eventually(lambda: _roles(user, {"node-1": "agent"}))
            log = nodes.all["node-1"].log
            assert "never manages" in log
            # A server that stands still for some seconds is warned of.
            away = re.compile("connect(ion|ed)? to nats|heartbeats are not|updates (do not )?come")
            rest = "\n".join(line for line in log.lower().splitlines() if not away.search(line))
            for word in ("[error", "[warning", "violation"):
                assert word not in rest, log


async def test_a_manager_that_may_hold_no_slot_says_so_and_is_an_agent(tmp_path: Path) -> None:
    """As at a site whose accounts an earlier version wrote, which knew of no slots."""
    slot = ' "$KV.nodes._manager.*",'
    async with prepared(tmp_path, "node-1", managers=("m1",)) as found, found.client("operator") as operator:
        assert slot in found.text()
        found.config.write_text(found.text().replace(slot, ""), encoding="utf-8")
        await found.server.restart_with(["-c", str(found.config)])
        user = Raw(operator.client)
        with running(found) as nodes:
            manager = nodes.start("m1", "--runtime", "external", *found.who("m1"))
            await eventually(lambda: _roles(user, {"m1": "agent"}))
            assert manager.log.count("this node manages nothing: its credentials let it hold no manager's slot") == 1
            manager.send(signal.SIGTERM)
            assert await manager.ends() == 0, manager.log
            nodes.start("m1", "--role", "manager", *found.who("m1"))
            await eventually(lambda: _led(user, "m1"))


async def test_a_manager_that_is_granted_slots_manages_once_it_has_connected_again(tmp_path: Path) -> None:
    slot = ' "$KV.nodes._manager.*",'
    async with prepared(tmp_path, "node-1", managers=("m1",)) as found, found.client("operator") as operator:
        granted, began = found.text(), clock.now()
        found.config.write_text(granted.replace(slot, ""), encoding="utf-8")
        await found.server.restart_with(["-c", str(found.config)])
        user = Raw(operator.client)
        with running(found) as nodes:
            manager = nodes.start("m1", "--runtime", "external", *found.who("m1"))
            await eventually(lambda: "this node manages nothing" in manager.log)
            found.config.write_text(granted, encoding="utf-8")
            await found.server.restart_with(["-c", str(found.config)])
            await eventually(lambda: _roles(user, {"m1": "all"}), DENIED_PAUSE)
            assert clock.now() < began + DENIED_PAUSE, "it has not waited for its next try"


async def test_a_dead_node_is_given_up_with_its_own_credentials(tmp_path: Path) -> None:
    async with prepared(tmp_path, "node-1", managers=("m1",)) as found, found.client("operator") as operator:
        user, folder = Raw(operator.client), str(tmp_path / "given-up")
        processes = Processes(found.url, found.folder, ("--node-ttl", "60"))
        try:
            processes.start("m1", "--role", "manager", *found.who("m1"))
            where = ("--runtime", "process", "--folder", folder)
            node = processes.start("node-1", "--role", "agent", *where, *found.who("node-1"))
            await eventually(lambda: _registered(user, 2))
            await eventually(lambda: holders_of(Path(folder)).settled)
            node.send(signal.SIGKILL)
            await node.ends()
            mine = ("--id", "node-1", "--folder", folder)
            left = await command_line("node", "leave", *mine, *found.options("node-1"), within=40)
            assert (left.returncode, left.stderr) == (0, b""), left
            assert b"its registration is taken back" in left.stdout
            await eventually(lambda: _registered(user, 1), what="the operator's copy has it, too")
            assert [*await user.registrations()] == ["m1"]
        finally:
            processes.kill()


async def _roles(user: Raw, wanted: dict[str, str]) -> bool:
    found = {key: record.value for key, record in (await user.registrations()).items()}
    slots = [key for key in await user.contents("nodes") if key.startswith("_manager.")]
    told = {node: value.get("role", "all") for node, value in found.items()}
    return told == wanted and len(slots) == list(wanted.values()).count("all")


async def _led(user: Raw, node: str) -> bool:
    return (await user.lease()).get("node") == node


async def test_what_slices_name_is_kept_by_the_operator_and_managers_know_what_is_pushed(tmp_path: Path) -> None:
    script = tmp_path / "hello.py"
    artifact = Artifact("g", "one", "1")
    async with prepared(tmp_path, "node-1") as found, found.client("operator") as operator:
        options = found.options("operator")
        digests = []
        for number in range(2):
            script.write_text(f"print({number})")
            pushed = await command_line("artifact", "push", "g:one:1", str(script), "--force", "--json", *options)
            assert pushed.returncode == 0, pushed.stderr
            assert not pushed.stderr
            digests.append(json.loads(pushed.stdout)["sha256"])
            async with found.client("node-1") as node:
                value = json.dumps({"content": digests[0]}).encode()
                await node.client.request(f"$KV.slices.node-1.{ONE}", value, timeout=ANSWER)

            async def copied() -> bool:
                held = (await Raw(operator.client).contents("slices")).get(f"node-1.{ONE}")
                return held is not None and held.value.get("content") == digests[0]

            await eventually(copied, what="the operator's copy has it, too")
        async with connect(found.access("node-1"), name="test") as connection:
            cache = Cache(tmp_path / "node-1", Artifacts(connection))
            for digest in digests:
                assert (await cache.get(artifact, digest)).content == digest
        settings = NodeSettings(node_id("manager-1"), found.access("manager-1"), role=Role.MANAGER, create=False)
        async with node_of(settings) as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(manager.run, anyio.Event())
            contents = manager.part(Managing).manager.cluster.contents
            await eventually(lambda: contents == {artifact: digests[1]})
            tasks.cancel_scope.cancel()
        assert not operator.refusals


async def test_a_consumer_brings_what_its_subject_says(tmp_path: Path) -> None:
    """The subject is what the permission is about; a body that asks for more is refused."""
    async with prepared(tmp_path, before=True) as found, found.client("node-1") as node:
        for more in ({"filter_subject": "$KV.slices.>"}, {"filter_subjects": ["$KV.slices.>"]}, {}):
            config = {"name": "c", "deliver_subject": "_INBOX_node-1.d", "ack_policy": "none", **more}
            subject = "$JS.API.CONSUMER.CREATE.KV_slices.c.$KV.slices.node-1.>"
            answer = await node.ask(subject, {"stream_name": "KV_slices", "config": config})
            assert "error" in answer, answer


async def test_answers_go_where_they_are_asked_to_go_within_one_account(tmp_path: Path) -> None:
    """What permissions cannot do: that is why nodes have accounts of their own now."""
    async with (
        prepared(tmp_path, before=True) as found,
        found.client("node-1") as node,
        found.client("operator") as operator,
    ):
        assert await node.may_publish("$JS.API.INFO", reply=f"$KV.blueprints.{ONE}")
        await eventually(lambda: _contains(operator, ONE))


async def test_the_operator_reads_what_slices_write(tmp_path: Path) -> None:
    """Far more than one answer, to an inbox that the node may not write to unasked."""
    script = tmp_path / "program.py"
    program = (
        "import time\nfor i in range(40000): print('line', i, 'x' * 90)\nprint(end='', flush=True)\ntime.sleep(600)"
    )
    script.write_text(f"#!/usr/bin/env python3\n{program}")
    async with prepared(tmp_path, "node-1") as found, found.client("operator") as operator:
        user = Raw(operator.client)
        with running(found) as nodes:
            nodes.start("manager-1", "--role", "manager", *found.who("manager-1"))
            options = ("--role", "agent", "--runtime", "process", "--folder", str(tmp_path / "n"))
            agent = nodes.start("node-1", *options, *found.who("node-1"))
            await eventually(lambda: _registered(user, 2))
            pushed = await command_line("artifact", "push", "g:one:1", str(script), *found.options("operator"))
            assert pushed.returncode == 0, pushed.stderr
            await user.put("blueprints", ONE, 1)

            async def complete() -> bool:
                shown = await command_line("logs", "g:one:1", *found.options("operator"))
                return shown.returncode == 0 and shown.stdout.count(b"\n") == 40000

            await eventually(complete, 30)
            assert "violation" not in agent.log.lower()
            assert "denied" not in agent.log
            for follow in ((), ("-f",)):
                other = await command_line("logs", "g:one:1", *follow, *found.options("node-1"))
                assert other.returncode == Exit.DENIED, other.stderr


@pytest.mark.parametrize("follow", [(), ("-f",)])
async def test_who_may_not_ask_a_node_for_its_logs_is_told_in_a_line(tmp_path: Path, follow: tuple[str, ...]) -> None:
    async with prepared(tmp_path) as found:
        found.config.write_text(found.text().replace('            "cdm.logs.*"\n', ""), encoding="utf-8")
        await found.server.restart_with(["-c", str(found.config)])
        async with found.client("node-1") as node:
            await node.ask("$KV.nodes.node-1", {"runtime": "process"})
        async with found.client("operator") as operator:
            await eventually(lambda: _knows(operator, "node-1"), 30, "the operator's copy has it, too")
        refused = await command_line("logs", "g:one:1", *follow, *found.options("operator"))
        told = refused.stderr.decode()
        assert refused.returncode == Exit.DENIED, told
        assert told.startswith('cdm: permission denied: publish "cdm.logs.node-1" (nkey '), told
        assert len(told.splitlines()) == 1, told
        assert refused.stdout == b""


async def _knows(operator: Insider, node: str) -> bool:
    try:
        return node in await Raw(operator.client).registrations()
    except (Rejection, nats.errors.Error):
        return False  # the server has only just come back


async def _contains(operator: Insider, key: str) -> bool:
    return key in (await _contents(operator))["blueprints"]


# How it is told


@pytest.mark.parametrize(
    ("who", "arguments", "told"),
    [
        (
            "node-1",
            ["node", "--id", "node-2", "--role", "agent"],
            'publish "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.node-2"',
        ),
        ("node-1", ["node", "--id", "node-1", "--role", "manager"], 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
        ("node-1", ["status"], 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
        ("node-1", ["init"], 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
        ("admin", ["status"], 'publish "$JS.API.CONSUMER.CREATE.KV_'),
        (
            "admin",
            ["node", "--id", "manager-1", "--role", "manager"],
            'publish "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.manager-1"',
        ),
        ("operator", ["node", "--id", "manager-1", "--role", "manager"], 'subscribe "cdm.node.manager-1"'),
        ("operator", ["node", "--id", "node-1", "--role", "agent"], 'subscribe "cdm.node.node-1"'),
    ],
)
async def test_a_missing_permission_is_told_in_a_line(
    tmp_path: Path, who: str, arguments: list[str], told: str
) -> None:
    async with prepared(tmp_path) as found:
        command, *rest = arguments
        refused = await command_line(command, *found.options(who), *rest)
        text = refused.stderr.decode()
        assert refused.returncode == Exit.DENIED, text
        last = text.strip().splitlines()[-1]
        assert last.startswith(f"cdm: permission denied: {told}"), text
        assert "nats/secure.conf" in last
        assert found.access(who).who.split("/")[-1] in last
        assert "Traceback" not in text
        assert text.count("denied:") == 1, "one line"
        silent(found, text + refused.stdout.decode())


@pytest.mark.parametrize("who", ["manager-1", "operator", "node-1"])
async def test_an_inbox_that_is_not_ones_own_is_told_at_once(tmp_path: Path, who: str) -> None:
    async with prepared(tmp_path) as found:
        for inbox in ("_INBOX", "_INBOX_somebody.else"):
            refused = await command_line("status", *found.options(who, inbox))
            assert refused.returncode == Exit.DENIED
            assert refused.stderr.startswith(f'cdm: permission denied: subscribe "{inbox}.'.encode())
            assert b"--inbox-prefix" in refused.stderr


async def test_managers_use_buckets_that_they_may_not_make(tmp_path: Path) -> None:
    async with fortress(tmp_path) as found:
        refused = await command_line("node", "--id", "manager-1", "--role", "manager", *found.options("manager-1"))
        assert refused.returncode == Exit.DENIED
        assert b'publish "$JS.API.STREAM.CREATE.KV_blueprints"' in refused.stderr
        assert b"run `cdm init`" in refused.stderr
        assert (await command_line("init", *found.options("admin"))).returncode == 0
        with running(found) as nodes:
            nodes.start("manager-1", "--role", "manager", *found.who("manager-1"))
            async with found.client("operator") as operator:
                await eventually(lambda: _term_above(Raw(operator.client), 0))
            nodes.unharmed()


async def test_a_refusal_reaches_those_who_wait_for_it_and_nobody_else(tmp_path: Path) -> None:
    async with prepared(tmp_path) as found, connect(found.access("node-1"), name="test") as connection:
        refused: list[str] = []

        async def ask(subject: str) -> None:
            try:
                await connection.request(subject, b"{}", timeout=60)
            except AccessDenied as error:
                refused.append(str(error))

        with bounded(20):
            async with anyio.create_task_group() as tasks:
                for subject in ("$KV.nodes.node-2", f"$KV.slices.node-1.{ONE}", "$KV.slices._TERM", "$JS.API.INFO"):
                    tasks.start_soon(ask, subject)
        told = [f'permission denied: publish "{subject}"' for subject in ("$KV.nodes.node-2", "$KV.slices._TERM")]
        assert sorted(error.partition(" (")[0] for error in refused) == told, "as it was written, not in lower case"
        assert connection.is_up
        # Of several writes at once the server names one, and says of the last that something is missing.
        async with connect(found.access("operator"), name="test") as operator:
            with pytest.raises(AccessDenied, match=r'publish "\$KV\.nodes\.node-1"'):
                await buckets(operator)["nodes"].batch(
                    [Write(name, b"") for name in ("a.seen", "node-1", "node-1.intent")]
                )


async def test_a_permission_that_is_taken_away_is_complained_of_and_may_come_back(tmp_path: Path) -> None:
    async with prepared(tmp_path) as found, found.client("operator") as operator:
        with running(found, node_ttl=6) as nodes:
            node = nodes.start("node-1", "--role", "agent", *found.who("node-1"))
            user = Raw(operator.client)
            await eventually(lambda: _registered(user, 1))
            shipped = found.text()
            # The shipped file cannot be changed; the server is started anew with one that lacks a permission.
            found.config.write_text(
                shipped.replace('"$KV.slices.node-1.>", "$KV.nodes.node-1"', '"$KV.slices.node-1.>"'), encoding="utf-8"
            )
            await found.server.restart_with(["-c", str(found.config)])
            await eventually(lambda: "permission denied" in node.log, 15)
            assert "$KV.nodes.node-1" in node.log
            nodes.unharmed()
            found.config.write_text(shipped, encoding="utf-8")
            await found.server.restart_with(["-c", str(found.config)])
            await eventually(lambda: _again(user), 15)
            nodes.unharmed()


async def _again(user: Raw) -> bool:
    try:
        return await _registered(user, 1)
    except (Rejection, nats.errors.Error):
        return False


# TLS


@pytest.mark.parametrize(
    ("host", "ca", "reason"),
    [
        ("127.0.0.1", None, "unable to get local issuer certificate"),
        ("127.0.0.1", "other", "unable to get local issuer certificate"),
        ("127.1", "own", "Hostname mismatch, certificate is not valid for '127.1'"),
    ],
)
async def test_a_certificate_that_is_not_trusted_is_told_at_once(
    tmp_path: Path, host: str, ca: str | None, reason: str
) -> None:
    async with fortress(tmp_path) as found:
        server = found.url.replace("127.0.0.1", host)
        cas = {"own": ["--tlsca", str(found.tls.ca)], "other": ["--tlsca", str(Certificates(tmp_path / "other").ca)]}
        who = ["--nkey", str(found.folder / "operator.nk")]
        refused = await command_line("status", "--server", server, *who, *(cas[ca] if ca else []))
        told = refused.stderr.decode()
        assert refused.returncode == Exit.FAILED, told
        assert told.startswith(f"cdm: the certificate of {server} is not trusted ({reason}); "), told
        assert "--tlsca" in told
        assert len(told.splitlines()) == 1
        silent(found, told)


async def test_another_server_may_have_a_certificate_to_trust(tmp_path: Path) -> None:
    async with fortress(tmp_path) as found:
        bad, nobody = found.url.replace("127.0.0.1", "127.1"), f"127.0.0.1:{free_port()}"
        access = found.access("operator")
        async with connect(replace(access, servers=(bad, found.url)), name="test") as connection:
            assert connection.is_up
        with pytest.raises(Untrusted, match=r"127\.1"):
            async with connect(replace(access, servers=(bad, nobody)), name="test", timeout=6):
                pass


async def test_a_server_whose_certificate_is_mended_is_connected_to(tmp_path: Path) -> None:
    """A handshake that failed is not the last one: the next server, or this one later, may be trusted."""
    own, other = (Certificates(tmp_path / name) for name in ("own", "other"))

    def arguments(tls: Certificates) -> list[str]:
        store = str(tmp_path / "store")
        return ["-js", "-sd", store, "--tls", "--tlscert", str(tls.cert), "--tlskey", str(tls.key)]

    async with running_server(jetstream=False, arguments=arguments(other)) as server:
        processes = Processes(server.url, tmp_path, ())
        try:
            node = processes.start("n1", "--tlsca", str(own.ca))
            await eventually(lambda: "certificate verify failed" in node.log)
            await server.restart_with(arguments(own))
            await eventually(lambda: "node is up" in node.log, 20)
        finally:
            processes.kill()


async def test_nothing_secret_is_sent_in_the_clear(tmp_path: Path) -> None:
    """Where TLS was asked for: a server that says that it needs none may be anybody."""
    tls = Certificates(tmp_path)
    heard = bytearray()

    async def serve(stream: Any) -> None:
        async with stream:
            await stream.send(b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576}\r\n')
            try:
                while True:
                    heard.extend(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        for access in (
            Access((f"nats://127.0.0.1:{port}",), user="me", password="secret", ca=tls.ca),
            Access((f"tls://me:secret@127.0.0.1:{port}",)),
        ):
            with pytest.raises(Unreachable, match="offers no TLS"):
                async with connect(access, name="test", timeout=4):
                    pass
        tasks.cancel_scope.cancel()
    assert heard == b""


async def test_a_client_shows_its_certificate(tmp_path: Path) -> None:
    tls = Certificates(tmp_path)
    arguments = ["--tlsverify", "--tlscert", str(tls.cert), "--tlskey", str(tls.key), "--tlscacert", str(tls.ca)]
    async with running_server(arguments=arguments) as server:
        good = ["--tlsca", str(tls.ca), "--tlscert", str(tls.client_cert), "--tlskey", str(tls.client_key)]
        assert (await command_line("init", "--server", server.url, *good)).returncode == 0
        failed = await command_line("status", "--server", server.url, *good[:2])
        assert failed.returncode == Exit.FAILED
        assert b"Traceback" not in failed.stderr
        mixed = [*good[:4], "--tlskey", str(tls.key)]
        wrong = await command_line("status", "--server", server.url, *mixed)
        assert wrong.returncode == Exit.DENIED
        assert b"client.pem" in wrong.stderr


# JWTs


async def test_a_node_comes_in_with_credentials(tmp_path: Path) -> None:
    """Operator mode: the same permissions, in a JWT."""
    jwts = JwtFortress(tmp_path)
    admin = jwts.creds("admin", {})
    node = jwts.creds("node-1", permissions_of_node("node-1"))
    async with running_server(jetstream=False, arguments=["-c", str(jwts.config)]) as server:
        options = ["--server", server.url, "--creds"]
        assert (await command_line("init", *options, str(admin))).returncode == 0
        own = ["--creds", str(node), "--inbox-prefix", "_INBOX_node-1", "--role", "agent"]
        refused = await command_line("node", "--id", "node-2", "--server", server.url, *own)
        assert refused.returncode == Exit.DENIED
        assert b"$KV.nodes.node-2" in refused.stderr
        processes = Processes(server.url, tmp_path, ())
        try:
            started = processes.start("node-1", *own)
            async with connect(Access((server.url,), creds=admin), name="test") as connection:

                async def registered() -> bool:
                    state = (await connection.api("STREAM.INFO.KV_nodes", {"subjects_filter": ">"}))["state"]
                    return "$KV.nodes.node-1" in (state.get("subjects") or {})

                await eventually(registered)
            started.send(signal.SIGTERM)
            assert await started.ends() == 0
        finally:
            processes.kill()
        assert "denied" not in started.log
        for secret in jwts.secrets:
            assert secret not in started.log
            assert secret.encode() not in refused.stderr + refused.stdout


async def test_credentials_that_expire_end_nobody_and_are_read_again(tmp_path: Path) -> None:
    """The server ends the connection with an error; the slices of a node do not depend on it."""
    jwts = JwtFortress(tmp_path)
    async with (
        running_server(jetstream=False, arguments=["-c", str(jwts.config)]) as server,
        connect(Access((server.url,), creds=jwts.creds("mine", {}, expires=6)), name="test") as connection,
    ):
        await eventually(lambda: not connection.is_up, 15, "they expired")
        await anyio.sleep(1)
        assert not connection.is_up
        assert not connection._lost.is_set()
        (tmp_path / "mine.creds").write_text("half of a renewed file", encoding="utf-8")
        await anyio.sleep(1)
        jwts.creds("mine", {})
        await eventually(lambda: connection.is_up, 10, "they were renewed")
        await connection.api("INFO")


# Secrets


async def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    """Whatever is wrong with credentials, what is said of it does not hold them; not at the finest level of logs."""
    jwts = JwtFortress(tmp_path)
    good = jwts.creds("good", {})
    stranger = JwtFortress(_folder(tmp_path / "stranger")).creds("bad", {})
    token, seed = jwts.secrets
    damaged = f"{seed[:20]}AAAAAA{seed[26:]}"
    halves = {
        "no-seed.creds": good.read_text().partition("-----BEGIN USER")[0],
        "no-jwt.creds": "-----BEGIN USER" + good.read_text().partition("-----BEGIN USER")[2],
        "damaged.creds": good.read_text().replace(seed, damaged),
        "bare.creds": token,
        "seed.nk": seed,
        "damaged.nk": damaged,
        "binary.nk": f"{seed}\x00\xff",
    }
    for name, text in halves.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    password = "hunter2-hunter2"
    cases: list[tuple[list[str], dict[str, str]]] = [
        (["--creds", str(stranger)], {}),
        *((["--creds", str(tmp_path / name)], {}) for name in halves if name.endswith(".creds")),
        *((["--nkey", str(tmp_path / name)], {}) for name in halves if name.endswith(".nk")),
        (["--user", "me", "--password", password], {}),
        (["--user", "me"], {"NATS_PASSWORD": password}),
        (["--token", password], {}),
        ([], {"NATS_TOKEN": password}),
        (["--user", password], {}),
        (["--password", password], {}),
        (["--token", password, "--user", "me"], {}),
        (["--server", f"nats://me:{password}@127.0.0.1:99999"], {}),
        (["--server", f"nats://me:{password}@"], {}),
        (["--server", f"nats://me:1/{password}@127.0.0.1:1"], {}),
        (["--server", f"nats://me:{password}#x@127.0.0.1:1"], {}),
        (["--server", f"nats://me:1,{password}@127.0.0.1:1"], {}),
        (["--server", f"nats://me:{password}[@127.0.0.1:1"], {}),
        (["--tlsca", str(tmp_path / "seed.nk")], {}),
        (["--tlscert", str(tmp_path / "seed.nk"), "--tlskey", str(tmp_path / "seed.nk")], {}),
        (["--password"], {"NATS_PASSWORD": password}),
        (["--bogus"], {"NATS_TOKEN": password}),
    ]
    async with running_server(jetstream=False, arguments=["-c", str(jwts.config)]) as server:
        for options, env in cases:
            command = ["node", "--id", "n1", "--log-level", "debug", "--server", server.url, *options]
            done = await command_line(*command, env=env)
            text = (done.stdout + done.stderr).decode()
            assert done.returncode in (Exit.DENIED, Exit.USAGE), (options, text)
            assert "Traceback" not in text, text
            for secret in (password, token, seed, seed[26:], token[-40:]):
                assert secret not in text, (options, text)
            assert text.strip(), options


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


async def test_a_password_in_the_address_is_not_shown_while_it_is_tried(tmp_path: Path) -> None:
    url = "nats://me:hunter2-hunter2@127.0.0.1:1"
    done = await command_line("status", "--server", url)
    assert done.returncode == Exit.FAILED
    assert b"hunter2" not in done.stdout + done.stderr
    processes = Processes(url, tmp_path, ())
    try:
        started = processes.start("n1")
        await eventually(lambda: "cannot connect" in started.log)
        assert "hunter2" not in started.log
    finally:
        processes.kill()


def test_the_context_says_who_one_is_unless_an_option_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdm.cli.options import ConnectionOptions  # noqa: PLC0415  # after the environment is set

    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    for name in ("a.creds", "b.nk", "ca.pem"):
        (tmp_path / name).touch()
    context = {"url": "tls://somewhere", "creds": str(tmp_path / "a.creds"), "ca": str(tmp_path / "ca.pem")}
    context |= {"inbox_prefix": "_INBOX_x", "user": "", "password": ""}
    (folder / "here.json").write_text(json.dumps(context), encoding="utf-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    plain = ConnectionOptions(context="here").access()
    assert (plain.creds, plain.ca, plain.inbox_prefix) == (tmp_path / "a.creds", tmp_path / "ca.pem", "_INBOX_x")
    other = ConnectionOptions(context="here", nkey=tmp_path / "b.nk", inbox_prefix="_INBOX_y").access()
    assert (other.creds, other.nkey, other.ca) == (None, tmp_path / "b.nk", tmp_path / "ca.pem")
    assert other.inbox_prefix == "_INBOX_y"
    assert (plain.api, ConnectionOptions(js_domain="east").access().api) == ("$JS.API", "$JS.east.API")
    context |= {"jetstream_domain": "east", "jetstream_api_prefix": "JS.west."}
    (folder / "there.json").write_text(json.dumps(context), encoding="utf-8")
    assert ConnectionOptions(context="there").access().api == "$JS.east.API", "of both the domain counts, as to nats"
    assert ConnectionOptions(context="there", js_api_prefix="JS.west.").access().api == "JS.west"
    user = ConnectionOptions(context="here", user="me", password="p").access()
    assert (user.creds, user.user, user.password) == (None, "me", "p")
    assert "'p'" not in repr(ConnectionOptions(user="me", password="p", token="p"))
