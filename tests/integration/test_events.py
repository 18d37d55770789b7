"""What the leader tells of what happens: once, in order, and never in the way."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

import anyio
import msgspec
import pytest

from cdm.cli import Exit
from cdm.errors import StoreError
from cdm.leader import event_writer
from cdm.manager import journal
from cdm.model.artifact import Artifact, NodeId
from cdm.store.connection import Access, Connection, connect
from cdm.store.events import EventReader, StoredEvent
from cdm.store.wire import WRITER
from cdm.version import VERSION
from tests.docs.documents import adapted, commands
from tests.harness.agents import agents
from tests.harness.nodes import nodes_on
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually, patience
from tests.harness.wire import Raw, raw
from tests.integration.test_nats_cli import program

pytestmark = pytest.mark.anyio

ONE, ARTIFACT = "g/one/1", Artifact("g", "one", "1")


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Connection]:
    async with connect(Access(servers=(server.url,)), name="test") as connection:
        yield connection


async def told(connection: Connection, **only: object) -> list[StoredEvent]:
    """All events that are stored."""
    try:
        return [each async for page in EventReader(connection, **only).read() for each in page]  # type: ignore[arg-type]
    except StoreError:
        return []


async def _all_on(user: Raw, node: str) -> bool:
    return all(key.startswith(f"{node}.") for key in await user.slices())


async def _settles(user: Raw, count: int) -> None:
    async def settled() -> bool:
        found = await user.slices()
        return len(found) == count and set(found.values()) <= {"ACTIVE"}

    await eventually(settled, 20, f"{count} are ACTIVE")


@pytest.mark.quick
async def test_what_happens_is_told(server: NatsServer) -> None:
    async with (
        raw(server) as user,
        connected(server) as reader,
        nodes_on(server) as nodes,
        agents(server, "n1", "n2", seen=nodes.heard),
    ):
        await nodes.start("n1", "n2")
        created = await user.put("blueprints", ONE, 2, {WRITER: "alice@desk"})
        await _settles(user, 2)
        await nodes.heard()  # that they are ACTIVE, and not of the drain before
        await user.put("nodes", "n2.intent", {"schedule": "drain", "reason": "disk"}, {WRITER: "bob@desk"})
        await eventually(lambda: _all_on(user, "n1"), 20, "n2 is empty")
        scaled = await user.put("blueprints", ONE, 1)
        await _settles(user, 1)
        refused = await user.put("blueprints", ONE, "nonsense")
        await eventually(lambda: told(reader, kind="refused"), 20)
        deleted = await user.delete("blueprints", ONE)
        await eventually(lambda: _gone(reader, 3), 20)

        life = [(each.event.kind, each.event.data.reason) for each in await told(reader, node=NodeId("n2"))]
        assert life[0] == ("joined", f"cdm {VERSION}")
        states = ["load", "loading", "loaded", "activate", "activating", "active"]
        assert [kind for kind, _ in life[1:]] == [*states, "intent", "unload", "unloading", "gone"]
        assert {("load", "instance missing"), ("intent", "disk"), ("unload", "node n2 is draining")} <= set(life)

        about = [each.event.data for each in await told(reader, kind="blueprint", artifact=ARTIFACT)]
        assert [(each.blueprint, each.by, each.source, each.to) for each in about] == [
            (created, "alice@desk", "", "2"),
            (scaled, "unknown", "2", "1"),
            (deleted, "unknown", "1", ""),
        ]
        assert about[1].changes == ("instances 2 -> 1",)
        (no,) = await told(reader, kind="refused")
        assert (no.event.data.blueprint, no.event.subject) == (refused, f"blueprints/{ARTIFACT}")
        causes = {each.event.data.cause for each in await told(reader, kind="unload")}
        assert causes == {f"blueprints@{each}" for each in (created, scaled, deleted)}
        (intent,) = await told(reader, kind="intent")
        assert (intent.event.data.by, intent.event.data.source, intent.event.data.to) == ("bob@desk", "normal", "drain")
        newest = await EventReader(reader, node=NodeId("n2"), artifact=ARTIFACT).latest()
        assert [each.event.kind for each in newest] == [*states, "unload", "unloading", "gone"]

        (stored,) = await told(reader, kind="leader")
        event = stored.event
        lead = await nodes.leader()
        assert (event.specversion, event.source, event.type) == ("1.0", "/cdm", "cdm.leader")
        assert (event.data.node, event.data.term) == (lead.settings.node, 1)
        assert abs(datetime.fromisoformat(event.time).timestamp() - stored.at) < patience()


async def _gone(reader: Connection, count: int) -> bool:
    return len(await told(reader, kind="gone")) == count


@pytest.mark.quick
async def test_a_new_leader_tells_what_is_left_and_nothing_twice(server: NatsServer) -> None:
    """Killed in the middle of it, again and again: where each slice came to is told, and how, and nothing twice.

    NATS keeps a key's newest value alone: what is replaced before it was delivered to any manager is not told.
    """
    async with (
        raw(server) as user,
        connected(server) as reader,
        nodes_on(server) as nodes,
        agents(server, "n1", "n2", "n3", "n4"),
    ):
        await user.record("slices")
        await nodes.start("n1", "n2", "n3", "n4")
        term = 0
        for count in (40, 80):
            await user.put("blueprints", ONE, count)
            leader = await nodes.leader(above=term)
            term = leader.active
            await eventually(partial(_some, user, count // 2), 20)
            await leader.crash()
            del nodes.all[leader.settings.node]
        await nodes.leader(above=term)

        async def missing() -> dict[str, object]:
            wanted: dict[str, object] = {}
            states, newest = dict[str, object](), dict[str, str]()
            for record in await user.recorded("slices"):
                if record.key.count(".") == 1 and not record.key.startswith("_"):
                    before, state = states.get(record.key), None if record.gone else record.value["state"]
                    states[record.key] = state
                    if state != before:
                        newest[record.key] = about = f"slices@{record.sequence}"
                        wanted[about] = (record.key, before, state)
            found = {each.event.id.partition(".")[0] for each in await told(reader)}
            left = {about: what for about, what in wanted.items() if about not in found}
            return left if len(left) > len(wanted) / 50 or left.keys() & newest.values() else {}

        async def all_told() -> bool:
            return not await missing()

        await eventually(lambda: _rests(user, 80), 60)
        await eventually(lambda: _lost(reader, 2), 20)
        try:
            await eventually(all_told, 30, "all is told")
        except AssertionError as error:
            raise AssertionError(f"{error}: {await missing()}") from None
        events = [each.event for each in await told(reader)]
        assert max(Counter(each.id for each in events).values()) == 1
        assert len([each for each in events if each.kind == "leader"]) == 3
        assert len([each for each in events if each.kind == "lost"]) == 2
        # Why, nobody knows but who decided it, and those were killed at once.
        assert all(each.data.reason for each in events if each.kind == "load" and each.data.term == 3)
        assert not [each for each in events if each.kind == "dropped"]


async def _lost(reader: Connection, count: int) -> bool:
    return len({each.event.data.node for each in await told(reader, kind="lost")}) == count


async def _some(user: Raw, count: int) -> bool:
    return len(await user.slices()) >= count


async def _rests(user: Raw, count: int) -> bool:
    found = await user.slices()
    return len(found) == count and set(found.values()) == {"ACTIVE"}


async def test_a_stream_that_is_deleted_is_made_anew_also_where_others_listen(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as reader, nodes_on(server) as nodes, agents(server, "n1"):
        await nodes.start("n1")
        await user.put("blueprints", ONE, 1)
        await _settles(user, 1)
        await eventually(lambda: told(reader, kind="active"))
        heard = await user.overhear("cdm.event.>")
        await user.api("STREAM.DELETE.cdm_events")
        await user.put("blueprints", ONE, 2)
        await _settles(user, 2)
        await eventually(lambda: told(reader, kind="active"), 20, "events are told again")
        assert heard
        assert [each.event.data.to for each in await told(reader, kind="blueprint")] == ["2"]
        await nodes.all["n1"].stop()
        assert await told(reader, kind="left"), "the last node tells that it leaves"


async def test_a_flood_is_dropped_and_counted_and_holds_nothing_up(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST", 50)
    monkeypatch.setattr(event_writer, "DROPS_INTERVAL", 0.5)
    async with raw(server) as user, connected(server) as reader, nodes_on(server) as nodes:
        await nodes.start("n1")
        await user.put("blueprints", ONE, 2_000)
        await eventually(lambda: _some(user, 2_000), 30, "commands go on")

        async def counted() -> bool:
            events = [each.event for each in await told(reader)]
            missing = sum(each.data.count for each in events if each.kind == "dropped")
            return missing > 0 and missing + len([each for each in events if each.kind == "load"]) >= 2_000

        await eventually(counted, 30, "what is missing is counted")


async def test_nothing_that_anybody_writes_ends_a_node_or_reaches_headers(server: NatsServer) -> None:
    """Keys that are no artifact's; and a node that says of itself what would be headers, or too long for one."""
    async with raw(server) as user, connected(server) as reader, nodes_on(server) as nodes:
        await nodes.start("n1")
        await eventually(lambda: told(reader, kind="leader"))
        heard = await user.overhear("evil")
        for name in ("q::r", "::", "a/b:c:d"):
            await user.put("blueprints", name, 3)
        await eventually(lambda: _conditions(reader, 3), what="they are told")
        for attempt in range(3):
            for number in range(8):
                header = f"{attempt}.{number}\r\nNats-Trace-Dest: evil\r\nX: y"
                incarnation = header if number else f"{attempt}" + "x" * 100_000
                told_of = {"incarnation": incarnation, "version": header, "started": "now", "role": "x" * 300}
                before = await _joined(reader)
                await user.put("nodes", "n9", told_of)
                if attempt or number:  # whom a leader finds at first has been there before, for all that it knows
                    await eventually(partial(_joined, reader, before), what="it is told each time")
                else:
                    await nodes.heard()
        await user.put("blueprints", ONE, 1)
        await eventually(lambda: told(reader, kind="load"), what="all else is told")
        assert not heard
        found = await told(reader)
        assert not [each for each in found if each.event.kind == "dropped"]
        timeless = ("yesterday", "2026-11-28T12:00:00")
        for time in timeless:
            forged = {**msgspec.to_builtins(found[-1].event), "time": time}
            await user.client.publish("cdm.event.load.n1.g/one/1", json.dumps(forged).encode())
        await user.client.flush()
        assert not [each for each in await told(reader) if each.event.time in timeless], "that is no event"
        command = f"{sys.executable} -m cdm events --server {server.url} >/dev/full"
        unwritten = await anyio.run_process(command, check=False)
        assert unwritten.returncode == Exit.FAILED
        assert b"No space left" in unwritten.stderr
        assert b"Traceback" not in unwritten.stderr
        await nodes.all["n1"].stop()


