"""``commands`` and ``many-blueprints``: from the user's put to the last LOAD stored, by a real ``cdm node``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from cdm.errors import StoreError
from cdm.model.keys import encode
from cdm.model.slice import SliceState, SliceValue
from cdm.model.template import PLAIN
from cdm.store.wire import dump
from tests.bench.measure import Figure, Goal, at_rest, figure, in_turns, peak_memory
from tests.bench.playground import Playground, node_process, nodes_named, playground, slice_keys
from tests.harness.waiting import eventually

NODES = 1_000


async def commands(quick: bool) -> list[Figure]:
    """One big blueprint, on one server."""
    count, repetitions = (10_000, 2) if quick else (50_000, 5)
    goal = Goal(1.1, "ratio>=")
    return [await _against_raw("commands", 1, count, repetitions, lambda on: put_one(on, count), goal)]


async def commands_r3(quick: bool) -> list[Figure]:
    """One big blueprint, on a cluster of three servers."""
    count, repetitions = (5_000, 1) if quick else (50_000, 5)
    goal = Goal(1.5, "ratio>=")
    return [await _against_raw("commands-r3", 3, count, repetitions, lambda on: put_one(on, count), goal)]


async def many_blueprints(quick: bool) -> list[Figure]:
    """Many small blueprints, put as fast as the bare client can."""
    count, repetitions = (2_000, 2) if quick else (10_000, 5)
    goal = Goal(0.9, "ratio>=")
    return [await _against_raw("many-blueprints", 1, 5 * count, repetitions, lambda on: put_many(on, count, 5), goal)]


async def _against_raw(
    name: str, servers: int, count: int, repetitions: int, work: Callable[[Playground], Awaitable[None]], goal: Goal
) -> Figure:
    """Each repetition has a fresh server and a fresh node process, and does both sides."""
    ours: list[float] = []
    raw: list[float] = []
    peaks: list[float] = []
    for repetition in range(repetitions):
        took, beside, peak = await commanded(servers, NODES, count, work, raw_first=repetition % 2 == 1)
        ours.append(count / took)
        raw.append(count / beside)
        peaks.append(peak)
    return figure(name, "commands/s", ours, raw, goal, peak=max(peaks), note=f"{count:,} LOADs on {NODES:,} nodes")


async def commanded(
    servers: int, nodes: int, count: int, work: Callable[[Playground], Awaitable[None]], *, raw_first: bool
) -> tuple[float, float, float]:
    """Seconds until all LOADs are stored, seconds of the same puts by the bare client, and the node's peak memory."""
    async with playground(servers=servers) as on:
        await on.raw_bucket("raw")
        await on.register(nodes_named(nodes))
        # The leader itself takes no slices.
        with node_process(on, "leader", "--capacity", "0", "--replicas", str(on.replicas)) as process:
            await eventually(lambda: _leads(on), 30)
            revision = (await on.buckets["blueprints"].state()).last + 1
            value = dump(SliceValue(SliceState.LOAD, 1, blueprint=revision, template=PLAIN.digest))
            puts = [(encode(key), value) for key in slice_keys(count, nodes_named(nodes), count)]

            async def product() -> float:
                before = time.perf_counter()
                await work(on)
                return await on.holds("slices", count + 2) - before

            async def raw() -> float:
                await at_rest(process.pid)  # else it still takes in what it wrote, and would slow this down
                return await on.raw_puts("raw", puts)

            sides = (raw, product) if raw_first else (product, raw)
            first, second = (values[0] for values in await in_turns(1, *sides))
            took, beside = (second, first) if raw_first else (first, second)
            return took, beside, peak_memory(process.pid)


async def _leads(on: Playground) -> bool:
    """Whether the node leads."""
    if await on.messages("slices") < 2:
        return False
    try:
        return bool(await on.connection.request("cdm.leader.1", timeout=1))
    except StoreError:
        return False


async def put_one(on: Playground, count: int) -> None:
    """One blueprint of so many instances."""
    await on.raw_puts("blueprints", [("org.example/big/1.0.0", str(count).encode())])


async def put_many(on: Playground, count: int, instances: int) -> None:
    """So many blueprints, as fast as the bare client can."""
    value = str(instances).encode()
    await on.raw_puts("blueprints", [(f"org.example/app{number}/1.0.0", value) for number in range(count)])
