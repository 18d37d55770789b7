"""One look at the whole cluster, for commands that show it."""

from __future__ import annotations

from cdm import clock
from cdm.cli.intending import intent_writers
from cdm.cli.report import ClusterReport, report
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot


async def look_at_cluster(connection: Connection) -> ClusterReport:
    """The whole cluster as it is now; errors as those of `snapshot`."""
    messages, now = await snapshot(connection), clock.now()
    old = [bucket.name for bucket in buckets(connection).values() if (await bucket.state()).rolls_up]
    return report(messages, now, await intent_writers(connection, messages), old)
