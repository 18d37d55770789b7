"""What commands print on: a console for tables, and JSON."""

from __future__ import annotations

import os

import msgspec
from rich.console import Console
from rich.text import Text

from cdm.log import printable


def wide_console() -> Console:
    """Standard output. In a file or a pipe lines are not wrapped, so that names can be copied from there."""
    console = Console(highlight=False)
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return Console(highlight=False, width=10_000)


def plain(text: str, style: str = "") -> Text:
    """Text shown as it is, whoever wrote it: neither markup nor control characters have an effect."""
    return Text(printable(text), style)


def print_json(document: object) -> None:
    """Print a document as JSON on one line of its own, at once."""
    print(msgspec.json.encode(document).decode(), flush=True)
