"""What commands show people: lines of text and tables, with colours where somebody looks.

A drawing library would take long to import.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from unicodedata import combining, east_asian_width

from cdm.cli.screen import coloured, for_models, looked_at
from cdm.log import printable

APART = "  "
"""What is between two columns."""
ENDLESS = 10_000
"""Characters of a line in a file or a pipe: nothing is folded there, so that names can be copied."""
LEAST_INDENT = 2
"""Spaces before what goes on in another line, at least: a name that leaves no room for them is cut."""
LEAST_WIDTH = 10
"""Characters of a name or of labels that a line of a table has at least; what is longer is folded."""
_PART = r"\x1b\[[\d;]*m| +|[^ \x1b]+"
"""A colour, spaces, or a word of a line."""
_COLOUR = r"\x1b\[[\d;]*m"
_RESET = "\x1b[0m"
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def width_of(text: str) -> int:
    """How many columns of a screen a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 1 + (east_asian_width(each) in "WF") for each in text)


class Paint:
    """Puts text into a colour, or leaves it as it is; control characters in it never have an effect.

    Args:
        coloured: whether colours are shown.
    """

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def __call__(self, text: str, style: str = "") -> str:
        """The text as it is to be written; ``style``: some of bold, dim, red, green, yellow, cyan, or nothing."""
        shown = text if text.isprintable() else printable(text)
        if not (style and shown and self._coloured):
            return shown
        return f"\x1b[{';'.join(map(_CODES.__getitem__, style.split()))}m{shown}{_RESET}"


PLAIN = Paint(coloured=False)


class Sheet(NamedTuple):
    """What is written on: standard output."""

    paint: Paint
    width: int
    """Characters of a table's line."""


def sheet() -> Sheet:
    """Standard output as it is now."""
    seen = looked_at(sys.stdout)
    known = seen or (os.environ.get("COLUMNS") and not for_models())
    return Sheet(Paint(coloured=coloured(sys.stdout)), shutil.get_terminal_size().columns if known else ENDLESS)


def show(lines: Iterable[str]) -> None:
    """Write lines to standard output, at once; on a terminal each in as many as it takes there."""
    text = "".join(f"{part}\n" for line in lines for part in folded(line))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text if text.isascii() else text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def folded(line: str, indent: int | None = None) -> list[str]:
    """A line as standard output is given it: elsewhere than on a terminal whole. Arguments are those of `wrapped`."""
    return wrapped(line, shutil.get_terminal_size().columns, indent=indent) if looked_at(sys.stdout) else [line]


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cells: Sequence[str]
    style: Sequence[str] = ()
    """The colour of each cell; empty: none has any."""
    right: bool = False
    """Whether it is aligned to the right, as numbers are."""
    least: int = 0
    """Characters down to which cells may be folded where the line is too narrow; 0: they never are."""
    dull: bool = False
    """Whether it says nothing new: it is left out where the line is too narrow."""
    below: bool = False
    """Whether its cells are told below their rows where the line is too narrow."""


def listing(columns: Sequence[Column], on: Sheet) -> list[str]:
    """The lines of a table."""
    head, rows = table(columns, on)
    return [head, *(line for row in rows for line in row)] if rows else []


def table(columns: Sequence[Column], on: Sheet) -> tuple[str, list[list[str]]]:
    """The line of titles, and the lines of each row: several where cells had to be folded."""
    columns = [each for each in columns if each.cells]
    if not columns:
        return "", []
    if _wide([_width(each) for each in columns]) > on.width:
        columns = [each for each in columns if not each.dull]
    below: list[Column] = []
    if _wide([_width(each) for each in columns]) > on.width:
        below = [each for each in columns if each.below]
        columns = [each for each in columns if not each.below]
    widths = [_width(each) for each in columns]
    for at in range(len(columns) - 1, -1, -1):
        if columns[at].least and (over := _wide(widths) - on.width) > 0:
            widths[at] = max(widths[at] - over, min(columns[at].least, widths[at]))
    plainly = [
        (each, width, not each.least or max(map(width_of, each.cells)) <= width)
        for each, width in zip(columns, widths, strict=True)
    ]
    head = APART.join(_aligned(on.paint(each.title, "bold"), each.title, w, each.right) for each, w, _ in plainly)
    rows = []
    for at in range(len(columns[0].cells)):
        cells = [
            (each, width, [each.cells[at]] if whole else _in_lines(each.cells[at], width))
            for each, width, whole in plainly
        ]
        told = [on.paint(f"    {each.title}: {each.cells[at]}") for each in below if each.cells[at]]
        rows.append([*_row(cells, at, on.paint), *(part for line in told for part in wrapped(line, on.width))])
    return head.rstrip(), rows


def _wide(widths: Sequence[int]) -> int:
    return sum(widths) + len(APART) * (len(widths) - 1)


def _width(column: Column) -> int:
    return max(map(width_of, (column.title, *column.cells)))


def _row(cells: Sequence[tuple[Column, int, list[str]]], at: int, paint: Paint) -> list[str]:
    lines = []
    for number in range(max(len(parts) for _, _, parts in cells)):
        line = APART.join(
            _aligned(paint(text, column.style[at] if column.style else ""), text, width, column.right)
            for column, width, parts in cells
            for text in [parts[number] if number < len(parts) else ""]
        )
        lines.append(line.rstrip())
    return lines


def _aligned(painted: str, text: str, width: int, right: bool) -> str:
    gap = " " * (width - width_of(text))
    return f"{gap}{painted}" if right else f"{painted}{gap}"


def _in_lines(text: str, width: int) -> list[str]:
    """The text in lines of so many columns of a screen, at spaces where it has some."""
    lines: list[str] = []
    while width_of(text) > width:
        room = _fitting(text, width)
        at = text.rfind(" ", 1, room + 1)
        lines.append(text[: at if at > 0 else room])
        text = text[at + 1 if at > 0 else room :]
    return [*lines, text]


def _fitting(text: str, width: int) -> int:
    """How many characters of it, one at least, take so many columns of a screen at most."""
    fitting = (at for at in range(1, len(text) + 1) if width_of(text[:at]) > width)
    return max(next(fitting, len(text) + 1) - 1, 1)


def wrapped(line: str, width: int, *, indent: int | None = None) -> list[str]:
    """A line, colours in it included, in as many as it takes on a screen.

    Args:
        line: which.
        width: characters that fit.
        indent: spaces before the further ones; None: two more than before the first. Fewer where a word would not fit.
    """
    if width_of(line) <= width or width_of(plain := re.sub(_COLOUR, "", line)) <= width:
        return [line]
    room = len(plain) - len(plain.lstrip()) + 2 if indent is None else indent
    left = width - max(map(width_of, plain.split()), default=0)
    margin = " " * min(room, width // 2, left if left >= LEAST_INDENT else width)
    lines, now, used, style = list[str](), "", 0, ""
    for part in re.findall(_PART, line):
        if part.startswith("\x1b"):
            style = "" if part == _RESET else part
            now += part
            continue
        word = part
        while used + width_of(word) > width:
            room = 0 if used > len(margin) else _fitting(word, width - used)  # a word longer than a line is cut
            lines.append(f"{now}{word[:room]}".rstrip(" ") + (_RESET if style else ""))
            word, now, used = word[room:].lstrip(" "), margin + style, len(margin)
        now, used = now + word, used + width_of(word)
    return [*lines, now]
