"""Logs and remarks: what goes to standard error."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from enum import StrEnum, unique
from types import ModuleType
from typing import Any, TextIO

from cdm.cli.screen import coloured
from cdm.log import on_first_line, printable
from cdm.sparing import without


@unique
class LogFormat(StrEnum):
    """Format of log lines."""

    CONSOLE = "console"
    JSON = "json"


@unique
class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def remark(text: str) -> None:
    """Tell the user something besides a command's output: a line on standard error."""
    sys.stderr.write(f"cdm: {printable(text)}\n")


def configure_logs(form: LogFormat, level: LogLevel, **bound: Any) -> None:
    """Set up logging for this process; ``bound`` goes with every line."""
    threshold = getattr(logging, level.upper())
    stream = sys.stderr
    on_first_line(lambda: _configure(form, threshold, bound, stream), threshold)
    # The client logs through the standard library, too, what reaches cdm as a callback.
    logging.getLogger("nats").addHandler(logging.NullHandler())
    logging.getLogger("nats").propagate = False
    # A warning about asyncio's own code, whenever a TLS connection ends.
    logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())


def _configure(form: LogFormat, threshold: int, bound: dict[str, Any], stream: TextIO) -> None:
    structlog = _structlog()
    # The prettier formatter prints local variables, too: secrets may be among them.
    plain: dict[str, Any] = {"exception_formatter": structlog.dev.plain_traceback}
    finish: list[Any]
    if form is LogFormat.JSON:
        finish = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        finish = [
            _printable,
            structlog.dev.ConsoleRenderer(**plain, colors=coloured(stream), pad_event_to=24),
        ]
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {**event, **bound},
            structlog.processors.add_log_level,
            _without_none,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: structlog.WriteLogger(_StreamThatMayBreak(stream)),
        cache_logger_on_first_use=True,
    )


def _structlog() -> ModuleType:
    """The library, without two that are not needed here: rich, with which it would draw traces, larger than all the
    rest of it, and greenlet, which brings the library of C++ along.
    """
    with without("rich", "greenlet"):
        import structlog  # noqa: PLC0415  # slow to import, and not needed by a process that logs nothing
    return structlog


class _StreamThatMayBreak:
    """Writes to a stream that may fail (its reader is gone, the disk is full): then the line is lost, and nothing else.

    It bypasses the stream's buffer: what is left there would be written when the process ends, fail again, and change
    the exit code.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()

    def write(self, text: str) -> None:
        """Write, if possible."""
        left = memoryview(text.encode(errors="backslashreplace"))
        with suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def flush(self) -> None:
        """Nothing waits to be written."""


def _printable(_logger: Any, _method: str, event: Any) -> Any:
    # What is not a string is shown as its `repr`, which has no control characters.
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _without_none(_logger: Any, _method: str, event: Any) -> Any:
    return {name: value for name, value in event.items() if value is not None}
