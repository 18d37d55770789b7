"""``cdm init``: create the buckets."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
import msgspec
from cyclopts import Parameter
from rich.console import Console

from cdm.cli.options import ConnectionOptions
from cdm.runtime import ensure
from cdm.store.bucket import buckets
from cdm.store.connection import Access, connect
from cdm.telemetry import LogFormat, LogLevel, configure_logs


def init(
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    replicas: Annotated[Literal[1, 2, 3, 4, 5], Parameter(env_var="CDM_REPLICAS")] = 1,
    json: bool = False,
) -> int:
    """Create the buckets that are missing, and bring those that are there up to date.

    Safe to repeat; no value is touched.

    Parameters
    ----------
    replicas
        Replicas of every bucket: 3 on a NATS cluster of three or more servers.
    json
        Print JSON.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    created = anyio.run(_init, connection.access(), connection.prefix, replicas)
    if json:
        print(msgspec.json.encode({"buckets": created}).decode())
        return 0
    console = Console(highlight=False)
    for name, new in created.items():
        console.print(f"{name}: {'created' if new else 'was there'}, {replicas} replica{'s' * (replicas > 1)}")
    return 0


async def _init(access: Access, prefix: str, replicas: int) -> dict[str, bool]:
    async with connect(access, name="cdm init", prefix=prefix) as connection:
        await connection.check_server()
        return {
            bucket.name: await ensure(bucket, create=True, replicas=replicas) for bucket in buckets(connection).values()
        }
