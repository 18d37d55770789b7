"""A line for people who wait longer than a moment: what the command is at."""

from __future__ import annotations

from threading import Lock, Timer
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from cdm.cli.screen import plain

PATIENCE = 1.0
"""Seconds after which people want to know what is done."""
READING = "reading what the cluster holds"


class Patience:
    """Shows on a terminal what is done, once it has taken a while; also where the loop is busy. It vanishes at the end.

    Args:
        what: what is done at first.
        after: seconds.
        console: where; None: standard error.
    """

    def __init__(self, what: str, after: float = PATIENCE, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._status = Status(plain(what), console=self._console)
        self._timer = Timer(after, self._show)
        self._timer.daemon = True
        self._lock = Lock()
        self._over = not self._console.is_terminal

    def say(self, what: str) -> None:
        """This is done from now on."""
        self._status.update(plain(what))

    def _show(self) -> None:
        with self._lock:
            if not self._over:
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
            self._status.stop()
