"""``rest-small`` and ``processes``: what a small cluster of real processes costs, and how fast it starts many."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import anyio
import msgspec
from msgspec import Struct

from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.model.artifact import Artifact
from cdm.model.keys import FENCE, encode_artifact
from cdm.model.manifest import Manifest
from cdm.model.node import Fence
from cdm.model.slice import SliceState
from cdm.store.wire import headers_of, is_removal
from tests.bench.measure import Figure, Goal, figure, in_turns, processor_time, wakings
from tests.bench.playground import Playground, node_process, playground
from tests.harness.processes import Process
from tests.harness.waiting import eventually

PROGRAM = "#!/bin/sh\nexec sleep 100000\n"
"""What each slice runs."""
BECOMES = "sleep\n"
"""Its name once it is running."""
MANAGERS, AGENTS, NODES = ("m0", "m1", "m2"), ("a0", "a1", "a2"), ("n0", "n1", "n2")
SETTLED = 8.0
"""Seconds after which nothing is left of a beginning: by then followers know that they are told of a leader's end."""
COOLING = 1.0
"""Seconds between two starts."""
KEEPER = "'s keeper"
REST = Goal(1.0, "value<=")
STARTED = Goal(1.0, "value<=")


class Busy(Struct, frozen=True):
    """What a process, or several of them, did.

    Args:
        cpu: seconds of processor time, in user mode and in the kernel.
        wakings: how often one of its threads went to sleep.
    """

    cpu: float = 0.0
    wakings: int = 0

    @classmethod
    def of(cls, *pids: int) -> Busy:
        """So far; not what their children did."""
        return cls(sum(map(processor_time, pids)), sum(map(wakings, pids)))

    def __add__(self, other: Busy) -> Busy:
        return Busy(self.cpu + other.cpu, self.wakings + other.wakings)

    def since(self, before: Busy) -> Busy:
        """What was done in between."""
        return Busy(self.cpu - before.cpu, self.wakings - before.wakings)


