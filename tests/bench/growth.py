"""``growth``: the same figures in clusters of 10, 100 and 1,000 nodes, with the slopes, and as a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.bench.deciding import World, deltas
from tests.bench.leading import activations, death
from tests.bench.measure import Figure, figure, seconds
from tests.bench.playground import playground
from tests.bench.reading import filled, mirrored
from tests.bench.resting import at_rest
from tests.bench.writing import commanded, put_many, put_one

SLICES = 100
"""Slices a node."""
PLOT = Path(__file__).with_name("growth.png")


async def _mirror(nodes: int) -> list[float]:
    count = nodes * SLICES
    async with playground() as on:
        await filled(on, count, nodes)
        return [await mirrored(on, count) * 1e6 / count for _ in range(5)]


async def _commands(nodes: int) -> list[float]:
    count = nodes * 50
    runs = [await commanded(1, nodes, count, lambda on: put_one(on, count), raw_first=False) for _ in range(3)]
    return [took * 1e6 / count for took, _, _ in runs]


async def _many(nodes: int) -> list[float]:
    count = nodes * 10
    runs = [await commanded(1, nodes, 5 * count, lambda on: put_many(on, count, 5), raw_first=False) for _ in range(3)]
    return [took * 1e6 / (5 * count) for took, _, _ in runs]


async def _delta(nodes: int) -> list[float]:
    return deltas(World(nodes * SLICES, nodes, instances=5), 200)


async def _dense_delta(nodes: int) -> list[float]:
    return deltas(World(nodes * SLICES, nodes, instances=nodes), 50)


async def _round(nodes: int) -> list[float]:
    world = World(nodes * SLICES, nodes)
    return [seconds(world.round) * 1e9 / (nodes * SLICES) for _ in range(5)]


async def _activation(nodes: int) -> list[float]:
    return (await activations(nodes * SLICES, nodes, 5))[0]


async def _death(nodes: int) -> list[float]:
    return [(await death(nodes, nodes * SLICES))[0] * 1000 for _ in range(3)]


async def _rest(nodes: int) -> list[float]:
    return [(await at_rest(nodes, nodes * SLICES, 10)).messages]


class Curve:
    """A figure that is taken in clusters of several sizes.

    Args:
        name: what it is called.
        unit: what it is counted in.
        measure: takes a number of nodes.
        sizes: numbers of nodes, where they are not the usual ones.
    """

    def __init__(
        self, name: str, unit: str, measure: Callable[[int], Awaitable[list[float]]], sizes: Sequence[int] = ()
    ) -> None:
        self.name = name
        self.unit = unit
        self.measure = measure
        self.sizes = sizes


CURVES = (
    Curve("mirror", "µs/slice", _mirror),
    Curve("commands", "µs/command", _commands),
    Curve("many-blueprints", "µs/command", _many),
    Curve("delta", "µs", _delta),
    Curve("delta of a blueprint on every node", "µs", _dense_delta),
    Curve("no-drift round", "ns/slice", _round),
    Curve("activation", "ms", _activation),
    Curve("node-death (100 slices)", "ms", _death),
    # Real nodes, all in this process: a thousand of them do not fit two cores.
    Curve("rest", "messages/s", _rest, (10, 30, 100)),
)


async def growth(quick: bool) -> list[Figure]:
    """All curves; draws them, too, unless it has to be quick."""
    found: list[Figure] = []
    drawn: list[tuple[Curve, Sequence[int], list[float], float]] = []
    for curve in CURVES[3:4] if quick else CURVES:
        sizes = (10, 100) if quick else curve.sizes or (10, 100, 1_000)
        values = [await curve.measure(size) for size in sizes]
        medians = [statistics.median(each) for each in values]
        steep = slope(sizes, medians)
        for size, each in zip(sizes, values, strict=True):
            note = f"slope {steep:+.2f} from {sizes[0]} to {sizes[-1]:,} nodes"
            found.append(figure(f"growth {curve.name} {size:,}", curve.unit, each, note=note))
        drawn.append((curve, sizes, medians, steep))
    if not quick:
        draw(drawn)
    return found


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The exponent with which the value grows with the size: 0 is flat, 1 linear, 2 quadratic."""
    fitted = statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values])
    return fitted.slope


def draw(curves: Sequence[tuple[Curve, Sequence[int], list[float], float]]) -> None:
    """Draw each curve relative to its smallest cluster."""
    # Here, so that only this benchmark needs it.
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415

    picture = Picture(figsize=(12, 6), layout="tight")
    axes = picture.subplots()
    for curve, sizes, values, steep in curves:
        relative = [value / values[0] for value in values]
        axes.plot(sizes, relative, marker="o", label=f"{curve.name} ({curve.unit}): slope {steep:+.2f}")
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="relative to 10 nodes", title="Growth")
    axes.grid(which="both", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    picture.savefig(PLOT, dpi=110)
