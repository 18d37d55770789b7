"""Attacks: what somebody with a key, and a client of their own, tries to have the server do in its own name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import nats.errors
from nats.aio.msg import Msg

from cdm.model.artifact import node_id
from cdm.secure.members import Members
from cdm.secure.permissions import accounts
from cdm.store.wire import BUCKETS_API
from tests.harness.secure import Insider
from tests.security.site import MANAGER, OWN, SLOTS, THIEF, VICTIM

EVIL = "g/evil/1"
NOWHERE = b'{"capacity":0}'
"""A registration of a node that takes nothing."""
COMMAND = b'{"state":"LOAD","term":1}'
HELD = b'{"node":"node-1","incarnation":"evil"}'
"""A manager's slot that is the thief's."""
LISTENED = "_INBOX_operator.evil"
"""An inbox that its owner listens to under this very name: the server delivers nowhere else."""
LATER = 0.5
"""Seconds after which managers have told what they heard of a node."""
TARGETS: Mapping[str, bytes] = {
    f"$KV.blueprints.{EVIL}": b"3",
    "$KV.slices._leader": b'{"node":"node-1","term":99,"incarnation":"evil"}',
    "$KV.slices._term": b'{"term":99,"leader":"node-1"}',
    f"$KV.slices.{VICTIM}.{EVIL}": COMMAND,
    f"$KV.nodes.{VICTIM}": b"{}",
    f"$KV.nodes.{VICTIM}.intent": b'{"schedule":"drain"}',
    f"$KV.nodes.{THIEF}.intent": b'{"schedule":"drain"}',
    f"$KV.nodes.{MANAGER}": b'{"role":"agent","incarnation":"evil"}',
    f"$KV.nodes.{SLOTS[0]}": HELD,
    f"$KV.status.{EVIL}": b"{}",
    "$O.artifacts.M.ZXZpbA==": b"{}",
    "$JS.API.STREAM.PURGE.KV_blueprints": b"",
    "$JS.API.STREAM.DELETE.KV_status": b"",
    LISTENED: b"evil",
}
"""What a node may not publish to, and what it would send there."""
OPERATORS = ("$KV.blueprints.", "$O.artifacts.", "_INBOX_operator.")
"""What an operator may."""


def targets_of(insider: Insider) -> dict[str, bytes]:
    """What somebody may not publish to."""
    if insider.name != "operator":
        return dict(TARGETS)
    return {
        subject: payload
        for subject, payload in TARGETS.items()
        if not subject.startswith(OPERATORS) and not subject.endswith(".intent")
    }


def _grants(name: str) -> list[str]:
    members = Members((node_id(THIEF), node_id(VICTIM)), (node_id(MANAGER),))
    users = {user.name: user for account in accounts(members) for user in account.users}
    return [subject for grant in users[name].publish for subject in grant.subjects]


def openings(insider: Insider) -> list[tuple[str, bytes]]:
    """A request to each subject that somebody may publish to, wildcards filled in: each is answered by somebody."""
    found = []
    for subject in _grants(insider.name):
        concrete = subject.replace("*.>", f"x.$KV.blueprints.{EVIL}").replace("*", THIEF).replace(">", "g/one/1")
        found.append((concrete, _body(concrete)))
    return found


def _body(subject: str) -> bytes:
    if subject.startswith("cdm.watch."):
        return b'{"what":"state"}'
    if subject.endswith("GET.OBJ_artifacts"):
        return b'{"last_by_subj":"$O.artifacts.M.>"}'
    if subject.startswith("$JS.API.STREAM.PURGE"):
        return b'{"filter":"$O.artifacts.C.none"}'
    if subject.startswith("$JS.API.STREAM.MSG.GET"):
        return b'{"last_by_subj":">"}'
    if subject.startswith("$KV.slices."):
        return b'{"state":"ACTIVE"}'
    return NOWHERE if subject.startswith("$KV.nodes.") and subject.count(".") == 2 else b""


async def replies_of_ones_own(insider: Insider) -> None:
    """Ask oneself, with a subject of one's choice to answer to."""
    for subject in (f"cdm.node.{insider.name}", f"cdm.logs.{insider.name}"):
        for target, payload in targets_of(insider).items():
            asked: list[Msg] = []

            async def answer(message: Msg, payload: bytes = payload, asked: list[Msg] = asked) -> None:
                asked.append(message)
                await insider.client.publish(message.reply, payload)

            subscription = await insider.client.subscribe(subject, cb=answer)
            await insider.client.publish(subject, b"", reply=target)
            await insider.settle()
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
    await insider.settle()


