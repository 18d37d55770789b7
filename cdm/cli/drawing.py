"""What commands show people: lines of text with styles, and tables; `cdm.cli.screen` shows them.

These are values. The library that draws them on a terminal takes long to import, and a pipe does not need it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from unicodedata import combining, east_asian_width

from cdm.log import printable

GAP = "   "
"""What stands between two columns."""


def cells(text: str) -> int:
    """How many columns of a screen a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 1 + (east_asian_width(each) in "WF") for each in text)


class Text:
    """A line, in pieces that each have a style, as ``bold red``; it may have line breaks in it."""

    __slots__ = ("pieces",)

    def __init__(self, text: str = "", style: str = "") -> None:
        self.pieces = [(text, style)]

    @classmethod
    def assemble(cls, *parts: str | tuple[str, str] | Text) -> Text:
        """One line of several parts, each with a style of its own, or none."""
        line = cls()
        line.pieces.clear()
        for part in parts:
            line.append(part)
        return line

    def append(self, part: str | tuple[str, str] | Text) -> None:
        """Add a part at the end."""
        if isinstance(part, Text):
            self.pieces += part.pieces
        else:
            self.pieces.append((part, "") if isinstance(part, str) else part)

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces)


def plain(text: str, style: str = "") -> Text:
    """Text shown as it is, whoever wrote it: control characters have no effect."""
    return Text(printable(text), style)


class Table:
    """A table, which shows its columns' names in the first line.

    Args:
        columns: their names.
        title: what stands above it, below an empty line.
        right: the columns whose cells are aligned to the right.
        folded: those whose cells may be folded where the screen is narrow; None: all of them.
    """

    def __init__(
        self,
        *columns: str,
        title: str = "",
        right: Collection[str] = (),
        folded: Collection[str] | None = None,
    ) -> None:
        self.columns = columns
        self.title = title
        self.right = right
        self.folded = columns if folded is None else folded
        self.rows: list[Sequence[Text]] = []

    def add_row(self, *row: Text | str) -> None:
        """Add a row: a cell for each column."""
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in row])


def in_plain_rows(what: Text | Table | str) -> str:
    """What a pipe, a file, or a program is given: no styles, no lines around or between cells, nothing is folded."""
    if isinstance(what, str):
        return f"{what}\n"
    if isinstance(what, Text):
        return f"{what}\n"
    rows = [what.columns, *([*map(str, row)] for row in what.rows)]
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    shown = ["", what.title] if what.title else []
    for row in rows:
        padded = [
            " " * (width - cells(cell)) + cell if name in what.right else cell + " " * (width - cells(cell))
            for name, cell, width in zip(what.columns, row, widths, strict=True)
        ]
        shown.append(GAP.join(padded).rstrip())
    return "".join(f"{line}\n" for line in shown)
