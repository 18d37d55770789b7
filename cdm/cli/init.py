"""``cdm init``: create the buckets."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from rich.console import Console

from cdm.artifacts.repository import Artifacts
from cdm.cli.connected import run_connected
from cdm.cli.options import REPLICAS, ConnectionOptions, Replicas
from cdm.cli.parameters import HERE, Json
from cdm.cli.screen import print_json
from cdm.node.buckets import BUCKET_PATIENCE, ensure, patiently
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.copies import Copy


def init(
    connection: ConnectionOptions = HERE,
    *,
    replicas: Annotated[Replicas | None, REPLICAS] = None,
    json: Json = False,
) -> int:
    """Create the buckets that are missing, and update the settings of those that exist.

    Parameters
    ----------
    replicas
        Replicas of all buckets, existing ones too; 3 needs three or more servers. [default: 1 for new buckets]
    """
    found = run_connected(connection, "cdm init", partial(_init, replicas=replicas))
    if json:
        print_json({"buckets": found})
        return 0
    console = Console(highlight=False)
    for name, what in found.items():
        console.print(f"{name}: {what}", markup=False)
    return 0


async def _init(connection: Connection, replicas: int | None) -> dict[str, str]:
    found: dict[str, str] = {}
    everything: list[Bucket | Artifacts] = [*buckets(connection).values(), Artifacts(connection)]
    for bucket in everything:
        new = await ensure(bucket, create=True, replicas=replicas or 1, change_replicas=replicas is not None)
        found[bucket.name] = "created" if new else "existed"
    for bucket in buckets(connection).values():
        made = await patiently(Copy(bucket).ensure, f"copy of {bucket.name}", BUCKET_PATIENCE)
        if made is not None:
            found[f"{bucket.name} for operators"] = "created" if made else "existed"
    return found
