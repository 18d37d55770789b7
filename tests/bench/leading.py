"""``activation``, ``failover`` and ``node-death``: how fast somebody else takes over."""

from __future__ import annotations

import base64
import itertools
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

import anyio
import msgspec
from nats.aio.msg import Msg

from cdm.errors import RequestRefused
from cdm.model.keys import FENCE, LEASE, encode
from cdm.model.node import Fence
from tests.bench.measure import Figure, Goal, figure, peak_memory
from tests.bench.playground import Playground, active_slices, blueprints, node_process, nodes_named, playground
from tests.harness.processes import Process
from tests.harness.waiting import eventually

INSTANCES = 100
"""Instances of each blueprint."""
EMPTY = ("--capacity", "0")
"""Options of a node that takes no slices."""
ACQUAINTANCE = 1.5
"""Seconds after which followers know a term long enough to judge it."""


class Candidates:
    """Real ``cdm node`` processes on one server, of which one leads. Made by `candidates`."""

    def __init__(self, on: Playground, stack: ExitStack, options: Sequence[str]) -> None:
        self._on = on
        self._options = options
        self._stack = stack
        self._all: dict[str, Process] = {}
        self.peak = 0.0
        """The most memory that any of them ever had resident."""

    def start(self, name: str) -> None:
        """Start one."""
        self._all[name] = self._stack.enter_context(node_process(self._on, name, *self._options))

    async def leader(self) -> Fence:
        """Wait until somebody leads, and everybody's mirror of ``slices`` is warm."""

        async def warm() -> bool:
            for process in self._all.values():
                process.unharmed()
            found = (await self._on.connection.api("CONSUMER.LIST.KV_slices")).get("consumers") or []
            whole = [each for each in found if each["config"]["filter_subject"] == self._on.slices.all_subjects]
            bound = [each for each in whole if each.get("push_bound")]
            return len(bound) == len(self._all) and all(each["num_pending"] == 0 for each in bound)

        async def led() -> bool:
            held = await self._on.slices.read(LEASE)
            return held is not None and held.payload is not None

        await eventually(led, 30)
        await eventually(warm, 60)
        fence = await self._on.slices.read(FENCE)
        assert fence is not None
        assert fence.payload is not None
        return msgspec.json.decode(fence.payload, type=Fence)

    def stop(self, name: str, number: signal.Signals) -> float:
        """Send one a signal; returns when, in seconds since 1970."""
        process = self._all[name]
        self.peak = max(self.peak, peak_memory(process.pid))
        before = time.time()
        process.send(number)
        return before

    async def again(self, name: str) -> None:
        """Start one anew that was stopped."""
        await self._all[name].ends()
        self.start(name)


@asynccontextmanager
async def candidates(on: Playground, *names: str, options: Sequence[str] = EMPTY) -> AsyncIterator[Candidates]:
    """Node processes, killed at the end of the ``with`` block."""
    with ExitStack() as stack:
        found = Candidates(on, stack, options)
        for name in names:
            found.start(name)
        yield found


class Commands:
    """Sees the commands of a term as they are stored. Made by `commands_seen`."""

    def __init__(self) -> None:
        self.term = 0
        """Only commands of later terms than this are seen."""
        self.count = 0
        self.last = ""
        """Subject of the last one."""
        self._wanted = 0
        self._reached = anyio.Event()

    def expect(self, count: int, after: int) -> None:
        """Count from now on, the commands of terms after this one."""
        self.term, self.count, self._wanted, self._reached = after, 0, count, anyio.Event()

    async def arrive(self, on: Playground) -> float:
        """Wait until all that are expected were sent; returns when the last one was stored (`stored_at`)."""
        with anyio.fail_after(20):
            await self._reached.wait()
        return await stored_at(on, self.last, self.term)

    async def see(self, message: Msg) -> None:
        """Take a message."""
        if b'"LOAD"' not in message.data or self._reached.is_set():
            return
        value: dict[str, Any] = msgspec.json.decode(message.data)
        if value.get("term", 0) > self.term:
            self.count += 1
            self.last = message.subject
            if self.count == self._wanted:
                self._reached.set()


async def commands_seen(on: Playground) -> Commands:
    """See commands with the bare client."""
    seen = Commands()
    await on.client.subscribe("$KV.slices.*.>", cb=seen.see)
    await on.client.flush()
    return seen


