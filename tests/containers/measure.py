"""How long fail-over takes: `python -m tests.containers.measure --rounds 10`.

Each fault of `tests.containers.faults` strikes a cluster of three servers and three nodes in containers, again and
again. At the moment that it strikes a blueprint is published; what is measured is the time until its first LOAD is
stored. The auditor judges the whole history at the end. Settings are those of `tests.harness.engine`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import NamedTuple

import anyio
import anyio.to_thread

from tests.containers.faults import FAULTS, fail_over, replacement, take_over
from tests.harness.containers import Cluster, running
from tests.harness.engine import Images, alone, images
from tests.harness.waiting import eventually
from tests.harness.wire import patiently

SETTLED = 6.0
"""Seconds between two rounds: NATS closes what it lost, and elects, before the next fault."""


class Round(NamedTuple):
    """What one round showed, in seconds since the fault."""

    load: float
    take_over: float | None
    replaced: float | None


async def play(found: Images, name: str, rounds: int) -> tuple[list[Round], list[str]]:
    """Let one fault strike a fresh cluster so many times; returns the times, and what the auditor says."""
    seen = []
    async with running(found) as cluster:
        await cluster.user.stubborn("blueprints", "g/before/1", 6)
        await cluster.exact()
        for number in range(rounds):
            artifact = f"g/new/{number}"
            async with FAULTS[name](cluster) as struck:
                load = await fail_over(cluster, struck, artifact)
                lost = await replacement(cluster, struck) if name == "leader cut off" else None
                seen.append(Round(load, take_over(cluster, struck), lost))
                say(f"{name} {number + 1}: {seen[-1]} {struck}")
            await cluster.user.stubborn("blueprints", artifact, 0)
            await whole(cluster)
        history = await cluster.recorder.complete(cluster.user)
        return seen, [*history.violations(), *cluster.recorder.contradictions]


async def whole(cluster: Cluster) -> None:
    """Wait until everything is as before the fault, for a while."""

    async def back() -> bool:
        return {*cluster.nodes} <= {*await cluster.user.registrations()}

    await eventually(lambda: patiently(back), 60, "all nodes are back")
    await cluster.exact(60)
    await cluster.mirrors_are_equal()
    await anyio.sleep(SETTLED)


def row(name: str, what: str, times: list[float]) -> str:
    """A line of the table."""
    if not times:
        return f"| {name} | {what} | - | - | 0 |"
    return f"| {name} | {what} | {statistics.median(times):.1f} | {max(times):.1f} | {len(times)} |"


async def measure(names: list[str], rounds: int) -> int:
    """Play all faults and print the table."""
    found = images()
    lines, complaints = [], []
    for name in names:
        seen, violations = await play(found, name, rounds)
        complaints += violations
        lines.append(row(name, "first LOAD of a new blueprint", [each.load for each in seen]))
        lines.append(row(name, "another node leads", [each.take_over for each in seen if each.take_over is not None]))
        replaced = [each.replaced for each in seen if each.replaced is not None]
        if replaced:
            lines.append(row(name, "first LOAD in place of what ran there", replaced))
    print("| fault | until | median, s | worst, s | rounds |\n|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"the auditor found {len(complaints)} violations", *complaints, sep="\n")
    return bool(complaints)


def say(text: str) -> None:
    """Progress, beside the table."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.containers.measure", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fault", action="append", choices=[*FAULTS], help="only this one; may be repeated")
    chosen = parser.parse_args()
    with alone():
        sys.exit(anyio.run(measure, chosen.fault or [*FAULTS], chosen.rounds))


if __name__ == "__main__":
    main()
