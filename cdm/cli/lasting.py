"""Options of commands whose effect takes its time: it may be followed, or waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.parameters import HERE, Json
from cdm.errors import UsageError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Options of a command whose rollout may be followed afterwards."""

    connection: ConnectionOptions = HERE
    watch: Annotated[bool, FLAG] = False
    """Follow the rollout until it is over."""
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """Options of a command that may be waited for."""

    connection: ConnectionOptions = HERE
    timeout: Annotated[float | None, duration()] = None
    """Wait no longer than this; what was begun goes on."""
    json: Json = False


def check_timeout(options: WaitOptions, *, wait: bool) -> None:
    """Refuse ``--timeout`` where nothing is waited for; raises `UsageError`."""
    if options.timeout is not None and not wait:
        raise UsageError("--timeout: nothing is waited for; leave it out, or --wait for the end")


WATCH, WAIT = WatchOptions(), WaitOptions()
"""Neither option given."""