async def stored_at(on: Playground, subject: str, after: int = -1) -> float:
    """When the last message of a subject was stored, in seconds since 1970 by the server's clock, which is ours.

    Waits for a message of a later term than ``after``: a subscriber sees the messages of a batch before they are
    stored.
    """
    bucket = subject.split(".")[1]
    with anyio.fail_after(5):
        while True:
            try:
                answer = await on.connection.api(f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": subject})
            except RequestRefused:
                answer = None
            if answer is not None and _term(answer["message"]) > after:
                break
            await anyio.sleep(0.005)
    whole, _, fraction = answer["message"]["time"].rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _term(message: dict[str, str]) -> int:
    data = base64.b64decode(message.get("data", ""))
    return msgspec.json.decode(data, type=Fence).term if b'"term"' in data else 0


async def activation(quick: bool) -> list[Figure]:
    """A new leader with warm mirrors: from the term stored to the first corrective write stored, server's clock."""
    count, repetitions = (20_000, 1) if quick else (100_000, 15)
    values, peak = await activations(count, 1_000, repetitions)
    goals = (Goal(100, "value<="), Goal(100, "max<="))
    return [figure("activation", "ms", values, (), *goals, peak=peak, note=f"{count:,} slices, one of them missing")]


async def activations(count: int, nodes: int, repetitions: int) -> tuple[list[float], float]:
    """Milliseconds, and the peak memory of the leader."""
    values: list[float] = []
    names = nodes_named(nodes)
    async with playground() as on:
        await on.register(names)
        await on.fill(on.slices, active_slices(count, names, INSTANCES))
        await on.fill(on.buckets["blueprints"], blueprints(count // INSTANCES, INSTANCES))
        doomed = random.Random(1).sample([write.name for write in active_slices(count, names, INSTANCES)], repetitions)
        seen = await commands_seen(on)
        # Nodes that are only registered do not probe, so the lease has to expire.
        async with candidates(on, "a", "b", options=(*EMPTY, "--lease-ttl", "2")) as all_:
            for name in doomed:
                fence = await all_.leader()
                await anyio.sleep(ACQUAINTANCE)
                seen.expect(1, after=fence.term)
                all_.stop(fence.leader, signal.SIGKILL)
                await on.client.publish(f"$KV.slices.{name}", b"", headers={"KV-Operation": "DEL"})
                at = await seen.arrive(on)
                values.append((at - await stored_at(on, on.slices.subject(encode(FENCE)))) * 1000)
                await all_.again(fence.leader)
            return values, all_.peak


async def failover(quick: bool) -> list[Figure]:
    """A leader is killed, or stopped: to the successor's first stored command."""
    repetitions = 2 if quick else 30
    kill = await failovers(signal.SIGKILL, repetitions)
    term = await failovers(signal.SIGTERM, repetitions)
    note = "three processes; from the signal to the successor's first command stored"
    return [
        figure(
            "failover SIGKILL", "ms", kill[0], (), Goal(150, "value<="), Goal(300, "max<="), peak=kill[1], note=note
        ),
        figure("failover SIGTERM", "ms", term[0], (), Goal(25, "value<="), peak=term[1], note=note),
        figure(
            "failover batch",
            "ms",
            await _batches(40),
            note="an atomic batch of two messages; a fail-over has two of them",
        ),
    ]


async def _batches(repetitions: int) -> list[float]:
    """Milliseconds that the server takes for a small batch: what no fail-over can go below."""
    values: list[float] = []
    async with playground() as on:
        for write in active_slices(repetitions, nodes_named(1), repetitions):
            before = time.perf_counter()
            await on.slices.batch([write, write])
            values.append((time.perf_counter() - before) * 1000)
            await anyio.sleep(0.01)
    return values


async def failovers(number: signal.Signals, repetitions: int) -> tuple[list[float], float]:
    """Milliseconds, and the peak memory of a node."""
    values: list[float] = []
    async with playground() as on:
        seen = await commands_seen(on)
        await _unloads(on)
        # Nobody is registered who does not probe: the more nodes there are, the less often each of them does.
        async with candidates(on, "a", "b", "c", options=()) as all_:
            for repetition in range(repetitions):
                fence = await all_.leader()
                await anyio.sleep(ACQUAINTANCE)
                seen.expect(1, after=fence.term)
                before = all_.stop(fence.leader, number)
                async with anyio.create_task_group() as tasks:
                    # One would not do: a leader that stops in good order may serve it still.
                    demanded: list[str] = []
                    tasks.start_soon(demand, on, f"org.example/app{repetition}", demanded)
                    values.append((await seen.arrive(on) - before) * 1000)
                    tasks.cancel_scope.cancel()
                # The next leader to go shall have no slices that are to be moved.
                for subject in demanded:
                    await on.client.publish(subject, b"", headers={"KV-Operation": "DEL"})
                await all_.again(fence.leader)
            return values, all_.peak


async def demand(on: Playground, name: str, demanded: list[str]) -> None:
    """Put a new blueprint every few milliseconds."""
    for number in itertools.count():
        demanded.append(f"$KV.blueprints.{name}-{number}/1.0.0")
        await on.client.publish(demanded[-1], b"1")
        await anyio.sleep(0.005)


async def _unloads(on: Playground) -> None:
    """An agent of all nodes that does nothing but unload."""

    async def unload(message: Msg) -> None:
        if b'"UNLOAD"' in message.data:
            await on.client.publish(message.subject, b"", headers={"KV-Operation": "DEL"})

    await on.client.subscribe("$KV.slices.*.>", cb=unload)


async def node_death(quick: bool) -> list[Figure]:
    """A node dies: its last slice's replacement is stored so long after the TTL of its registration ended."""
    repetitions = 1 if quick else 7
    found = [await death(10, 10_000) for _ in range(repetitions)]
    return [
        figure(
            "node-death",
            "s",
            [value for value, _ in found],
            (),
            Goal(0.5, "value<="),
            peak=max(peak for _, peak in found),
            note="1,000 of 10,000 slices",
        )
    ]


async def death(nodes: int, slices: int, ttl: int = 2) -> tuple[float, float]:
    """Seconds from the end of a node's TTL to its last slice's replacement, and the leader's peak memory."""
    names = nodes_named(nodes)
    async with playground() as on:
        await on.register(names)
        await on.fill(on.slices, active_slices(slices, names, INSTANCES))
        await on.fill(on.buckets["blueprints"], blueprints(slices // INSTANCES, INSTANCES))
        seen = await commands_seen(on)
        async with candidates(on, "leader") as all_:
            await all_.leader()
            await anyio.sleep(ACQUAINTANCE)
            seen.expect(slices // nodes, after=0)
            # Its last heartbeat.
            subject = f"$KV.nodes.{names[0]}"
            await on.client.request(subject, b'{"ttl":%d}' % ttl, headers={"Nats-TTL": f"{ttl}s"}, timeout=2)
            ended = await stored_at(on, subject) + ttl
            value = await seen.arrive(on) - ended
            all_.stop("leader", signal.SIGTERM)
            return value, all_.peak
