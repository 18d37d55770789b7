"""What commands print on: standard output for people, remarks about errors, and JSON.

Where nobody looks (a pipe, a file) everything comes in plain rows. ``LLMFORMAT=1`` has it so everywhere: for language
models, which read no colours, and pay for every line that only decorates.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

import msgspec

from cdm.cli.drawing import Table, Text, in_plain_rows, plain
from cdm.log import printable, printable_json

__all__ = [
    "Screen",
    "Table",
    "Text",
    "coloured",
    "complain",
    "for_models",
    "looked_at",
    "plain",
    "print_json",
    "wide_console",
]


def for_models() -> bool:
    """Whether the output is for a language model."""
    return os.environ.get("LLMFORMAT") == "1"


def looked_at(stream: TextIO) -> bool:
    """Whether somebody looks at a stream: it is a terminal, or is said to be shown on one."""
    return not for_models() and (stream.isatty() or bool(os.environ.get("FORCE_COLOR")))


def coloured(stream: TextIO) -> bool:
    """Whether what is written there has colours."""
    return looked_at(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Screen:
    """Standard output. Made by `wide_console`."""

    def __init__(self) -> None:
        # A width says how it is to be drawn, too.
        self._drawn = looked_at(sys.stdout) or bool(os.environ.get("COLUMNS") and not for_models())

    def shown(self, what: Text | Table | str) -> str:
        """What is to be printed of it, line breaks and styles included."""
        if not self._drawn:
            return in_plain_rows(what)
        from cdm.cli.terminal import drawn  # noqa: PLC0415  # slow to import

        return drawn(what)

    def print(self, what: Text | Table | str) -> None:
        """Print it, with a line break at its end. Lines of text are not wrapped, so that they can be copied."""
        sys.stdout.write(self.shown(what))


def wide_console() -> Screen:
    """Standard output. In a file or a pipe lines are not wrapped, so that names can be copied from there."""
    return Screen()


def complain(text: str) -> None:
    """Print what went wrong on standard error."""
    if looked_at(sys.stderr):
        from cdm.cli.terminal import drawn_error  # noqa: PLC0415  # slow to import

        sys.stderr.write(drawn_error(printable(text)))
    else:
        sys.stderr.write(f"cdm: {printable(text)}\n")


def as_json(document: object) -> str:
    """A document as JSON, on one line, without what does anything to a terminal."""
    return printable_json(msgspec.json.encode(document).decode())


def print_json(document: object) -> None:
    """Print a document as JSON on one line of its own, at once."""
    print(as_json(document), flush=True)
