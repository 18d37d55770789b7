"""``python -m tests.bench many``: real managers and servers, and so many simulated nodes (`tests.bench.swarm`)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import msgspec
from msgspec import Struct

from cdm import clock
from cdm.errors import StoreError
from cdm.model.artifact import Artifact
from cdm.model.keys import FENCE, SliceKey, encode, encode_artifact
from cdm.model.node import Fence
from tests.bench.leading import ACQUAINTANCE, commands_seen, demand, stored_at
from tests.bench.measure import Figure, Goal, at_rest, figure, memory, processor_time
from tests.bench.playground import Playground, artifact, node_process, nodes_named, playground
from tests.bench.resting import counters, kinds_of
from tests.bench.swarm import PROBE, Swarm, swarm
from tests.harness.processes import Process
from tests.harness.waiting import eventually

A_BLUEPRINT = 1_000
"""Instances of each blueprint, at most."""
PROBES = 50
PROBE_PAUSE = 0.1
"""Seconds between two of them."""
DOOMED = 0.1
"""Share of the nodes that die at once."""
SETTLING = 3.0
"""Seconds that a manager is given to come to rest; with very many nodes it has always something to do."""
QUIET = 3.0
"""Seconds beyond a TTL after which an eviction that was to come has come."""


class Size(Struct, frozen=True):
    """What is simulated.

    Args:
        nodes: how many.
        servers: of NATS, 1 or 3.
        managers: processes of the role manager.
        ttl: of nodes, in seconds.
        slices: instances a node; may be less than one.
        window: seconds for which is counted what happens at rest.
        failovers: how often the leader is killed.
    """

    nodes: int
    servers: int
    managers: int
    ttl: float
    slices: float
    window: float
    failovers: int

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"many {self.nodes:,}" + (f" on {self.servers}" if self.servers > 1 else "")


class Loads:
    """Sees the LOADs that are sent, whoever is to obey them. Made by `loads_seen`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self.count = 0
        self.first = self.last = float("inf")
        """When they were sent, in seconds on `cdm.clock`."""

    def see(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Take a message."""
        if b'"LOAD"' in payload:
            self.last = clock.now()
            self.first = min(self.first, self.last)
            self.count += 1


class Field:
    """Everything that runs. Made by `_field`."""

    def __init__(
        self, size: Size, on: Playground, swarm: Swarm, managers: dict[str, Process], stack: ExitStack
    ) -> None:
        self.size = size
        self.on = on
        self.swarm = swarm
        self.managers = managers
        self._stack = stack
        self.loads = Loads()

    async def fence(self) -> Fence:
        """Who leads."""
        stored = await self.on.slices.read(FENCE)
        assert stored is not None
        assert stored.payload is not None
        return msgspec.json.decode(stored.payload, type=Fence)

    def start(self, name: str) -> None:
        """Start a manager."""
        self.managers[name] = self._stack.enter_context(
            node_process(self.on, name, "--role", "manager", "--node-ttl", f"{self.size.ttl:g}s")
        )

    async def settled(self) -> None:
        """Wait until nobody has anything to do."""
        for process in self.managers.values():
            process.unharmed()
            await at_rest(process.pid, SETTLING)

    def figure(
        self, what: str, unit: str, values: list[float], *goals: Goal, note: str = "", peak: float = 0
    ) -> Figure:
        """One of the figures of this size."""
        load = f"load average {os.getloadavg()[0]:.1f}"
        return figure(
            f"{self.size.name} {what}", unit, values, (), *goals, peak=peak, note=f"{note}; {load}" if note else load
        )


async def many(size: Size) -> list[Figure]:
    """Measure everything, one thing after the other."""
    found: list[Figure] = []
    async with _field(size) as field:
        for step in (_placing, _rest, _load, _death, _mass_death, _restart, _failover):
            before = time.monotonic()
            figures = await step(field)
            found += figures
            told = ", ".join(f"{each.name.removeprefix(size.name)} {each.value:.3g} {each.unit}" for each in figures)
            print(f"{size.name}:{told} ({time.monotonic() - before:.0f} s)", file=sys.stderr, flush=True)
    return found


@asynccontextmanager
async def _field(size: Size) -> AsyncIterator[Field]:
    with ExitStack() as stack:
        async with playground(servers=size.servers, monitoring=True) as on:
            names = nodes_named(size.nodes)
            managers: dict[str, Process] = {}
            field = Field(size, on, Swarm([]), managers, stack)
            for number in range(size.managers):
                field.start(f"m{number}")
            before, used = time.monotonic(), time.process_time()
            async with swarm(tuple(server.url for server in on.servers), names, size.ttl) as field.swarm:
                took, busy = time.monotonic() - before, time.process_time() - used
                print(f"{size.name}: all are there after {took:.0f} s ({busy:.0f} s of CPU)", file=sys.stderr)
                await on.connection.subscribe_directly("$KV.slices.*.>", field.loads.see)
                await field.settled()
                yield field
                for process in managers.values():
                    process.kill()


async def _placing(field: Field) -> list[Figure]:
    """From the puts of the blueprints to all LOADs stored, and to all slices ACTIVE."""
    size, on = field.size, field.on
    wanted = int(size.nodes * size.slices)
    each = min(A_BLUEPRINT, wanted)
    before = time.perf_counter()
    await on.raw_puts("blueprints", [(encode_artifact(artifact(n)), b"%d" % each) for n in range(wanted // each)])
    within = 60 + wanted / 200

    async def stored() -> bool:
        try:
            return await on.messages("slices") >= wanted
        except StoreError:  # the server is busy
            return False

    await eventually(stored, within, pause=0.1)
    placed = time.perf_counter() - before
    await eventually(lambda: field.swarm.active >= wanted, within, pause=0.05)
    active = time.perf_counter() - before
    await field.settled()
    note = f"{wanted:,} slices"
    return [
        field.figure("placed", "s", [placed], note=f"{note}, from the put to the last LOAD stored"),
        field.figure("active", "s", [active], note=f"{note}, from the put to the last one ACTIVE"),
    ]


async def _rest(field: Field) -> list[Figure]:
    size, on = field.size, field.on
    leader = (await field.fence()).leader
    groups = {
        "leader": [field.managers[leader].pid],
        "followers": [process.pid for name, process in field.managers.items() if name != leader],
        "server": [server.pid for server in on.servers],
        "simulated nodes": [os.getpid()],
    }
    used = {name: sum(map(processor_time, pids)) for name, pids in groups.items()}
    before, began = await counters(on), time.monotonic()
    await anyio.sleep(size.window)
    after, took = await counters(on), time.monotonic() - began
    share = {name: 100 * (sum(map(processor_time, pids)) - used[name]) / took for name, pids in groups.items()}
    kinds = await kinds_of(on, min(size.window, 20.0))
    told = ", ".join(f"{kind} {count:,.0f}" for kind, count in kinds.most_common())
    most = {100: 350, 1_000: 3_500, 10_000: 7_000}.get(size.nodes)
    goals = [Goal(most, "value<=")] if most and size.servers == 1 else []
    busy = Goal(20 if size.nodes > 1_000 else 5, "value<=")
    others = ", ".join(f"{name} {value:.1f} %" for name, value in share.items() if name != "leader")
    peaks = memory(groups["leader"][0]), sum(map(memory, groups["server"]))
    return [
        field.figure("messages", "messages/s", [(after[0] - before[0]) / took], *goals, note=f"once each: {told}"),
        field.figure("bytes", "KB/s", [(after[1] - before[1]) / took / 1000]),
        field.figure("leader at rest", "% of a core", [share["leader"]], busy, note=others, peak=peaks[0]),
        field.figure("server at rest", "% of a core", [share["server"]], note="all servers", peak=peaks[1]),
    ]


async def _load(field: Field) -> list[Figure]:
    """From a LOAD stored, by the server's clock, to the agent that is to obey it."""
    on, arrivals, values = field.on, field.swarm.account.arrivals, list[float]()
    for number in range(PROBES):
        probe = Artifact(PROBE, f"p{number}", "1.0.0")
        await on.raw_puts("blueprints", [(encode_artifact(probe), b"1")])

        def came(probe: Artifact = probe) -> SliceKey | None:
            return next((key for key in arrivals if key.artifact == probe), None)

        key = await eventually(came, 30, pause=0.005)
        assert key is not None
        values.append((arrivals[key] - await stored_at(on, on.slices.subject(encode(key)))) * 1000)
        await anyio.sleep(PROBE_PAUSE)
    for number in range(PROBES):
        subject = f"$KV.blueprints.{encode_artifact(Artifact(PROBE, f'p{number}', '1.0.0'))}"
        await on.client.request(subject, b"", headers={"KV-Operation": "DEL"}, timeout=10)
    await field.settled()
    return [field.figure("LOAD to agent", "ms", values, Goal(5, "value<="))]


async def _death(field: Field) -> list[Figure]:
    """One node dies: its registration's end to its first slice's replacement sent, and the last one."""
    first, last = await _killed(field, 1)
    goal = Goal(1 if field.size.nodes > 1_000 else 0.5, "value<=")
    note = f"after the TTL; the last of its replacements after {last:.2f} s"
    return [field.figure("death seen", "s", [first], goal, note=note)]


async def _mass_death(field: Field) -> list[Figure]:
    doomed = max(int(field.size.nodes * DOOMED), 1)
    _, last = await _killed(field, doomed)
    note = f"{doomed:,} nodes at once; from the end of the last TTL to the last replacement sent"
    return [field.figure("mass death", "s", [last], note=note)]


async def _killed(field: Field, count: int) -> tuple[float, float]:
    """Seconds from the last TTL's end to the first and to the last replacement; they are ACTIVE when this returns."""
    swarm, slices = field.swarm, field.swarm.active
    field.loads.begin()
    chosen = sorted(swarm.nodes, key=lambda each: not each.obedience.serves)[:: max(len(swarm.nodes) // count, 1)]
    ended = swarm.crash(chosen[:count]) + field.size.ttl
    lost = slices - swarm.active
    await eventually(lambda: swarm.active >= slices, 60 + field.size.ttl + lost / 200, pause=0.05)
    assert field.loads.count >= lost
    await field.settled()
    return field.loads.first - ended, field.loads.last - ended


async def _restart(field: Field) -> list[Figure]:
    """All servers are killed and started again: until every node was heard, and what was evicted."""
    size, swarm, slices = field.size, field.swarm, field.swarm.active
    field.loads.begin()
    for server in field.on.servers:
        server.kill()
    for server in field.on.servers:
        await server.start()
    up = clock.now()
    heard = await swarm.all_beat(up, 60 + 4 * size.ttl) - up
    await swarm.all_hear(60 + size.ttl)
    hear = clock.now() - up
    await anyio.sleep(size.ttl + QUIET)
    await field.settled()
    ttls = 2 if size.nodes > 1_000 else 1
    note = f"all nodes heard; all hear their commands after {hear:.1f} s; TTL {size.ttl:g} s"
    return [
        field.figure("NATS restart", "s", [heard], Goal(ttls * size.ttl, "value<="), note=note),
        field.figure(
            "evicted by it", "slices", [float(field.loads.count), float(slices - swarm.active)], Goal(0, "max<=")
        ),
    ]


async def _failover(field: Field) -> list[Figure]:
    """The leader is killed, and new blueprints come all the time: until the successor's first LOAD is stored."""
    values: list[float] = []
    seen = await commands_seen(field.on)
    for number in range(field.size.failovers if field.size.managers > 1 else 0):
        await field.settled()
        await anyio.sleep(ACQUAINTANCE)
        fence = await field.fence()
        seen.expect(1, after=fence.term)
        before = time.time()
        field.managers[fence.leader].send(signal.SIGKILL)
        async with anyio.create_task_group() as tasks:
            demanded: list[str] = []
            tasks.start_soon(demand, field.on, f"org.example/new{number}", demanded)
            values.append((await seen.arrive(field.on) - before) * 1000)
            tasks.cancel_scope.cancel()
        for subject in demanded:
            await field.on.client.publish(subject, b"", headers={"KV-Operation": "DEL"})
        await field.managers[fence.leader].ends()
        field.start(fence.leader)
    if not values:
        return []
    return [field.figure("fail-over", "ms", values, Goal(200, "value<="), note=f"{field.size.managers} managers")]
