"""``cdm rollback``: the version, or the settings, that a service had before."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from cdm.cli.hand import rolling_back
from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.plans import service_of
from cdm.cli.scale import run_edit, stamp


def rollback(
    service: str,
    /,
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    to: str | None = None,
    wait: bool = True,
    timeout: Annotated[float | None, duration()] = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Have the version, or the settings, serve again that a service had before.

    Parameters
    ----------
    service
        The name, group:name.
    to
        Which version. [default: what was before]
    wait
        Wait until it serves.
    timeout
        Wait no longer than this; it goes on.
    json
        Print JSON.
    """
    plan = partial(rolling_back, to=to, stamp=stamp())
    return run_edit(connection, service_of(service), plan, wait=wait, timeout=timeout, json=json)
