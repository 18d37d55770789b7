"""What the options of ``cdm node`` come to. It needs nothing of what reads options, for it goes where that is not."""

from __future__ import annotations

from typing import NamedTuple

from cdm.cli.http_server import HttpFiles
from cdm.cli.log_setup import LogFormat, LogLevel
from cdm.node.settings import NodeSettings


class Chosen(NamedTuple):
    """A node that is to run, as its options say."""

    settings: NodeSettings
    http: str | None
    """Where it serves HTTP, as `cdm.http.address.http_address` reads it; None: nowhere."""
    files: HttpFiles
    """With what it does."""
    traces: str | None
    """Where its traces are sent, a URL; None: nowhere."""
    log_format: LogFormat
    log_level: LogLevel