class Told:
    """Which slices of one artifact are ACTIVE, as it is written. Made by `Cluster.told`."""

    def __init__(self, artifact: Artifact) -> None:
        self._end = f".{encode_artifact(artifact)}".encode()
        self.active: set[bytes] = set()
        self.known: set[bytes] = set()
        """Those that there are, in whatever state."""
        self.last: dict[str, float] = {}
        """When each state was written last, on ``time.perf_counter``."""

    def see(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Take a write."""
        if self._end not in subject:
            return
        if block and is_removal(headers_of(block)):
            self.known.discard(subject)
            return
        self.known.add(subject)
        state = payload.partition(b'"state":"')[2].partition(b'"')[0].decode()
        self.last[state] = time.perf_counter()
        (self.active.add if state == SliceState.ACTIVE else self.active.discard)(subject)


class Cluster:
    """Real processes. Made by `_cluster`."""

    def __init__(self, on: Playground, nodes: Mapping[str, Process]) -> None:
        self.on = on
        self.nodes = nodes
        self.program = on.servers[0].folder / "serve"
        """A file that is what each slice runs."""
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)
        self._told: Callable[[bytes, bytes, bytes, bytes], None] = lambda *_: None

    def hear(self, told: Told) -> None:
        """Have it told what is written from now on."""
        self._told = told.see

    def see(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Take a write."""
        self._told(subject, reply, payload, block)

    def busy(self) -> dict[str, Busy]:
        """What each process did so far, by what it is; not the programs of slices."""
        found = {"server": Busy.of(*(server.pid for server in self.on.servers))}
        for name, process in self.nodes.items():
            process.unharmed()
            found[name] = Busy.of(process.pid)
            if keepers := process.keepers():
                found[name + KEEPER] = Busy.of(*keepers)
        return found

    async def leader(self) -> str:
        """Who leads."""
        stored = await self.on.slices.read(FENCE)
        assert stored is not None
        assert stored.payload is not None
        return msgspec.json.decode(stored.payload, type=Fence).leader

    async def push(self, artifact: Artifact) -> None:
        """Push the program, as an artifact."""
        packed = pack(self.program, self.program.parent)
        await Artifacts(self.on.connection).push(artifact, packed.path, packed.content(Manifest(entry="serve")))

    async def up(self, artifact: Artifact, instances: int) -> tuple[float, Told]:
        """Put a blueprint, and wait until all of it runs; returns when it was put, on ``time.perf_counter``."""
        told = Told(artifact)
        self.hear(told)
        began = time.perf_counter()
        await self.on.client.publish(f"$KV.blueprints.{encode_artifact(artifact)}", b"%d" % instances)
        await eventually(lambda: len(told.active) >= instances, 60, pause=0.005)
        return began, told

    async def down(self, artifact: Artifact, told: Told) -> None:
        """Take it away, and wait until nothing of it is left."""
        await self.on.client.publish(
            f"$KV.blueprints.{encode_artifact(artifact)}", b"", headers={"KV-Operation": "DEL"}
        )
        await eventually(lambda: not told.known, 60, pause=0.05)


@asynccontextmanager
async def _cluster(nodes: Mapping[str, tuple[str, ...]]) -> AsyncIterator[Cluster]:
    """``cdm node`` processes with these options, on one server; all that runs is killed at the end of the block."""
    with ExitStack() as stack:
        async with playground() as on:
            await Artifacts(on.connection).ensure(create=True)
            running = {name: stack.enter_context(node_process(on, name, *more)) for name, more in nodes.items()}
            found = Cluster(on, running)

            async def led() -> bool:
                registered = await on.messages("nodes") >= len(nodes)
                return registered and bool(await on.slices.revision_of("_leader"))

            await eventually(led, 60)
            await on.connection.subscribe_directly("$KV.slices.*.>", found.see)
            yield found
            stack.close()  # before the server, of which they would complain


def _runs(name: str, role: str) -> tuple[str, ...]:
    return ("--role", role, "--folder", name)


async def rest_small(quick: bool) -> list[Figure]:
    """One server, three managers, three agents, and slices that need nothing: processor time a minute."""
    instances, window = (6, 3.0) if quick else (100, 60.0)
    nodes = {**dict.fromkeys(MANAGERS, ("--role", "manager")), **{name: _runs(name, "agent") for name in AGENTS}}
    service = Artifact("org.example", "small", "1.0.0")
    async with _cluster(nodes) as cluster:
        await cluster.push(service)
        await cluster.up(service, instances)
        await anyio.sleep(1.0 if quick else SETTLED)
        leader, before, began = await cluster.leader(), cluster.busy(), time.monotonic()
        await anyio.sleep(window)
        after, minutes = cluster.busy(), (time.monotonic() - began) / 60
    used = {name: each.since(before[name]) for name, each in after.items()}
    groups = {
        "server": ["server"],
        "leader": [leader],
        "followers": [name for name in MANAGERS if name != leader],
        "agents": [*AGENTS],
        "keepers": [name for name in used if name.endswith(KEEPER)],
    }
    told = []
    for name, members in groups.items():
        seconds = sum(used[each].cpu for each in members) / minutes / len(members)
        wakes = sum(used[each].wakings for each in members) / minutes / 60 / len(members)
        told.append(f"{name} {seconds:.3f} s, {wakes:.1f} wake-ups/s")
    load = f"load average {os.getloadavg()[0]:.1f}"
    note = f"{instances} slices, counted for {window:g} s; each: {'; '.join(told)}; {load}"
    total = sum((each.cpu for each in used.values()), 0.0) / minutes
    return [figure("rest-small", "CPU s/min", [total], (), REST, peak=0, note=note)]


async def processes(quick: bool) -> list[Figure]:
    """Three nodes, and one blueprint of many small programs: from its put to all of them ACTIVE."""
    instances, repetitions = (6, 1) if quick else (200, 5)
    taken: list[_Start] = []
    async with _cluster({name: _runs(name, "auto") for name in NODES}) as cluster:
        first = Artifact("org.example", "first", "1.0.0")
        await cluster.push(first)
        await cluster.down(first, (await cluster.up(first, len(NODES)))[1])

        async def ours() -> float:
            taken.append(await _start(cluster, f"{len(taken)}.0.0", instances))
            return taken[-1].took

        async def bare() -> float:
            return await anyio.to_thread.run_sync(_bare, cluster.program, instances)

        times, baseline = await in_turns(repetitions, ours, bare)
    cpu = ", ".join(f"{name} {median(each.cpu[name] for each in taken):.2f}" for name in taken[0].cpu)
    total = [sum(each.cpu.values()) for each in taken]
    states = [state for state in SliceState if all(state in each.written for each in taken)]
    last = ", ".join(f"{state} {median(each.written[state] for each in taken):.2f}" for state in states)
    note = f"{instances} on three nodes, each time of a new artifact; the last one of each state after {last} s"
    load = f"load average {os.getloadavg()[0]:.1f}"
    return [
        figure("processes", "s", times, baseline, STARTED, peak=0, note=f"{note}; {load}"),
        figure("processes busy", "CPU s", total, peak=0, note=f"without the programs' own: {cpu}; {load}"),
    ]


class _Start(Struct, frozen=True):
    """Many programs, started once.

    Args:
        took: seconds from the put to the last one ACTIVE.
        written: seconds until each state was written last.
        cpu: seconds of processor time, by who used them.
    """

    took: float
    written: dict[str, float]
    cpu: dict[str, float]


async def _start(cluster: Cluster, version: str, instances: int) -> _Start:
    service = Artifact("org.example", "small", version)
    await cluster.push(service)
    await anyio.sleep(COOLING)
    leader, before = await cluster.leader(), cluster.busy()
    began, told = await cluster.up(service, instances)
    used = {name: each.since(before[name]).cpu for name, each in cluster.busy().items()}
    written = {state: at - began for state, at in told.last.items()}
    await cluster.down(service, told)
    keepers = sum(value for name, value in used.items() if name.endswith(KEEPER))
    others = sum(value for name, value in used.items() if name in NODES and name != leader)
    cpu = {"server": used["server"], "leader": used[leader], "both other nodes": others, "all keepers": keepers}
    return _Start(written[SliceState.ACTIVE], written, cpu)


def _bare(program: Path, count: int) -> float:
    """Start so many of the program with nothing around them, until each is what it becomes; returns the seconds."""
    began, pids = time.perf_counter(), list[int]()
    try:
        for _ in range(count):
            pids.append(os.posix_spawn(program, [str(program)], {"PATH": os.defpath}, setsid=True))
        for pid in pids:
            while Path(f"/proc/{pid}/comm").read_text() != BECOMES:
                time.sleep(0.001)
        return time.perf_counter() - began
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
