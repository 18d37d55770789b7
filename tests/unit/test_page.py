"""What the page is made of: facts and their changes, its files, and what is sent along with them."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cdm import clock
from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.http.address import HttpAddress, listening
from cdm.http.page import facts, happenings
from cdm.http.page.facts import PageFacts, told
from cdm.http.page.routes import POLICY, page_files
from cdm.http.server import HttpServer
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.event import Event, EventData
from cdm.model.keys import (
    FENCE,
    LAYOUTS,
    LEASE,
    BlueprintKey,
    IntentKey,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    StatusKey,
    encode_artifact,
)
from cdm.model.node import Fence, Intent, Lease, Registration, Schedule, Seen
from cdm.model.record import Rollout
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Condition, RolloutStatus, Status
from cdm.store.events import StoredEvent
from tests.harness.waiting import patience
from tests.harness.web import asked
from tests.unit.support import APP

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

NODE = NodeId("n.1")
SLICE = SliceKey(NODE, APP, 1)
HOSTILE = '<img src=x onerror=alert(1)>"\u202e'


def facts_of(*messages: Message) -> dict[str, Any]:
    found = PageFacts()
    for message in messages:
        for name, value in told(message, 1_000.0):
            found.note(name, value)
    return found.since().facts


def test_each_key_makes_a_fact_of_its_own() -> None:
    rollout = RolloutStatus("rolling", "canary", "1", "2", why="waits")
    status = Status(Condition.PROGRESSING, "why", 3, desired=2, healthy=1, rollout=rollout)
    found = facts_of(
        ValuePut(BlueprintKey(APP), Blueprint(2), 3, 5.5),
        ValuePut(StatusKey(encode_artifact(APP)), status, 4),
        ValuePut(StatusKey("no artifact"), status, 4),
        ValuePut(NodeKey(NODE), Registration(labels={"zone": "a"}, load=0.5), 5),
        ValuePut(IntentKey(NODE), Intent(Schedule.DRAIN, reason="old"), 6, 7.0),
        ValuePut(SeenKey(NODE), Seen(Registration(), "lost"), 7, 8.0),
        ValuePut(SLICE, SliceValue(SliceState.FAILED, 7, reason=HOSTILE), 8, 9.9),
        ValuePut(SliceKey(NODE, APP), SliceValue(SliceState.ACTIVE, 7), 9),
        ValuePut(LEASE, Lease(NODE, 7), 10),
        ValuePut(FENCE, Fence(7), 11),
    )
    assert found.pop("n/n.1")["labels"] == {"zone": "a"}
    assert found.pop(f"t/{APP}") == {
        "condition": "Progressing",
        "reason": "why",
        "observed": 3,
        "desired": 2,
        "healthy": 1,
        "rollout": {"phase": "rolling", "kind": "canary", "from": "1", "to": "2", "why": "waits"},
    }
    assert found == {
        f"b/{APP}": {"revision": 3, "at": 1005, "instances": 2},
        "i/n.1": {"schedule": "drain", "reason": "old", "at": 1007},
        "g/n.1": {"gone": "lost", "at": 1008, "labels": {}},
        "s/n=2E1.org.example/slice/1.0.0/1": ["n.1", str(APP), 1, "FAILED", 1009, 0, 0, 0, HOSTILE],
        "s/n=2E1.org.example/slice/1.0.0": ["n.1", str(APP), 0, "ACTIVE", 1000],
        "leader": "n.1",
        "term": 7,
    }


def test_what_cannot_be_read_is_told_until_it_can() -> None:
    refused = ValueRejected[BlueprintKey, Blueprint](BlueprintKey(APP), "no number", 3)
    odd = KeyRejected(SliceKey, "a b", "has a space", 4)
    bad_slice = ValueRejected[SliceKey, SliceValue](SLICE, "no JSON", 5)
    bad_intent = ValueRejected[IntentKey, Intent](IntentKey(NODE), "no JSON", 6)
    bad_record = ValueRejected[RolloutKey, Rollout](RolloutKey(APP.service), "no JSON", 7)
    before = ValuePut(SLICE, SliceValue(SliceState.ACTIVE, 7), 2)
    assert facts_of(before, refused, odd, bad_slice, bad_intent, bad_record) == {
        f"b/{APP}": {"revision": 3, "at": 1000, "refused": "no number"},
        "x/slices/a b": "has a space",
        "x/slices/n=2E1.org.example/slice/1.0.0/1": "no JSON",
        "i/n.1": {"schedule": "cordon", "reason": "no JSON", "at": 1000},
        "x/nodes/n=2E1.intent": "no JSON",
        "x/slices/_rollout.org.example/slice": "no JSON",
    }
    gone: tuple[Message, ...] = (
        ValueRemove(SLICE, 7),
        ValueRemove(IntentKey(NODE), 8),
        RejectedKeyRemoved(SliceKey, "a b"),
        ValueRemove(RolloutKey(APP.service), 9),
    )
    assert [*facts_of(refused, odd, bad_slice, bad_intent, bad_record, *gone)] == [f"b/{APP}"]


def test_whoever_comes_back_is_told_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "MOST_GONE", 2)
    known = PageFacts()
    assert known.note("a", 1)
    assert known.note("b", 1)
    first = known.since()
    assert (first.whole, first.facts) == (True, {"a": 1, "b": 1})
    assert not known.note("a", 1)
    assert not known.note("c", None)
    assert known.since(first.number) == (first.number, False, {})
    known.note("a", 2)
    known.note("b", None)
    known.note("d", 1)
    known.note("d", None)
    assert known.since(first.number).facts == {"a": 2, "b": None, "d": None}
    known.note("e", 1)
    known.note("e", None)  # more is gone than is remembered
    assert known.since(first.number) == (known.number, True, {"a": 2})
    assert known.since(known.number + 1).whole
    assert known.since(known.number).facts == {}


def test_an_event_leads_to_what_it_is_about() -> None:
    def shown(kind: str, subject: str, data: EventData) -> dict[str, Any]:
        return happenings.shown(StoredEvent(9, 5.0, Event("i", f"cdm.{kind}", subject, "2026-01-01T00:00:00Z", data)))

    failed = shown("failed", f"slices/n.1/{APP}#1", EventData("n.1", str(APP), 1, reason=HOSTILE))
    assert (failed["key"], failed["bad"]) == ("n=2E1.org.example/slice/1.0.0/1", True)
    assert HOSTILE.strip() in failed["told"]
    assert "key" not in shown("failed", "slices/x", EventData("n.1", "no artifact"))
    assert shown("intent", "nodes/n.1.intent", EventData("n.1", to="drain"))["about"] == "n.1"


def test_the_files_have_nothing_that_could_become_markup_or_lead_elsewhere() -> None:
    found = {name: each.content.decode() for name, each in page_files().items()}
    assert found.keys() == {each.name for each in files("cdm.http.page").joinpath("files").iterdir()}
    page = found["index.html"]
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page) == []
    for name, text in found.items():
        used = r"innerHTML|outerHTML ?=|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
        assert re.findall(used, text) == [], name
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text) == [], name
        # Whoever serves it under a path of its own does not break it.
        for path in re.findall(r"""(?:href|src)="(?!#)([^"]+)"|from "([^"]+)";""", text):
            assert "".join(path).removeprefix("page/").removeprefix("./") in found, name
    assert "unsafe" not in POLICY


@asynccontextmanager
async def serving(*messages: Message) -> AsyncIterator[tuple[str, HttpServer]]:
    """A server that has heard this; where it listens."""
    sockets = listening(HttpAddress("127.0.0.1", 0))
    server = HttpServer(sockets)
    for message in messages:
        server._take(message)
    for layout in LAYOUTS:
        server.desk.sight.heard(layout.name, live=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        yield f"127.0.0.1:{sockets[0].getsockname()[1]}", server
        tasks.cancel_scope.cancel()


class Listener:
    """A browser that hears what changes."""

    def __init__(self, at: str, last: str = "") -> None:
        self.connection = http.client.HTTPConnection(at, timeout=patience())
        self.connection.request("GET", "/page/stream", headers={"Last-Event-ID": last} if last else {})
        self.answer = self.connection.getresponse()

    def next(self, kind: str) -> tuple[str, dict[str, Any]]:
        """The next event of this kind, with its id."""
        fields: dict[str, str] = {}
        while True:
            name, _, value = self.answer.fp.readline().decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields.get("event") == kind:
                return fields["id"], json.loads(fields["data"])
            else:
                fields = {}


async def test_a_browser_hears_everything_once_and_then_what_is_new() -> None:
    async with serving(ValuePut(NodeKey(NODE), Registration(), 1), ValuePut(LEASE, Lease(NODE, 1), 2)) as (at, server):
        browser = await anyio.to_thread.run_sync(Listener, at)
        assert browser.answer.getheader("content-security-policy") == POLICY
        _, first = await anyio.to_thread.run_sync(browser.next, "facts")
        assert (first["whole"], [*first["facts"]]) == (True, ["n/n.1", "leader"])
        server._take(ValuePut(SLICE, SliceValue(SliceState.LOAD, 1), 3, clock.now()))
        name, then = await anyio.to_thread.run_sync(browser.next, "facts")
        assert (then["whole"], [*then["facts"]]) == (False, ["s/n=2E1.org.example/slice/1.0.0/1"])
        browser.connection.close()
        server.desk.sight.heard("slices", live=False)
        again = await anyio.to_thread.run_sync(Listener, at, name)
        _, away = await anyio.to_thread.run_sync(again.next, "facts")
        assert (away["whole"], [*away["facts"]]) == (False, ["away"])
        stranger = await anyio.to_thread.run_sync(Listener, at, "0-1-2")
        assert (await anyio.to_thread.run_sync(stranger.next, "facts"))[1]["whole"]
        for each in (again, stranger):
            each.connection.close()


async def test_what_is_asked_is_answered_or_refused_in_words() -> None:
    failed = ValuePut(SLICE, SliceValue(SliceState.FAILED, 1, reason=HOSTILE), 3)
    async with serving(ValuePut(NodeKey(NODE), Registration(), 1), failed) as (at, _server):
        page = await asked(at, "/")
        assert (page.status, page.headers["x-frame-options"]) == (200, "DENY")
        assert (await asked(at, "/", headers={"If-None-Match": page.headers["etag"]})).status == 304
        for path in ("/page/nothing.js", "/page/..%2froutes.py", "/page/__init__.py"):
            assert (await asked(at, path)).status == 404, path
        told = await asked(at, "/page/explain?kind=slice&name=n%3D2E1.org.example/slice/1.0.0/1")
        assert told.headers["content-type"] == "application/json"
        assert (told.json["state"], told.json["reason"]) == ("FAILED", HOSTILE)
        assert (await asked(at, f"/page/explain?kind=version&name={APP}")).json["placed"] == 0
        assert (await asked(at, "/page/explain?kind=node&name=n.1")).json == {"reserved_cpu": 0, "reserved_memory": 0}
        refused = {
            "explain?kind=slice&name=n%3D2E1.org.example/slice/2.0.0": 404,
            "explain?kind=version&name=g:n:1": 404,
            "explain?kind=version&name=%00%1b[31m": 400,
            "explain?kind=slice&name=_leader": 400,
            "explain?kind=other": 400,
            "logs?kind=node&name=n.1": 400,
        }
        for path, status in refused.items():
            answer = await asked(at, f"/page/{path}")
            assert (answer.status, bool(answer.json["error"])) == (status, True), path
        assert (await asked(at, f"/page/logs?kind=version&name={APP}&lines=x")).json["lines"] == []
        # A name that anybody can have lead here is none of this server's.
        for host, status in {
            "evil.example": 421,
            socket.gethostname(): 200,
            "[::1]:80": 200,
            "localhost:1": 200,
        }.items():
            assert (await asked(at, "/page/dom.js", headers={"Host": host})).status == status, host
