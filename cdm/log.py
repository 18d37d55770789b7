"""Loggers that cost nothing until something is logged.

Importing structlog takes longer than most of cdm together (its console renderer brings a traceback renderer along); a
command that only shows its help should not wait for it.
"""

from __future__ import annotations

from typing import Any


class Log:
    """A named structlog logger that is made when it is first used.

    Args:
        name: which part of cdm logs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def __getattr__(self, level: str) -> Any:
        if self._logger is None:
            import structlog  # noqa: PLC0415  # see the module's docstring

            self._logger = structlog.get_logger(self._name)
        return getattr(self._logger, level)