async def answers_of_the_server(insider: Insider) -> None:
    """Everything that may be asked, with the answer - a direct get, an acknowledgement, an API's - going elsewhere."""
    for subject, body in openings(insider):
        for target in targets_of(insider):
            await insider.client.publish(subject, body, reply=target)
    await insider.settle()


async def deliveries(insider: Insider) -> None:
    """Consumers of what one may read, which deliver elsewhere: into inboxes, and into keys."""
    subjects = {f"$KV.slices.{THIEF}.>": "KV_slices", "$KV.blueprints.>": "KV_blueprints"}
    listened = (f"cdm.node.{MANAGER}", f"cdm.node.{VICTIM}", f"cdm.logs.{VICTIM}", f"cdm.watch.{VICTIM}")
    for number, target in enumerate((*targets_of(insider), *listened)):
        for filtered, stream in subjects.items():
            name = f"evil-{number}"
            config = {"name": name, "deliver_subject": target, "filter_subject": filtered, "ack_policy": "none"}
            body = {"stream_name": stream, "config": {**config, "deliver_policy": "all"}}
            for call in (f"CREATE.{stream}.{name}.{filtered}", f"DURABLE.CREATE.{stream}.{name}"):
                await insider.client.publish(f"$JS.API.CONSUMER.{call}", json.dumps(body).encode())
    own = f"$KV.blueprints.{OWN}" if insider.name == "operator" else f"$KV.slices.{THIEF}.g/one/1"
    await insider.client.publish(own, b'{"what":"delete"}')
    await insider.settle()


async def deliveries_by_managers(insider: Insider) -> None:
    """The same, asking managers for them."""
    for token in ("cdm-0.x", "cdm-0\n", ">", "*", "..", "$KV.slices._leader", f"../{VICTIM}", "cdm-" + "0" * 99, ""):
        for more in ({}, {"deliver_subject": "$KV.slices._term"}, {"reader": VICTIM}, {"after": -1}):
            question = {"what": "create", "token": token, **more}
            await _ask(insider, f"cdm.watch.{THIEF}", question)
    for subject in (f"cdm.watch.{VICTIM}", f"cdm.watch.{THIEF}.x", "cdm.watch.*", "cdm.watch._leader"):
        await insider.client.publish(subject, b'{"what":"delete"}')
    await insider.settle()


async def _ask(insider: Insider, subject: str, question: Mapping[str, Any]) -> bytes:
    with suppress(nats.errors.Error):
        return (await insider.client.request(subject, json.dumps(question).encode(), timeout=5)).data
    return b""


async def _with_headers(insider: Insider, headers: Mapping[str, str]) -> None:
    node = {f"$KV.slices.{THIEF}.g/one/1": b"{}", f"$KV.nodes.{THIEF}": NOWHERE}
    for subject, payload in ({f"$KV.blueprints.{OWN}": b"{}"} if insider.name == "operator" else node).items():
        await insider.client.publish(subject, payload, headers=dict(headers))
    await insider.settle()


async def traces(insider: Insider) -> None:
    """Have the server tell elsewhere how a message went."""
    for target in targets_of(insider):
        for only in ("false", "true"):
            await _with_headers(insider, {"Nats-Trace-Dest": target, "Nats-Trace-Only": only})
            await _with_headers(
                insider, {"Nats-Trace-Dest": target, "Nats-Trace-Only": only, "Accept-Encoding": "gzip"}
            )


