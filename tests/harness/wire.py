"""What these tests play with: users, agents, mirrors, in-process nodes and node processes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.abc
import msgspec
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from cdm.dispatch import messages
from cdm.manager.active import Active
from cdm.model.artifact import NodeId
from cdm.model.keys import IntentKey, Layout, NodeKey, encode
from cdm.model.node import EXTERNAL, Role
from cdm.model.slice import SliceState, legal
from cdm.node import node as runtime
from cdm.node.managing import Managing
from cdm.node.node import Node, NodeSettings
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.watch import Phase, Watch
from tests.harness.servers import NatsServer, environment, eventually, raw_client

EXPECT = "Nats-Expected-Last-Subject-Sequence"
EXPECT_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
CONFLICT = 10071
"""The server's code for: another write was faster."""
SLACK = 3.0
"""Seconds that a noisy machine may add to what is promised."""


class Record(NamedTuple):
    """One message of a bucket's stream."""

    sequence: int
    key: str
    data: bytes
    headers: dict[str, str]

    @property
    def gone(self) -> bool:
        """Whether this is a marker of a delete or an expiry."""
        return "KV-Operation" in self.headers or "Nats-Marker-Reason" in self.headers

    @property
    def value(self) -> dict[str, Any]:
        """The decoded value; empty where it is none."""
        try:
            value = json.loads(self.data)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class Rejection(Exception):
    """The server refused something that a test sent."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Raw:
    """Somebody with nothing but a NATS client: a user, an agent, a vandal. Made by `raw`."""

    def __init__(self, client: Client, prefix: str = "", keys: str = ">") -> None:
        self.client = client
        self.prefix = prefix
        self.keys = keys
        """The only keys that it may read, as a pattern."""
        self._heard: dict[str, list[Record]] = {}
        """What was told of each bucket that is recorded."""

    def bucket(self, name: str) -> str:
        """A bucket's full name."""
        return f"{self.prefix}_{name}" if self.prefix else name

    async def api(self, call: str, body: Mapping[str, Any] | None = None, timeout: float = 5) -> Any:
        """Call the JetStream API."""
        payload = json.dumps(body).encode() if body is not None else b""
        answer = json.loads((await self.client.request(f"$JS.API.{call}", payload, timeout=timeout)).data)
        if error := answer.get("error"):
            raise Rejection(error.get("err_code", 0), error.get("description", ""))
        return answer

    async def put(
        self, bucket: str, key: str, value: object, headers: dict[str, str] | None = None, timeout: float = 2
    ) -> int:
        """Put a key once; ``value`` is sent as it is where it is bytes, as JSON otherwise."""
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        subject = f"$KV.{self.bucket(bucket)}.{key}"
        answer = json.loads((await self.client.request(subject, payload, timeout=timeout, headers=headers)).data)
        if error := answer.get("error"):
            raise Rejection(error.get("err_code", 0), error.get("description", ""))
        return int(answer["seq"])

    async def delete(self, bucket: str, key: str, timeout: float = 2) -> int:
        """Delete a key as ``nats kv del`` does."""
        return await self.put(bucket, key, b"", {"KV-Operation": "DEL"}, timeout)

    async def stubborn(self, bucket: str, key: str, value: object, headers: dict[str, str] | None = None) -> int:
        """Put a key, again and again until it is acknowledged."""
        with anyio.fail_after(30):
            while True:
                try:
                    return await self.put(bucket, key, value, headers, timeout=0.5)
                except (nats.errors.Error, OSError, Rejection):
                    await anyio.sleep(0.05)

    async def records(self, bucket: str, deliver: str = "last_per_subject") -> list[Record]:
        """The bucket's messages, read with a consumer of its own; ``deliver``: ``all`` or ``last_per_subject``."""
        stream = f"KV_{self.bucket(bucket)}"
        inbox, name = self.client.new_inbox(), f"test-{secrets.token_hex(6)}"
        start = len(f"$KV.{self.bucket(bucket)}.")
        found: list[Record] = []
        pending = 1
        progress = anyio.Event()

        async def take(message: Msg) -> None:
            nonlocal pending
            if message.reply.startswith("$JS.ACK"):
                tokens = message.reply.split(".")
                found.append(Record(int(tokens[5]), message.subject[start:], message.data, dict(message.headers or {})))
                pending = int(tokens[8])
                progress.set()

        subscription = await self.client.subscribe(inbox, cb=take)
        try:
            config = {"name": name, "deliver_subject": inbox, "ack_policy": "none", "deliver_policy": deliver}
            config["filter_subject"] = f"$KV.{self.bucket(bucket)}.{self.keys}"
            body = {"stream_name": stream, "config": {**config, "mem_storage": True, "num_replicas": 1}}
            info = await self.api(f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", body)
            if info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == 0:
                return []
            silent = 0
            while pending:
                with anyio.move_on_after(0.1) as silence:
                    await progress.wait()
                silent = silent + 1 if silence.cancelled_caught else 0
                progress = anyio.Event()
                if silent:
                    # The last ones may have been overwritten: then no message tells that it is the last.
                    info = await self.api(f"CONSUMER.INFO.{stream}.{name}")
                    if info["num_pending"] == 0 and info["delivered"]["consumer_seq"] == len(found):
                        break
                if silent == 30:
                    raise Rejection(0, "the list broke off: its consumer was lost")
            await self.api(f"CONSUMER.DELETE.{stream}.{name}")
        finally:
            await subscription.unsubscribe()
        return found

    async def contents(self, bucket: str) -> dict[str, Record]:
        """The bucket's living keys."""
        return {record.key: record for record in await self.records(bucket) if not record.gone}

    async def slices(self) -> dict[str, str]:
        """State by slice key."""
        found = await self.contents("slices")
        return {key: record.value.get("state", "?") for key, record in found.items() if not key.startswith("_")}

    async def status(self, artifact: str) -> dict[str, Any]:
        """What the leader says of a blueprint; empty where it says nothing."""
        record = (await self.contents("status")).get(artifact)
        return record.value if record else {}

    async def lease(self) -> dict[str, Any]:
        """Who leads; empty where nobody does."""
        try:
            record = (await self.contents("slices")).get("_leader")
        except Rejection:
            return {}
        return record.value if record else {}

    async def consumers(self, bucket: str) -> int:
        """How many consumers the bucket's stream has."""
        info = await self.api(f"STREAM.INFO.KV_{self.bucket(bucket)}")
        return int(info["state"]["consumer_count"])

    async def record(self, bucket: str = "slices") -> None:
        """Make the bucket, and have the server tell of each message as it is stored (see `recorded`).

        The bucket itself cannot keep more: with a history the server lifts TTLs to that of its markers. And who reads
        it, as a stream that has it as its source does, misses what is overwritten before it is read.
        """
        subjects = f"$KV.{self.bucket(bucket)}.>"
        heard = self._heard[bucket] = []
        start = len(subjects) - 1

        async def take(message: Msg) -> None:
            headers = dict(message.headers or {})
            name = headers["Nats-Subject"][start:]
            heard.append(Record(int(headers["Nats-Sequence"]), name, message.data, headers))

        told = f"RECORD.{self.bucket(bucket)}.>"
        await self.client.subscribe(told, cb=take)
        await self.client.flush()
        stream = f"KV_{self.bucket(bucket)}"
        config = {
            "name": stream,
            "subjects": [subjects],
            "max_msgs_per_subject": 1,
            "storage": "file",
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_atomic": True,
            "subject_delete_marker_ttl": 900 * 10**9,
            "republish": {"src": subjects, "dest": told},
        }
        await self.api(f"STREAM.CREATE.{stream}", config)

    async def recorded(self, bucket: str = "slices") -> list[Record]:
        """Everything that was stored in the bucket since `record`, in its order.

        Of what was stored while this client was not connected it is what the bucket still holds.
        """
        last = (await self.api(f"STREAM.INFO.KV_{self.bucket(bucket)}"))["state"]["last_seq"]
        heard = self._heard[bucket]
        await eventually(lambda: heard and heard[-1].sequence >= last, what="all is recorded")
        held = [record for record in await self.records(bucket, "all") if record.sequence < last]
        return sorted({record.sequence: record for record in (*held, *heard)}.values())


@asynccontextmanager
async def raw(server: NatsServer | Sequence[NatsServer], prefix: str = "") -> AsyncIterator[Raw]:
    """Somebody with nothing but a NATS client."""
    servers = [server] if isinstance(server, NatsServer) else server
    async with raw_client(*(one.url for one in servers)) as client:
        yield Raw(client, prefix)


def connected(server: NatsServer, prefix: str = "") -> Any:
    """A connection of cdm's own."""
    return connect(Access(servers=(server.url,)), name="test", prefix=prefix)


# Terms: promise I1


def assert_terms_grow(records: Sequence[Record], *, complete: bool = True) -> None:
    """In stream order no write of a term follows one of a later term's take-over.

    Agents copy the term of the command that they answer; only what leaders write counts. A record through which its
    server was killed is not ``complete``: take-overs may be missing in it.
    """
    highest, by = 0, ""
    for record in records:
        term = record.value.get("term")
        state = record.value.get("state")
        if not isinstance(term, int) or (state is not None and state not in LEADERS):
            continue
        assert term >= highest, f"{record} was stored after term {highest} ({by})"
        if complete and term > highest:
            assert record.key in ("_leader", "_term"), f"{record} is a term's first write and no take-over"
        highest, by = term, f"{record.key} at {record.sequence}"
    assert highest > 0, "no term was ever written"


LEADERS = ("LOAD", "ACTIVATE", "DEACTIVATE", "UNLOAD")
"""States that leaders write."""


# Mirrors: promise I8


class Mirror:
    """Takes a watch's messages, holds what they come to, and checks each against those before."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, int]] = {}
        """``good``, ``value`` or ``key`` and the revision, by key."""
        self.heard: list[messages.Message] = []
        self.resets: list[str] = []
        self.live: list[bool] = []
        self._announced: str | None = None
        """A key that was not known, and was told to be deleted: only a refused value of it may follow."""

    def __call__(self, message: messages.Message) -> None:
        if self._announced is not None:
            assert isinstance(message, messages.ValueRejected)
            assert encode(message.key) == self._announced
            self._announced = None
        self.heard.append(message)
        match message:
            case messages.ValuePut(key, _, revision):
                self._put(encode(key), "good", revision)
            case messages.ValueRejected(key, _, revision):
                self._put(encode(key), "value", revision)
            case messages.KeyRejected(_, name, _, revision):
                self._put(name, "key", revision)
            case messages.ValueRemove(NodeKey() | IntentKey() as key) if encode(key) not in self.values:
                pass  # of a node that was never known it is told how it went
            case messages.ValueRemove(key):
                self._remove(encode(key), False)
            case messages.RejectedKeyRemoved(_, name):
                self._remove(name, True)
            case _:
                raise AssertionError(f"a watch sends no {message!r}")

    def _put(self, name: str, kind: str, revision: int) -> None:
        known = self.values.get(name)
        if known is not None and not self.resets:
            assert revision > known[1], f"{name} at {revision} was told after {known}"
        self.values[name] = (kind, revision)

    def _remove(self, name: str, key_rejected: bool) -> None:
        if name not in self.values:
            assert not key_rejected
            self._announced = name
            return
        assert (self.values[name][0] == "key") is key_rejected
        del self.values[name]

    def reset(self, reason: str) -> None:
        """The stream is another one."""
        self.resets.append(reason)

    @property
    def revisions(self) -> dict[str, int]:
        """Revision by key."""
        return {name: revision for name, (_, revision) in self.values.items()}

    def names(self, kind: type[messages.Message]) -> list[str]:
        """The keys that messages of this class were about, in order."""
        return [
            message.name if isinstance(message, messages.KeyRejected) else encode(message.key)
            for message in self.heard
            if isinstance(message, (kind)) and isinstance(message, (messages.KeyedMessage, messages.KeyRejected))
        ]


class Watching(NamedTuple):
    """A watch that runs, with its mirror."""

    watch: Watch
    mirror: Mirror
    bucket: Bucket
    connection: Connection

    async def equals(self, user: Raw) -> bool:
        """Whether the mirror is equal to the bucket."""
        contents = await user.contents(self.bucket.layout.name)
        return self.mirror.revisions == {key: record.sequence for key, record in contents.items()}


@asynccontextmanager
async def watching(
    server: NatsServer, layout: Layout, *, create: bool = True, prefix: str = "", **options: Any
) -> AsyncIterator[Watching]:
    """A running watch of a bucket."""
    async with connected(server, prefix) as connection:
        bucket = Bucket(connection, layout)
        if create:
            await bucket.ensure(create=True)
        mirror = Mirror()

        async def recreate() -> None:
            await bucket.ensure(create=True)

        watch = Watch(bucket, mirror, on_live=mirror.live.append, on_reset=mirror.reset, on_missing=recreate, **options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: watch.phase is Phase.LIVE, what="the watch is live")
            yield Watching(watch, mirror, bucket, connection)
            tasks.cancel_scope.cancel()


# Nodes in this process


class Running:
    """A node that runs in this process. Made by `Nodes.start`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.error: BaseException | None = None
        self.ended = anyio.Event()
        self._node: Node | None = None
        self._stop = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def node(self) -> Node:
        """The node itself."""
        assert self._node is not None
        return self._node

    @property
    def managing(self) -> Managing:
        """The node's part in elections and decisions."""
        return self.node.part(Managing)

    @property
    def active(self) -> int:
        """The term in which its manager is Active; 0 where it is not."""
        if self._node is None or self.ended.is_set() or self.settings.role is Role.AGENT:
            return 0
        state = self.managing.manager.state
        return state.term if isinstance(state, Active) else 0

    async def run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the node to its end and keep the error that ended it."""
        try:
            async with runtime.node(self.settings) as node:
                self._node = node
                task_status.started()
                with self._scope:
                    await node.run(self._stop)
        except Exception as error:  # noqa: BLE001  # whatever it is, the test judges it
            self.error = error
            while isinstance(self.error, BaseExceptionGroup) and len(self.error.exceptions) == 1:
                self.error = self.error.exceptions[0]
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Let it leave in good order."""
        self._stop.set()
        with anyio.fail_after(10):
            await self.ended.wait()
        assert self.error is None, repr(self.error)

    async def crash(self) -> None:
        """End it without a farewell: its connection closes, nothing else."""
        self._scope.cancel()
        with anyio.fail_after(10, shield=True):
            await self.ended.wait()


class Nodes:
    """Nodes that run in this process. Made by `nodes_on`."""

    def __init__(self, server: NatsServer, tasks: anyio.abc.TaskGroup, defaults: dict[str, Any]) -> None:
        self._server = server
        self._tasks = tasks
        self._defaults = defaults
        self.all: dict[str, Running] = {}

    async def start(self, *names: str, **settings: Any) -> None:
        """Start nodes and wait until they are registered."""
        for name in names:
            access = Access(servers=(self._server.url,))
            options: dict[str, Any] = {
                "lease_ttl": 2.0,
                "node_ttl": 2.0,
                "runtime": EXTERNAL,
                **self._defaults,
                **settings,
            }
            running = Running(NodeSettings(NodeId(name), access, **options))
            self.all[name] = running
            await self._tasks.start(running.run)
        await eventually(lambda: all(self.registered(name) for name in names), what=f"{names} are up")

    def registered(self, name: str) -> bool:
        """Whether the node has registered; fails where it ended instead."""
        running = self.all[name]
        assert not running.ended.is_set(), repr(running.error)
        return running.node.presence._revision > 0

    def active(self) -> list[Running]:
        """All nodes whose managers are Active."""
        return [running for running in self.all.values() if running.active]

    async def leader(self, above: int = 0, within: float = 10.0) -> Running:
        """The one node that is Active, in a term above the given one."""

        def one() -> Running | None:
            found = [running for running in self.active() if running.active > above]
            return found[0] if len(found) == 1 and len(self.active()) == 1 else None

        found = await eventually(one, within, f"one node is Active in a term above {above}")
        assert found is not None
        return found

    def unharmed(self) -> None:
        """No node ended that was not told to."""
        for name, running in self.all.items():
            assert running.error is None, f"{name}: {running.error!r}"


@asynccontextmanager
async def nodes_on(server: NatsServer, **settings: Any) -> AsyncIterator[Nodes]:
    """Nodes in this process, ended with the ``with`` block."""
    async with anyio.create_task_group() as tasks:
        nodes = Nodes(server, tasks, settings)
        try:
            yield nodes
        finally:
            for running in nodes.all.values():
                await running.crash()
        tasks.cancel_scope.cancel()


# Agents


class Agents:
    """Moves the slices of some nodes as a node's agent does, with nothing but a NATS client. Made by `agents`."""

    def __init__(self, user: Raw, nodes: set[str]) -> None:
        self.nodes = nodes
        self.written: Counter[str] = Counter()
        """Counts by state of what was written."""
        self._user = user
        self._wake = anyio.Event()

    async def run(self) -> None:
        """Answer commands until cancelled."""

        async def wake(message: Msg) -> None:
            self._wake.set()

        if self._user.keys == ">":
            await self._user.client.subscribe(f"$KV.{self._user.bucket('slices')}.*.>", cb=wake)
        while True:
            try:
                for key, record in (await self._user.contents("slices")).items():
                    if key.partition(".")[0] in self.nodes and not key.startswith("_"):
                        await self._answer(key, record)
            except (nats.errors.Error, OSError, Rejection, TimeoutError):
                await anyio.sleep(0.1)
            with anyio.move_on_after(0.3):
                await self._wake.wait()
            self._wake = anyio.Event()

    async def _answer(self, key: str, record: Record) -> None:
        try:
            match record.value.get("state"):
                case "LOAD" | "LOADING":
                    await self._go(key, record, SliceState.LOADING, SliceState.LOADED)
                case "ACTIVATE" | "ACTIVATING":
                    await self._go(key, record, SliceState.ACTIVATING, SliceState.ACTIVE)
                case "DEACTIVATE" | "DEACTIVATING":
                    await self._go(key, record, SliceState.DEACTIVATING, SliceState.LOADED)
                case "UNLOAD" | "UNLOADING":
                    await self._go(key, record, SliceState.UNLOADING, None)
                case _:
                    pass
        except Rejection as rejection:
            if rejection.code not in (CONFLICT, 10164):
                raise
            self._wake.set()  # the leader wrote in between: read again, and obey

    async def _go(self, key: str, record: Record, *states: SliceState | None) -> None:
        revision, before = record.sequence, SliceState(record.value["state"])
        for state in states:
            if state is before:
                continue
            assert legal(before, state)
            headers = {EXPECT: str(revision)}
            if state is None:
                headers["KV-Operation"] = "DEL"
                await self._user.put("slices", key, b"", headers)
                self.written["deleted"] += 1
                return
            revision = await self._user.put("slices", key, {**record.value, "state": state}, headers)
            self.written[state] += 1
            before = state


@asynccontextmanager
async def agents(server: NatsServer | Sequence[NatsServer], *nodes: str) -> AsyncIterator[Agents]:
    """Agents for these nodes, on a connection of their own."""
    async with raw(server) as user, agents_of(user, *nodes) as running:
        yield running


@asynccontextmanager
async def agents_of(user: Raw, *nodes: str) -> AsyncIterator[Agents]:
    """Agents for these nodes, on somebody's connection."""
    async with anyio.create_task_group() as tasks:
        running = Agents(user, set(nodes))
        tasks.start_soon(running.run)
        yield running
        tasks.cancel_scope.cancel()


# Node processes


class Process:
    """A ``cdm node`` process. Made by `Processes.start`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ends(self, within: float = 10.0) -> int:
        """Wait for its end; returns the exit code."""
        await eventually(lambda: self.code is not None, within, f"{self.name} ends")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it, if it runs, as a power cut would."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(10)


class Processes:
    """``cdm node`` processes on one server or cluster. Made by `processes`."""

    def __init__(self, urls: str, folder: Path, options: Sequence[str]) -> None:
        self._urls = urls
        self._folder = folder
        self._options = options
        self.all: dict[str, Process] = {}
        """The process that was started last under each name."""
        self._ever: list[Process] = []

    def start(self, name: str, *options: str) -> Process:
        """Start a node."""
        log = self._folder / f"{name}-{secrets.token_hex(2)}.log"
        options = ("--id", name, "--server", self._urls, "--log-level", "debug", *self._options, *options)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "cdm", "node", *_outside(options), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(),
                cwd=self._folder,
            )
        started = self.all[name] = Process(name, process, log)
        self._ever.append(started)
        return started

    def kill(self) -> None:
        """End all that were ever started."""
        for process in self._ever:
            process.kill()

    def unharmed(self, *but: str) -> None:
        """Every process runs still, except these."""
        for name, process in self.all.items():
            assert name in but or process.code is None, f"{name} ended with {process.code}:\n{process.log[-3000:]}"

    def logs(self) -> str:
        """The last lines of every process."""
        return "\n".join(f"--- {name}\n{process.log[-60000:]}" for name, process in self.all.items())


@asynccontextmanager
async def processes(
    server: NatsServer | Sequence[NatsServer],
    user: Raw,
    folder: Path,
    *names: str,
    lease_ttl: float = 2,
    node_ttl: float = 2,
) -> AsyncIterator[Processes]:
    """``cdm node`` processes that are registered and have a leader; killed with the ``with`` block."""
    servers = [server] if isinstance(server, NatsServer) else server
    times = ("--lease-ttl", str(lease_ttl), "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
    running = Processes(",".join(one.url for one in servers), folder, times)
    try:
        for name in names:
            running.start(name)

        async def up() -> bool:
            running.unharmed()
            try:
                registered = await user.contents("nodes")
            except (Rejection, nats.errors.Error):
                return False
            return set(names) <= set(registered) and bool(await user.lease())

        await eventually(up, 30, "all nodes are registered and one leads")
        yield running
    except BaseException:
        if os.environ.get("CDM_TEST_LOGS"):
            print(running.logs())
        raise
    finally:
        running.kill()


async def command_line(
    *arguments: str, within: float = 20, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``cdm`` to its end."""
    if arguments[0] == "node":
        arguments = ("node", *_outside(arguments), *arguments[1:])
    with anyio.fail_after(within):
        return await anyio.run_process(
            [sys.executable, "-m", "cdm", *arguments],
            check=False,
            env={**environment(), "COLUMNS": "200", **(env or {})},
            stdin=subprocess.DEVNULL,
        )


def _outside(options: Sequence[str]) -> tuple[str, ...]:
    """Leaves a node's slices to the test's own agent, unless the options say otherwise."""
    return () if {"--runtime", "manager"} & {*options} else ("--runtime", EXTERNAL)


def skip_without(condition: bool, reason: str) -> None:
    """Skip the test where something is not there."""
    if not condition:
        pytest.skip(reason)


def on_nodes(slices: Mapping[str, str], state: Callable[[str], bool] = lambda state: True) -> Counter[str]:
    """How many slices, in states that count, each node has."""
    return Counter(key.partition(".")[0] for key, value in slices.items() if state(value))


def artifact_of(key: str) -> str:
    """The artifact's path of a slice key."""
    return "/".join(key.partition(".")[2].split("/")[:3])


def live(state: str) -> bool:
    """Whether a slice in this state counts."""
    return SliceState(state).live


json_of = msgspec.json.encode
