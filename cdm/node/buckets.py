"""Waits for JetStream and its buckets while a node, or a command, starts."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

from cdm import clock
from cdm.artifacts.repository import Artifacts
from cdm.errors import AccessDenied, BucketMissing, JetStreamAway, StoreError, Unsuitable
from cdm.log import Lasting, Log
from cdm.store.bucket import Bucket
from cdm.store.events import EventStream

if TYPE_CHECKING:
    from cdm.node.part import Ground

log = Log("cdm.node")

T = TypeVar("T")

BUCKET_PATIENCE = 60.0
"""Seconds that a starting node waits for JetStream to make its buckets (a cluster may be electing), and for a server
that has none: its cluster, or the hub of which it is a leaf, may be coming up, or it may be about to end."""
JETSTREAM_PAUSE = 0.5
"""Seconds between two attempts."""


async def patiently(work: Callable[[], Awaitable[T]], what: str, patience: float = math.inf) -> T:
    """Do something once JetStream is up: a cluster may be electing, or too few of its servers may run yet.

    Args:
        work: what to do.
        what: what it is for, as it is logged.
        patience: seconds after which its error is raised.

    Raises:
        StoreError: one that waiting does not mend, at once; that there is no JetStream, when there was none for
            `BUCKET_PATIENCE`; any other when ``patience`` is over.
    """
    deadline = clock.now() + patience
    waits = Lasting(log, "JetStream is ready", level="info")
    lacks = Lasting(log, "JetStream is ready")
    until = deadline
    # stamina was tried, see `cdm.store.objects`; its own line at each retry would not say what is waited for.
    while True:
        try:
            done = await work()
        except StoreError as error:
            now, told = clock.now(), waits
            if isinstance(error, JetStreamAway):
                # It may also be a setting, which looks the same: so this ends.
                until, told = min(until, now + BUCKET_PATIENCE), lacks
            elif isinstance(error, (Unsuitable, BucketMissing, AccessDenied)):
                raise
            else:
                until = deadline
            if now >= until:
                raise
            told.goes_on(now, "waiting for JetStream", what=what, reason=str(error))
        else:
            for told in (waits, lacks):
                told.over(clock.now(), what=what)
            return done
        await anyio.sleep(JETSTREAM_PAUSE)


async def ensure(
    bucket: Bucket | Artifacts | EventStream, *, create: bool, replicas: int, change_replicas: bool = False
) -> bool:
    """`Bucket.ensure`, patient with a JetStream that is still coming up."""
    return await patiently(
        partial(bucket.ensure, create=create, replicas=replicas, change_replicas=change_replicas),
        f"bucket {bucket.name}",
        BUCKET_PATIENCE,
    )


async def provide_buckets(ground: Ground) -> None:
    """Check the buckets that managers need, or make them; waits while JetStream itself is not ready.

    Raises:
        Unsuitable: a bucket cannot do what is needed.
        BucketMissing: a bucket is not there and may not be created.
    """
    settings = ground.settings
    for bucket in ground.buckets.values():
        await ensure(bucket, create=settings.create, replicas=settings.replicas)
    if settings.create:
        try:
            await ensure(Artifacts(ground.connection), create=True, replicas=settings.replicas)
        except AccessDenied as error:
            # A cluster whose agents are the user's own does without; whoever pushes an artifact is told.
            log.warning("no bucket for artifacts", reason=str(error))
