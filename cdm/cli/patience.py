"""A line for people who wait longer than a moment: what the command is at."""

from __future__ import annotations

import sys
from threading import Lock, Timer
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from cdm.cli.screen import looked_at
from cdm.log import printable

if TYPE_CHECKING:
    from rich.status import Status
    from rich.text import Text

PATIENCE = 1.0
"""Seconds after which people want to know what is done."""
READING = "reading what the cluster holds"


class Patience:
    """Shows on a terminal what is done, once it has taken a while; also where the loop is busy. It vanishes at the end.

    Args:
        what: what is done at first.
        after: seconds.
        stream: where; None: standard error.
    """

    def __init__(self, what: str, after: float = PATIENCE, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._what = what
        self._status: Status | None = None
        self._timer = Timer(after, self._show)
        self._timer.daemon = True
        self._lock = Lock()
        self._over = not looked_at(self._stream)

    def say(self, what: str) -> None:
        """This is done from now on."""
        with self._lock:
            self._what = what
            if self._status is not None:
                self._status.update(_shown(what))

    def _show(self) -> None:
        # Slow to import, and most commands are over by now.
        from rich.console import Console  # noqa: PLC0415
        from rich.status import Status  # noqa: PLC0415

        with self._lock:
            if not self._over:
                self._status = Status(_shown(self._what), console=Console(file=self._stream))
                self._status.start()

    def __enter__(self) -> Self:
        if not self._over:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._status is not None:
                self._status.stop()


def _shown(what: str) -> Text:
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(what))
