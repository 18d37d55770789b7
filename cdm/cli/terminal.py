"""Draws lines and tables on a terminal, in colours and as wide as it is."""

from __future__ import annotations

import rich.table
import rich.text
from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement

from cdm.cli.drawing import Table, Text

ENDLESS = 100_000
"""Characters of a line that holds everything."""


def drawn(what: Text | Table | str) -> str:
    """What is to be written to standard output."""
    console = Console(highlight=False)
    with console.capture() as capture:
        # The terminal wraps a line that is too long for it, which can be copied as a whole.
        console.print(_fitted(what, console), soft_wrap=not isinstance(what, Table))
    return capture.get()


def drawn_error(text: str) -> str:
    """What is to be written to standard error of something that went wrong."""
    console = Console(stderr=True, highlight=False)
    with console.capture() as capture:
        console.print(rich.text.Text.assemble(("cdm:", "bold red"), f" {text}"), soft_wrap=True)
    return capture.get()


def _fitted(what: Text | Table | str, console: Console) -> RenderableType:
    """The same; where a table does not fit, all of its columns are folded, for the library would cut them off."""
    if not isinstance(what, Table):
        return renderable(what)
    made = _table(what)
    least = Measurement.get(console, console.options.update(max_width=ENDLESS), made).minimum
    return made if least <= console.width else _table(what, fold_all=True)


def renderable(what: Text | Table | str) -> RenderableType:
    """The same for the library that draws it."""
    if isinstance(what, str):
        return rich.text.Text(what)
    return _text(what) if isinstance(what, Text) else _table(what)


def _text(line: Text) -> rich.text.Text:
    return rich.text.Text.assemble(*line.pieces)


def _table(table: Table, *, fold_all: bool = False) -> rich.table.Table:
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
            no_wrap=not (folded or fold_all),
        )
    for row in table.rows:
        made.add_row(*map(_text, row))
    return made
