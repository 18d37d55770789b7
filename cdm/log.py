"""Loggers that cost nothing until something is logged.

Importing structlog takes longer than most of cdm together (its console renderer brings a traceback renderer along); a
command that only shows its help, or has nothing to complain of, should not wait for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
}


HARMFUL = r"\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters beyond the first 32 that do something to a terminal, or turn the direction of writing: text would be read
otherwise than it is. Part of a class of a regular expression."""
_CONTROL = rf"[\x00-\x1f{HARMFUL}]"


_CONTROL_IN_JSON = rf"[{HARMFUL}]"


def printable_json(document: str) -> str:
    """The same for JSON, which lets some control characters pass: they are written as escapes, and mean the same."""
    return re.sub(_CONTROL_IN_JSON, lambda found: f"\\u{ord(found[0]):04x}", document)


def printable(text: str) -> str:
    r"""The text without control characters: these are shown as e.g. ``\x1b``, so that they do nothing to a terminal."""
    if text.isprintable():  # as nearly all is that is logged: so much is seen at once
        return text
    return re.sub(_CONTROL, lambda found: repr(found[0])[1:-1], text)


class _Setup:
    """What is to be done before the first line is logged."""

    threshold = logging.NOTSET
    configure: Callable[[], None] | None = None


def on_first_line(configure: Callable[[], None], threshold: int) -> None:
    """Have ``configure`` called before the first line that is logged; nothing below ``threshold`` is."""
    _Setup.configure, _Setup.threshold = staticmethod(configure), threshold


class Log:
    """A named structlog logger that is made when it is first used.

    Args:
        name: which part of cdm logs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def tells(self, level: str) -> bool:
        """Whether anybody will see a line of this level: worth asking where a line takes long to make."""
        return _LEVELS.get(level, logging.CRITICAL) >= _Setup.threshold

    def __getattr__(self, level: str) -> Any:
        if not self.tells(level):
            return _nothing
        if (configure := _Setup.configure) is not None:
            configure()  # twice where another thread logs meanwhile, whose line would else go anywhere
            _Setup.configure = None
        if self._logger is None:
            import structlog  # noqa: PLC0415  # see the module's docstring

            self._logger = structlog.get_logger(self._name)
        return getattr(self._logger, level)


class Ration:
    """How many lines may be logged: ``size`` at once, and then as many in ``seconds`` (token bucket).

    Others are counted.
    """

    def __init__(self, size: int, seconds: float = 1.0) -> None:
        self._size = size
        self._seconds = seconds
        self._left = float(size)
        self._at = float("-inf")
        self._missed = 0
        self._told_at = float("-inf")

    def take(self, now: float) -> bool:
        """Whether one more line may be logged at this time, in seconds on any clock."""
        self._left = min(self._left + max(now - self._at, 0) * self._size / self._seconds, self._size)
        self._at = now
        if self._left < 1:
            self._missed += 1
            return False
        self._left -= 1
        return True

    def missed(self, now: float) -> int:
        """How many lines were refused since this last said so; 0 before `missed_at`, or where none was."""
        if now < self.missed_at:
            return 0
        missed, self._missed, self._told_at = self._missed, 0, now
        return missed

    @property
    def missed_at(self) -> float:
        """When it is time to tell how many were refused, on the clock of `take`: once in ``seconds``; inf: none was."""
        return self._told_at + self._seconds if self._missed else float("inf")


class Lasting:
    """Something that lasts while one tries again and again: told when it begins, then ever more seldom, and at its end.

    Each line after the first tells for how many ``seconds`` it has lasted. What is left out is told at the level debug.

    Args:
        log: where it is told.
        end: the line that tells its end, at the level info.
        level: that of the other lines.
        again: seconds from the first line to the second; doubled from each to the next.
        longest: seconds between two lines, at most.
    """

    def __init__(
        self, log: Log, end: str, *, level: str = "warning", again: float = 10.0, longest: float = 300.0
    ) -> None:
        self._log = log
        self._end = end
        self._level = level
        self._again = again
        self._longest = longest
        self._began: float | None = None
        """When it began; None: it is not so."""
        self._due = float("-inf")
        self._pause = again

    def goes_on(self, now: float, line: str, /, **about: Any) -> None:
        """It is so at this time, in seconds on any clock: tell it, if that is due.

        Args:
            now: the time.
            line: what is told.
            about: what goes with it.
        """
        if self._began is None:
            self._began, self._pause, self._due = now, self._again, now
        if now < self._due:
            self._log.debug(line, **about)
            return
        getattr(self._log, self._level)(line, **about, **_for(now - self._began))
        self._due = now + self._pause
        self._pause = min(2 * self._pause, self._longest)

    def over(self, now: float, /, **about: Any) -> None:
        """It is not so, or no more: tell that it has ended, if it was so."""
        if self._began is not None:
            self._log.info(self._end, **about, **_for(now - self._began))
            self.drop()

    def drop(self) -> None:
        """Nobody tries any more: its end is not told."""
        self._began = None


def _for(seconds: float) -> dict[str, float]:
    return {"seconds": round(seconds, 1)} if seconds else {}


def _nothing(*_: Any, **__: Any) -> None:
    pass
