"""Loggers that cost nothing until something is logged.

Importing structlog takes longer than most of cdm together (its console renderer brings a traceback renderer along); a
command that only shows its help, or has nothing to complain of, should not wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
_LEVELS["exception"] = logging.ERROR


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

    def __getattr__(self, level: str) -> Any:
        if _LEVELS.get(level, logging.CRITICAL) < _Setup.threshold:
            return _nothing
        if _Setup.configure is not None:
            configure, _Setup.configure = _Setup.configure, None
            configure()
        if self._logger is None:
            import structlog  # noqa: PLC0415  # see the module's docstring

            self._logger = structlog.get_logger(self._name)
        return getattr(self._logger, level)


def _nothing(*_: Any, **__: Any) -> None:
    pass
