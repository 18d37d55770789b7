"""``start``, ``node-start`` and ``node-memory``: what a command costs, and what a node does."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, StatusKey, encode_artifact
from tests.bench.leading import candidates, stored_at
from tests.bench.measure import MIB, Figure, Goal, figure, in_turns, processor_time, proportional_memory
from tests.bench.playground import Playground, active_slices, artifact, blueprints, nodes_named, playground
from tests.harness.proc import keepers
from tests.harness.processes import Process, environment, started_node
from tests.harness.waiting import eventually


async def start(quick: bool) -> list[Figure]:
    """Wall time of commands against that of an interpreter that does nothing."""
    repetitions = 3 if quick else 21
    cdm = str(Path(sys.executable).with_name("cdm"))
    bare = [sys.executable, "-c", "pass"]
    async with playground() as on, candidates(on, "n1") as all_:
        await all_.leader()
        times = await _in_turns(
            repetitions,
            {
                "bare": bare,
                "cdm --help": [cdm, "--help"],
                "cdm --version": [cdm, "--version"],
                "cdm status": [cdm, "status", "--server", on.urls],
                "libraries": [sys.executable, "-c", _LIBRARIES, on.urls],
            },
        )
    nothing, libraries = times.pop("bare"), times.pop("libraries")
    return [
        *(
            figure(f"start {name}", "ms", values, nothing, Goal(8, "ratio<="), peak=0.0)
            for name, values in times.items()
        ),
        figure(
            "start libraries", "ms", libraries, nothing, peak=0.0, note="the same libraries imported, nats-py connected"
        ),
        *await _start_on_much(repetitions, 1_000 if quick else 10_000, 30 if quick else 300, cdm, bare),
    ]


async def _start_on_much(repetitions: int, slices: int, nodes: int, cdm: str, bare: list[str]) -> list[Figure]:
    """The same of commands that show many slices."""
    names, instances = nodes_named(nodes), 100
    told = {"condition": "Ready", "desired": instances, "active": instances, "term": 3}
    async with playground() as on:
        await on.fill(on.buckets["slices"], active_slices(slices, names, instances))
        await on.raw_puts("slices", [("_leader", b'{"node":"n0","term":3}')])
        await on.register(names, b'{"runtime":"process","labels":{"zone":"a"},"cpu":8,"memory":16e9}')
        count = slices // instances
        await on.fill(on.buckets["blueprints"], blueprints(count, instances))
        statuses = [(encode_artifact(artifact(number)), json.dumps(told).encode()) for number in range(count)]
        await on.raw_puts("status", statuses)
        connected = ["--server", on.urls]
        sides = {"": ["status"], " --all": ["status", "--all"], " --json": ["status", "--json"]}
        times = await _in_turns(
            repetitions, {"bare": bare, **{name: [cdm, *words, *connected] for name, words in sides.items()}}
        )
    nothing, note = times.pop("bare"), f"{slices:,} slices on {nodes} nodes"
    return [
        figure(f"start cdm status{name}, much", "ms", values, nothing, Goal(2000, "value<="), peak=0.0, note=note)
        for name, values in times.items()
    ]


async def _in_turns(repetitions: int, sides: Mapping[str, list[str]]) -> dict[str, list[float]]:
    """How long each command takes each time, in milliseconds; the first time, which compiles what it imports, is not
    counted.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions + 1):
        for name, command in sides.items():
            times[name].append(await _wall(command))
    return {name: each[1:] for name, each in times.items()}


_LIBRARIES = """
import asyncio, sys
import cyclopts, nats, rich.console, rich.table
import anyio._backends._asyncio
async def main():
    client = await nats.connect(sys.argv[1])
    await client.close()
asyncio.run(main())
"""
"""What `cdm status` cannot do without, and nothing of cdm."""