async def schedules(insider: Insider) -> None:
    """Have the server publish elsewhere, later."""
    for target in targets_of(insider):
        at = {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": target, "Nats-Schedule-TTL": "5m"}
        await _with_headers(insider, at)


async def headers_by_hearsay(insider: Insider) -> None:
    """Say of oneself what somebody else, who may write elsewhere, could put into headers of messages of their own."""
    for attempt in range(3):
        for target in targets_of(insider):
            header = f"{attempt} {target}\r\nNats-Trace-Dest: {target}\r\nX: y"
            registration = {"role": "agent", "capacity": 0, "started": "now", "incarnation": header, "version": header}
            await insider.ask(f"$KV.nodes.{THIEF}", registration)
        await anyio.sleep(LATER)


async def roll_ups(insider: Insider) -> None:
    """Have a message take the place of all others."""
    for scope in ("all", "sub"):
        await _with_headers(insider, {"Nats-Rollup": scope})


async def all_that_is_others(insider: Insider) -> None:
    """Publish to it."""
    for target, payload in targets_of(insider).items():
        await insider.client.publish(target, payload)
        await insider.client.publish(target, payload, headers={"Nats-Rollup": "all"})
    for stream in ("KV_slices", "KV_blueprints", "KV_nodes", "KV_status", "OBJ_artifacts"):
        if insider.name == "operator" and stream == "OBJ_artifacts":
            continue
        for call in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT", "LEADER.STEPDOWN", "PEER.REMOVE"):
            await insider.client.publish(f"$JS.API.STREAM.{call}.{stream}", b"")
    for call in ("STREAM.CREATE.EVIL", "STREAM.RESTORE.EVIL", "META.LEADER.STEPDOWN", "ACCOUNT.PURGE.CDM"):
        await insider.client.publish(f"$JS.API.{call}", b'{"name":"EVIL","subjects":["$KV.slices.>"]}')
    await insider.settle()


async def batches(insider: Insider) -> None:
    """Open many atomic batches, and end none of them."""
    for _ in range(300):
        headers = {"Nats-Batch-Id": secrets.token_hex(8), "Nats-Batch-Sequence": "1"}
        await insider.client.publish(f"$KV.slices.{THIEF}.g/one/1", b"{}", headers=headers)
    # One that ends reaches across: its messages would be stored with those of another key.
    name = secrets.token_hex(8)
    for number, subject in enumerate((f"$KV.slices.{THIEF}.g/one/1", "$KV.slices._term"), 1):
        headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        await insider.client.publish(
            subject, b"{}", headers={**headers, **({"Nats-Batch-Commit": "1"} if number == 2 else {})}
        )
    await insider.settle()


async def offices(insider: Insider) -> None:
    """Say that one manages, take managers' slots, free those that others hold, and beat in the name of managers."""
    for registration in ({"role": "all"}, {"role": "manager", "capacity": 0}, {"role": "agent", "auto": True}):
        own = {"capacity": 0, "started": "now", "incarnation": "evil", **registration}
        await insider.client.publish(f"$KV.nodes.{THIEF}", json.dumps(own).encode())
    conditions: tuple[dict[str, str], ...] = ({}, {"Nats-TTL": "10s"}, {"Nats-Expected-Last-Subject-Sequence": "0"})
    ends = ({"KV-Operation": "DEL"}, {"KV-Operation": "PURGE"}, {"KV-Operation": "PURGE", "Nats-TTL": "1s"})
    for key in (*SLOTS, MANAGER, f"{MANAGER}.seen"):
        # Clients of a bucket that is a copy put to the second one.
        for subject in (f"$KV.nodes.{key}", f"{BUCKETS_API}.$KV.nodes.{key}"):
            for headers in conditions:
                await insider.client.publish(subject, HELD, headers=dict(headers))
            for headers in ends:
                await insider.client.publish(subject, b"", headers=dict(headers))
        purged = json.dumps({"filter": f"$KV.nodes.{key}"}).encode()
        await insider.client.publish("$JS.API.STREAM.PURGE.KV_nodes", purged)
    for number in range(1, 50):
        await insider.client.publish("$JS.API.STREAM.MSG.DELETE.KV_nodes", json.dumps({"seq": number}).encode())
    name = secrets.token_hex(8)
    for number, subject in enumerate((f"$KV.nodes.{THIEF}", *(f"$KV.nodes.{slot}" for slot in SLOTS)), 1):
        headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        if number > len(SLOTS):
            headers["Nats-Batch-Commit"] = "1"
        await insider.client.publish(subject, HELD, headers=headers)
    await insider.settle()


Attack = Callable[[Insider], Awaitable[None]]
BY_ANYBODY: tuple[Attack, ...] = (
    answers_of_the_server,
    deliveries,
    traces,
    schedules,
    all_that_is_others,
    offices,
)
BY_A_NODE: tuple[Attack, ...] = (
    replies_of_ones_own,
    deliveries_by_managers,
    headers_by_hearsay,
    batches,
    *BY_ANYBODY,
)
