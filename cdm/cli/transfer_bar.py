"""A progress bar for what is pushed, or read."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cdm.cli.patience import PATIENCE
from cdm.cli.screen import looked_at

if TYPE_CHECKING:
    from rich.progress import Progress


class TransferBar:
    """A progress bar for people who wait longer than a moment."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """So much is done, of so much."""
        if not looked_at(sys.stderr) or time.monotonic() - self._began < PATIENCE:
            return
        if self._bar is None:
            self._bar = _bar(self._what, total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(what: str, total: int) -> Progress:
    # Slow to import, and most transfers are over by now.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    made = Progress(*columns, console=Console(stderr=True), transient=True)
    made.add_task(what, total=total)
    return made