async def _wall(command: list[str]) -> float:
    # With what Python keeps of compiled modules, as where cdm is installed.
    env = {**environment(), "PYTHONDONTWRITEBYTECODE": ""}
    nowhere = subprocess.DEVNULL
    before = time.perf_counter()
    with anyio.fail_after(30):
        await anyio.run_process(command, env=env, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    return (time.perf_counter() - before) * 1000


async def node_start(quick: bool) -> list[Figure]:
    """From the start of a real ``cdm node`` until its registration is stored, beside what it cannot do without."""
    repetitions = 3 if quick else 21
    busy: list[float] = []
    async with playground() as on, candidates(on, "n1", options=("--role", "manager")) as all_:
        await all_.leader()
        count = 0

        async def registered() -> float:
            nonlocal count
            count += 1
            name = f"started{count}"
            before = time.time()
            async with _node(on, name) as process:
                await eventually(lambda: _is_registered(on, name), 60, pause=0.005)
                busy.append(processor_time(process.pid, ended=True))
                took = await stored_at(on, f"$KV.nodes.{name}") - before
            return took * 1000

        async def libraries() -> float:
            before = _processor_time_of_children()
            await _wall([sys.executable, "-c", _NODES_LIBRARIES, on.urls])
            return (_processor_time_of_children() - before) * 1000

        sides = (registered, lambda: _wall([sys.executable, "-c", "pass"]), libraries)
        for side in sides:
            await side()  # compiles what it imports
        busy.clear()
        times, nothing, imported = await in_turns(repetitions, *sides)
    note = "role auto, on a cluster that is there; from the start to its registration stored"
    beside = (
        "its processor time until then, with what reads its options, without its keeper's; beside that of its"
        " libraries, imported and connected"
    )
    return [
        figure("node-start", "ms", times, nothing, Goal(400, "value<="), peak=0.0, note=note),
        figure("node-start CPU", "ms", [each * 1000 for each in busy], imported, peak=0.0, note=beside),
    ]


def _processor_time_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _is_registered(on: Playground, name: str) -> bool:
    return await on.buckets["nodes"].read_near(NodeKey(NodeId(name))) is not None


async def node_memory(quick: bool) -> list[Figure]:
    """What a node and its keeper have in memory with 100 slices: their own pages, and their shares of others' (PSS)."""
    slices = 10 if quick else 100
    found: list[Figure] = []
    for role, goal in (("agent", (Goal(30, "value<="),)), ("all", ())):
        async with playground() as on, candidates(on, "n1", options=("--role", "manager")) as all_:
            await all_.leader()
            async with _node(on, "n2", "--role", role) as process:
                await _run_slices(on, slices)
                (keeper,) = keepers(process.pid)
                node, kept = (proportional_memory(pid) / MIB for pid in (process.pid, keeper))
        note = f"role {role}, {slices} slices that sleep, their own memory not counted; its keeper has {kept:.1f}"
        found.append(figure(f"node-memory {role}", "MiB", [node + kept], (), *goal, peak=0.0, note=note))
    return found


@asynccontextmanager
async def _node(on: Playground, name: str, *options: str) -> AsyncIterator[Process]:
    """A node in a process of its own, with a folder of its own, that runs slices; told to stop at the end."""
    folder = on.servers[0].folder / name
    more = ("--folder", str(folder), "--run-as", "same", "--runtime", "process")
    log = on.servers[0].folder / f"{name}.log"
    process = started_node(name, log, "--id", name, "--server", on.urls, *more, *options, fresh=True)
    try:
        yield process
        process.send(signal.SIGTERM)
        await process.ends()
    finally:
        process.kill()


async def _run_slices(on: Playground, count: int) -> None:
    """Have so many run, and wait until they have for a second."""
    program = on.servers[0].folder / "sleeps"
    program.write_text("#!/bin/sh\nexec sleep 100000\n")
    program.chmod(0o755)
    cdm = str(Path(sys.executable).with_name("cdm"))
    await anyio.run_process([cdm, "artifact", "push", str(artifact(0)), str(program), "--server", on.urls])
    await on.raw_puts("blueprints", [(encode_artifact(artifact(0)), b"%d" % count)])

    async def ready() -> bool:
        held = await on.buckets["status"].read_near(StatusKey(encode_artifact(artifact(0))))
        return held is not None and json.loads(held.payload or b"{}").get("active") == count

    await eventually(ready, 60)
    await anyio.sleep(1)


_NODES_LIBRARIES = """
import asyncio, os, sys
import anyio._backends._asyncio, cyclopts, msgspec, nats.aio.client, structlog
async def main():
    await nats.aio.client.Client().connect(sys.argv[1])
    os._exit(0)
asyncio.run(main())
"""
"""What `cdm node` cannot do without, and nothing of cdm."""
