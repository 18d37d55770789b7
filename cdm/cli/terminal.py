"""Draws lines and tables on a terminal, in colours and as wide as it is."""

from __future__ import annotations

import rich.table
import rich.text
from rich import box
from rich.console import Console, RenderableType

from cdm.cli.drawing import Table, Text


def drawn(what: Text | Table | str) -> str:
    """What is to be written to standard output."""
    console = Console(highlight=False)
    with console.capture() as capture:
        # The terminal wraps a line that is too long for it, which can be copied as a whole.
        console.print(renderable(what), soft_wrap=not isinstance(what, Table))
    return capture.get()


def drawn_error(text: str) -> str:
    """What is to be written to standard error of something that went wrong."""
    console = Console(stderr=True, highlight=False)
    with console.capture() as capture:
        console.print(rich.text.Text.assemble(("cdm:", "bold red"), f" {text}"), soft_wrap=True)
    return capture.get()


def renderable(what: Text | Table | str) -> RenderableType:
    """The same for the library that draws it."""
    if isinstance(what, str):
        return rich.text.Text(what)
    return _text(what) if isinstance(what, Text) else _table(what)


def _text(line: Text) -> rich.text.Text:
    return rich.text.Text.assemble(*line.pieces)


def _table(table: Table) -> rich.table.Table:
    made = rich.table.Table(
        title=f"\n{table.title}" if table.title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="",
    )
    for column in table.columns:
        folded = column in table.folded
        made.add_column(
            column,
            justify="right" if column in table.right else "left",
            overflow="fold",
            no_wrap=not folded,
            min_width=table.least if folded and table.least else None,
        )
    for row in table.rows:
        made.add_row(*map(_text, row))
    return made
