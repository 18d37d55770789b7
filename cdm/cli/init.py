"""``cdm init``: create the buckets."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
import msgspec
from cyclopts import Parameter
from rich.console import Console

from cdm.artifacts.repository import Artifacts
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.node.node import ensure
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Access, connect


def init(
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    replicas: Annotated[Literal[1, 2, 3, 4, 5] | None, Parameter(env_var="CDM_REPLICAS")] = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Create the buckets that are missing, and update the settings of those that exist.

    Parameters
    ----------
    replicas
        Replicas of all buckets, existing ones too; 3 needs three or more servers. [default: 1 for new buckets]
    json
        Print JSON.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    found = anyio.run(_init, connection.access(), connection.prefix, replicas)
    if json:
        print(msgspec.json.encode({"buckets": found}).decode())
        return 0
    console = Console(highlight=False)
    for name, what in found.items():
        console.print(f"{name}: {what}", markup=False)
    return 0


async def _init(access: Access, prefix: str, replicas: int | None) -> dict[str, str]:
    found: dict[str, str] = {}
    async with connect(access, name="cdm init", prefix=prefix) as connection:
        await connection.check_server()
        everything: list[Bucket | Artifacts] = [*buckets(connection).values(), Artifacts(connection)]
        for bucket in everything:
            new = await ensure(bucket, create=True, replicas=replicas or 1, change_replicas=replicas is not None)
            found[bucket.name] = "created" if new else "existed"
    return found
