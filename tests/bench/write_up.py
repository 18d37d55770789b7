"""Writes the table of results into README.md, between its two markers."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.measure import MIB, Figure
from tests.harness.servers import binary

README = Path(__file__).with_name("README.md")
COLUMNS = ("name", "median", "min", "max", "unit", "baseline", "ratio", "n", "peak MiB", "goal", "met", "note")
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def cells(figure: Figure) -> tuple[str, ...]:
    """A figure as a row of the table."""
    return (
        figure.name,
        *(_number(number) for number in (figure.value, figure.low, figure.high)),
        figure.unit,
        "" if figure.baseline is None else _number(figure.baseline),
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        str(figure.n),
        f"{figure.peak / MIB:,.0f}" if figure.peak else "",
        ", ".join(map(str, figure.goals)),
        {True: "yes", False: "NO", None: ""}[figure.met],
        figure.note,
    )


def write_up(figures: Sequence[Figure]) -> None:
    """Replace the rows of these figures in README.md, add those that are new, and say where and when."""
    text = README.read_text()
    before, _, rest = text.partition(_BEGIN)
    old, _, after = rest.partition(_END)
    rows = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| ")}
    rows.pop(COLUMNS[0], None)
    for figure in figures:
        rows[figure.name] = _row(cells(figure))
    table = [_row(COLUMNS), "|" + "---|" * len(COLUMNS), *rows.values()]
    README.write_text("\n".join([before + _BEGIN, _where(), "", *table, _END]) + after)


def _row(words: Sequence[str]) -> str:
    return f"| {' | '.join(word or ' ' for word in words)} |"


def _where() -> str:
    """The machine, the date and the versions."""
    version = subprocess.run([binary(), "--version"], capture_output=True, check=True, text=True).stdout
    found = re.search(r"v(\d\S*)", version)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), {platform.system()}, "
        f"Python {platform.python_version()}, nats-server {found[1] if found else '?'}, file storage, "
        f"load average at the end {os.getloadavg()[0]:.1f}"
    )


def _number(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
