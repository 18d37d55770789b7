"""Who looks at what commands print, what went wrong, and JSON.

Where nobody looks (a pipe, a file) everything comes in plain rows (`cdm.cli.rows`). ``LLMFORMAT=1`` has it so
everywhere: for language models, which read no colours, and pay for every line that only decorates.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

import msgspec

from cdm.log import printable, printable_json


def for_models() -> bool:
    """Whether the output is for a language model."""
    return os.environ.get("LLMFORMAT") == "1"


def looked_at(stream: TextIO) -> bool:
    """Whether somebody looks at a stream: it is a terminal, or is said to be shown on one."""
    return not for_models() and (stream.isatty() or bool(os.environ.get("FORCE_COLOR")))


def coloured(stream: TextIO) -> bool:
    """Whether what is written there has colours."""
    return looked_at(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def complain(text: str) -> None:
    """Print what went wrong on standard error, on one line, so that what it names can be copied."""
    begin = "\x1b[1;31mcdm:\x1b[0m" if coloured(sys.stderr) else "cdm:"
    sys.stderr.write(f"{begin} {printable(text)}\n")


def as_json(document: object) -> str:
    """A document as JSON, on one line, without what does anything to a terminal."""
    return printable_json(msgspec.json.encode(document).decode())


def print_json(document: object) -> None:
    """Print a document as JSON on one line of its own, at once."""
    print(as_json(document), flush=True)