async def _conditions(reader: Connection, count: int) -> bool:
    return len(await told(reader, kind="condition")) >= count


async def _joined(reader: Connection, before: int = 0) -> int:
    """How often it is told that the node has joined; 0 where it was not told more often than that."""
    count = len(await told(reader, kind="joined", node=NodeId("n9")))
    return count if count > before else 0


async def test_the_commands_of_the_documents(server: NatsServer, tmp_path: Path) -> None:
    program()
    async with (
        raw(server) as user,
        connected(server) as reader,
        nodes_on(server) as nodes,
        terminal(tmp_path, NATS_URL=server.url) as shell,
    ):
        await nodes.start("node-1")
        await nodes.leader()
        who, artifact, bad, intents, follow, *heard = commands("Events")
        await shell.start(follow, "followed")
        for number, line in enumerate(heard):
            await shell.start(adapted(line, {"nats sub": "nats sub --count 1"}), f"heard{number}")
        logs = [tmp_path / f"{name}.log" for name in ("followed", *(f"heard{each}" for each in range(len(heard))))]
        ordinals = count(1)

        async def all_heard() -> bool:
            """A node says that something failed, again and again until everybody listens."""
            value = {"state": "FAILED", "reason": "no reason"}
            await user.put("slices", f"node-1.org.example/slice/1.0.0/{next(ordinals)}", value)
            followed, *rest = (log.read_text(encoding="utf-8") for log in logs)
            # What is heard first under a subject may be that it was unloaded again.
            return "no reason" in followed and all('"specversion":"1.0"' in each for each in rest)

        await eventually(all_heard, 30, pause=0.3)
        await user.put("nodes", "node-1.intent", {"schedule": "cordon"}, {WRITER: "bob@desk"})
        await user.put("blueprints", "org.example/slice/1.0.0", 3, {WRITER: "alice@desk"})
        await eventually(lambda: told(reader, kind="blueprint"))
        await user.put("blueprints", "org.example/slice/1.0.0", 2)
        await eventually(lambda: told(reader, kind="intent"))
        await eventually(lambda: _told_twice(reader), 20)

        made, scaled = (await shell.good(who)).splitlines()
        assert made.endswith("org.example:slice:1.0.0           created, instances 3, by alice@desk")
        assert scaled.endswith("org.example:slice:1.0.0           instances 3 -> 2, by unknown")
        shown = await shell.good(artifact)
        assert "instances 3 -> 2" in shown
        assert " failed " in shown
        assert set(re.findall(r"^\S+ \S+  (\w+)", await shell.good(bad), re.MULTILINE)) == {"failed"}
        (line,) = (await shell.good(intents)).splitlines()
        assert json.loads(line)["data"] == {"node": "node-1", "from": "normal", "to": "cordon", "by": "bob@desk"}
        assert await shell.good("cdm events --node nowhere") == "cdm: there are no such events\n"
        assert "did you mean load?" in await shell.type("cdm events --kind loda")
        assert shell.code == Exit.USAGE
        await eventually(lambda: "instances 3 -> 2, by unknown" in logs[0].read_text(encoding="utf-8"))
        await shell.good("kill -INT $followed; wait")


async def _told_twice(reader: Connection) -> bool:
    return len(await told(reader, kind="blueprint")) == 2
