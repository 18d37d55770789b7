"""``cdm scale`` and ``cdm restart``: edits of one version's blueprint."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import anyio
from cyclopts.types import NonNegativeInt

from cdm.cli.editing import Plan, edited
from cdm.cli.following import finished
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.plans import artifact_of, restarting, scaling
from cdm.model.artifact import Service
from cdm.store.connection import connect


def scale(
    artifact: str,
    instances: NonNegativeInt,
    /,
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    wait: Annotated[bool, FLAG] = False,
    timeout: Annotated[float | None, duration()] = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Have another number of instances of a version.

    Parameters
    ----------
    artifact
        The version, group:name:version.
    instances
        How many.
    wait
        Wait until they serve.
    timeout
        Wait no longer than this.
    json
        Print JSON.
    """
    name = artifact_of(artifact)
    plan = partial(scaling, artifact=name, instances=instances)
    return run_edit(connection, name.service, plan, wait=wait, timeout=timeout, json=json)


def restart(
    artifact: str,
    /,
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    wait: Annotated[bool, FLAG] = False,
    timeout: Annotated[float | None, duration()] = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Replace every instance of a version by a new one, as a rollout does.

    Parameters
    ----------
    artifact
        The version, group:name:version.
    wait
        Wait until all new ones serve.
    timeout
        Wait no longer than this; the rollout goes on.
    json
        Print JSON.
    """
    name = artifact_of(artifact)
    plan = partial(restarting, artifact=name, stamp=stamp())
    return run_edit(connection, name.service, plan, wait=wait, timeout=timeout, json=json)


def stamp() -> str:
    """The time, as what is written into ``restarted``."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def run_edit(
    connection: ConnectionOptions, service: Service, plan: Plan, *, wait: bool, timeout: float | None, json: bool
) -> int:
    """Have a blueprint edited, and follow what becomes of it where that is wanted; returns the exit code."""
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    access = connection.access()

    async def run() -> int:
        async with connect(access, name="cdm", prefix=connection.prefix) as opened:
            await opened.check_server()
            made = await edited(opened, service, plan)
            return await finished(opened, made, wait=wait, timeout=timeout, json=json)

    return anyio.run(run)
