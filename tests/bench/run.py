"""Runs benchmarks, each in a process of its own, so that none finds another one's memory or garbage."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from tests.bench import (
    deciding,
    growth,
    leading,
    losing,
    placing,
    reading,
    releasing,
    resting,
    small,
    starting,
    writing,
)
from tests.bench.many import Size, many
from tests.bench.measure import Figure

Benchmark = Callable[[bool], list[Figure] | Coroutine[Any, Any, list[Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "mirror": reading.mirror,
    "commands": writing.commands,
    "commands-r3": writing.commands_r3,
    "many-blueprints": writing.many_blueprints,
    "plan": deciding.plan,
    "place-require-spread": placing.place_require_spread,
    "place-needs": placing.place_needs,
    "delta": deciding.delta,
    "route": deciding.route,
    "activation": leading.activation,
    "failover": leading.failover,
    "node-death": leading.node_death,
    "server-loss": losing.server_loss,
    "rollout": releasing.rollout,
    "memory": reading.memory_of_slices,
    "rest": resting.rest,
    "rest-small": small.rest_small,
    "processes": small.processes,
    "agents": resting.agents,
    "start": starting.start,
    "node-start": starting.node_start,
    "node-memory": starting.node_memory,
    "growth": growth.growth,
}
"""By name; each takes whether to be quick."""


def results(name: str, quick: bool) -> list[Figure]:
    """Run a benchmark in a process of its own, and give its figures."""
    with ProcessPoolExecutor(1, _processes()) as pool:
        return pool.submit(measure, name, quick).result()


def simulated(size: Size) -> list[Figure]:
    """Simulate many nodes in a process of its own, and give the figures."""
    with ProcessPoolExecutor(1, _processes()) as pool:
        return pool.submit(_simulate, size).result()


def _simulate(size: Size) -> list[Figure]:
    _log_nowhere()
    return asyncio.run(many(size))


@cache
def _processes() -> ForkServerContext:
    """Processes that begin with everything imported and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def measure(name: str, quick: bool) -> list[Figure]:
    """Run one benchmark in this process."""
    _log_nowhere()
    found = BENCHMARKS[name](quick)
    return found if isinstance(found, list) else asyncio.run(found)


def _log_nowhere() -> None:
    """Make logs as they are by default, and throw them away."""
    with redirect_stderr(Path(os.devnull).open("w")):  # for as long as the process lasts
        configure_logs(LogFormat.CONSOLE, LogLevel.INFO)
