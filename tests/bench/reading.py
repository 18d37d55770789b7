"""``mirror`` and ``memory``: how fast a bucket is read into the manager, and what is kept of it."""

from __future__ import annotations

import gc
import time

import anyio

from cdm.node.managing import Managing
from cdm.store.watch import Watch
from tests.bench.measure import Figure, Goal, figure, in_turns, memory, peak_memory
from tests.bench.playground import Playground, active_slices, nodes_named, playground

INSTANCES = 100
"""Instances of each blueprint."""


async def mirror(quick: bool) -> list[Figure]:
    """Existing slices: watcher, decoding, typed message, dispatch to the manager; against bare ``kv.watchall()``."""
    count, repetitions = (20_000, 3) if quick else (100_000, 7)
    found = [await _mirror("mirror", count, repetitions, f"{count:,} slices, written in batches as a leader does")]
    if not quick:
        found.append(await _mirror("mirror plain", count, repetitions, "the same, put without any headers", plain=True))
    return found


async def _mirror(name: str, count: int, repetitions: int, note: str, *, plain: bool = False) -> Figure:
    async with playground() as on:
        if plain:
            slices = active_slices(count, nodes_named(1_000), INSTANCES)
            await on.raw_puts("slices", [(write.name, write.payload) for write in slices])
        else:
            await filled(on, count, 1_000)
        ours, bare = await in_turns(repetitions, lambda: mirrored(on, count), lambda: _bare(on, count))
    rates, baselines = ([count / each for each in side] for side in (ours, bare))
    return figure(name, "slices/s", rates, baselines, Goal(1.5, "ratio>="), note=note)


async def filled(on: Playground, count: int, nodes: int) -> None:
    """Have a bucket full of slices that serve."""
    await on.register(nodes_named(nodes))
    await on.fill(on.slices, active_slices(count, nodes_named(nodes), INSTANCES))


async def mirrored(on: Playground, count: int) -> float:
    """Seconds until a new node's manager knows every slice."""
    node = on.node()
    live = anyio.Event()
    watch = Watch(on.slices, node.router.route, on_live=lambda hearing: live.set() if hearing else None)
    gc.collect()
    before = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        with anyio.fail_after(120):
            await live.wait()
        took = time.perf_counter() - before
        tasks.cancel_scope.cancel()
    assert sum(len(group.slices) for group in node.part(Managing).manager.cluster.groups.values()) == count
    return took


async def _bare(on: Playground, count: int) -> float:
    bucket = await on.client.jetstream().key_value("slices")
    gc.collect()
    before = time.perf_counter()
    watcher = await bucket.watchall()
    found = 0
    with anyio.fail_after(120):
        async for entry in watcher:
            if entry is None:
                break
            found += 1
    took = time.perf_counter() - before
    assert watcher._sub is not None
    consumer = await watcher._sub.consumer_info()
    await watcher.stop()  # type: ignore[no-untyped-call]
    await on.connection.api(f"CONSUMER.DELETE.KV_slices.{consumer.name}")
    assert found == count
    return took


async def memory_of_slices(quick: bool) -> list[Figure]:
    """Resident bytes for each slice that a manager tracks, everything that its watch keeps included."""
    count = 100_000 if quick else 1_000_000
    async with playground() as on:
        await filled(on, count, 1_000)
        node = on.node()
        gc.collect()
        before = memory()
        watch = node.watches["slices"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            with anyio.fail_after(300):
                await watch.caught_up()
            gc.collect()
            used = memory() - before
            assert sum(len(group.slices) for group in node.part(Managing).manager.cluster.groups.values()) == count
            tasks.cancel_scope.cancel()
    goals = () if quick else (Goal(500, "value<="),)
    return [figure("memory", "bytes/slice", [used / count], (), *goals, peak=peak_memory(), note=f"{count:,} slices")]
