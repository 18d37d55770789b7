"""A terminal that is taken over for as long as something is watched: only lines that changed are written anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from cdm.cli.rows import Paint, wrapped
from cdm.cli.streams import write_out

# Of the other screen; the cursor is hidden, and lines that are too long are cut, not wrapped.
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", b"\x1b[?7h\x1b[?25h\x1b[?1049l"
# What is written between these appears at once, where the terminal knows of it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class FullScreen:
    """Shows lines on the terminal's other screen, and gives back what was there before."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._size = os.terminal_size((0, 0))

    def __enter__(self) -> Self:
        write_out(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            write_out(_LEAVE)

    @property
    def width(self) -> int:
        """Characters of a line, as the terminal is now."""
        return _size().columns

    def again(self) -> None:
        """Something else may have been written: everything is, the next time."""
        self._size = os.terminal_size((0, 0))

    def draw(self, lines: Sequence[str], paint: Paint) -> None:
        """Show these lines; as many as fit."""
        size = _size()
        fitting = [part for line in lines for part in wrapped(line, size.columns)]
        if len(fitting) > size.lines:
            kept = max(size.lines - 1, 0)
            fitting = [*fitting[:kept], paint(f"{len(fitting) - kept} more lines; `cdm status` shows all", "dim")]
        out, before = [], self._shown
        if size != self._size:
            out, before, self._size = ["\x1b[2J"], [], size
        for number, line in enumerate(fitting):
            if number >= len(before) or before[number] != line:
                out.append(f"\x1b[{number + 1};1H\x1b[K{line}")
        if len(before) > len(fitting):
            out.append(f"\x1b[{len(fitting) + 1};1H\x1b[J")
        self._shown = fitting
        if out:
            write_out("".join((_BEGIN, *out, _END)).encode(errors="replace"))


def _size() -> os.terminal_size:
    """The terminal's; not what variables say, which stays when it is resized."""
    size = os.get_terminal_size(1)
    return size if size.columns and size.lines else os.terminal_size((80, 24))
