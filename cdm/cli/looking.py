"""One look at the whole cluster, for commands that show it."""

from __future__ import annotations

from cdm import clock
from cdm.cli.gathering import Gathered
from cdm.cli.intending import intent_writers
from cdm.cli.report import ClusterReport
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.snapshot import look


async def look_at_cluster(connection: Connection) -> ClusterReport:
    """The whole cluster as it is now; errors as those of `look`."""
    (messages, streams), now = await look(connection), clock.now()
    gathered = Gathered.of(messages)
    # In the order in which all buckets are told, whichever answered first.
    old = [bucket.name for bucket in buckets(connection).values() if streams[bucket.name].rolls_up]
    return gathered.report(now, await intent_writers(connection, there=bool(gathered.intents)), old)
