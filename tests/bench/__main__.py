"""``python -m tests.bench [NAME…] [--json] [--quick] [--write]``: run benchmarks and show what they found."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from cdm.model.duration import seconds
from tests.bench.many import Size
from tests.bench.measure import Figure
from tests.bench.run import BENCHMARKS, results, simulated
from tests.bench.write_up import COLUMNS, cells, write_up

app = App(name="python -m tests.bench", help_format="plaintext")


def _known(_type: object, name: str) -> None:
    if name not in BENCHMARKS:
        raise ValueError(f"there are {', '.join(BENCHMARKS)}")


@app.default
def bench(
    *names: Annotated[str, Parameter(validator=_known)],
    json: bool = False,
    quick: bool = False,
    write: bool = False,
) -> int:
    """Measure cdm on servers of its own; exits with 1 where a benchmark broke, not where a goal was missed.

    Parameters
    ----------
    names
        Which benchmarks. [default: all]
    json
        Print a line of JSON for each figure.
    quick
        Small sizes and few repetitions, under a minute in all: shows that everything works, and orders of magnitude.
    write
        Put the figures into the README.md beside this file.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)  # in a file or a pipe nothing is to be cut off
    began = time.monotonic()
    found: list[Figure] = []
    broken: list[str] = []
    with Console(stderr=True).status("") as status:
        for name in names or BENCHMARKS:
            status.update(f"{name} …")
            before = time.monotonic()
            try:
                for figure in results(name, quick):
                    found.append(figure)
                    if json:
                        print(msgspec.json.encode(_line(figure)).decode(), flush=True)
            except Exception:  # noqa: BLE001  # the others are worth having
                traceback.print_exc()
                broken.append(name)
            print(f"{name} took {time.monotonic() - before:.0f} s", file=sys.stderr)
    if not json:
        console.print(_table(found))
        console.print(f"{time.monotonic() - began:.0f} s in all")
    if write:
        write_up(found)
    return 1 if broken else 0


@app.command
def many(
    *,
    nodes: int = 1_000,
    servers: Literal[1, 3] = 1,
    managers: int = 3,
    node_ttl: str = "10s",
    slices: float = 10,
    window: str = "60s",
    failovers: int = 10,
    json: bool = False,
    write: bool = False,
) -> int:
    """Simulate many nodes, on real servers and with real managers, and measure what they cost and how they fare.

    Parameters
    ----------
    nodes
        How many.
    servers
        Of NATS.
    managers
        Processes of the role manager; with one no fail-over is measured.
    node_ttl
        How long a node may be silent.
    slices
        Of each node; may be less than one.
    window
        For how long is counted what happens at rest.
    failovers
        How often the leader is killed.
    json
        Print a line of JSON for each figure.
    write
        Put the figures into the README.md beside this file.
    """
    found = simulated(Size(nodes, servers, managers, seconds(node_ttl), slices, seconds(window), failovers))
    if json:
        for figure in found:
            print(msgspec.json.encode(_line(figure)).decode())
    else:
        console = Console()
        (console if console.is_terminal else Console(width=220)).print(_table(found))
    if write:
        write_up(found)
    return 0


def _line(figure: Figure) -> dict[str, object]:
    return {**msgspec.structs.asdict(figure), "goals": [str(goal) for goal in figure.goals], "met": figure.met}


def _table(figures: list[Figure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        words = column in ("name", "unit", "goal", "note")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "note")
    for figure in figures:
        table.add_row(*cells(figure))
    return table


if __name__ == "__main__":
    sys.exit(app())
