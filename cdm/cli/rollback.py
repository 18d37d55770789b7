"""``cdm rollback``: the version, or the settings, that a service had before."""

from __future__ import annotations

from functools import partial

from cdm.cli.following import run_edit
from cdm.cli.hand import rolling_back
from cdm.cli.lasting import WAIT, WaitOptions
from cdm.cli.parameters import ServiceName
from cdm.cli.plans import stamp


def rollback(
    service: ServiceName,
    /,
    *,
    to: str | None = None,
    wait: bool = True,
    options: WaitOptions = WAIT,
) -> int:
    """Have the version, or the settings, serve again that a service had before.

    Parameters
    ----------
    to
        Which version. [default: what was before]
    wait
        Wait until it serves.
    """
    return run_edit(options, service, partial(rolling_back, to=to, stamp=stamp()), wait=wait)
