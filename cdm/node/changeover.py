"""Takes from buckets what managers of an earlier version needed of them, once none of those is registered.

They needed the server's markers of what expired, and where the server leaves those it also lets clients roll keys up:
whoever may write one key of a bucket can have all others removed.
"""

from __future__ import annotations

from collections.abc import Collection

from cdm import clock
from cdm.errors import AccessDenied, StoreError, Unsuitable
from cdm.log import Log, Ration
from cdm.manager.topology import Topology
from cdm.model.node import EXPIRY_BY_CLOCK, EXPIRY_IN_WORDS, managers_without, waits_for
from cdm.store.bucket import Bucket

log = Log("cdm.node")

COMPLAINT_INTERVAL = 600.0
"""Seconds between two lines that say that this node may not change the buckets."""


class Changeover:
    """The leader's part in it.

    Args:
        buckets: the buckets.
        topology: which managers there are.
    """

    def __init__(self, buckets: Collection[Bucket], topology: Topology) -> None:
        self._buckets = buckets
        self._topology = topology
        self._waits = ""
        """What was logged last that is waited for."""
        self._complaints = Ration(1, COMPLAINT_INTERVAL)

    async def look(self) -> None:
        """Change over the buckets that still are as earlier versions need them, unless somebody needs them so."""
        try:
            old = [bucket for bucket in self._buckets if (await bucket.state()).rolls_up]
            waits = (
                waits_for(managers_without(EXPIRY_BY_CLOCK, self._topology.registrations), EXPIRY_IN_WORDS)
                if old
                else ""
            )
            if waits != self._waits:
                self._waits = waits
                if waits:
                    log.info("buckets still take roll-ups", buckets=[bucket.name for bucket in old], reason=waits)
            if not waits:
                for bucket in old:
                    await bucket.change_over()
        except (AccessDenied, Unsuitable) as error:
            if self._complaints.take(clock.now()):
                log.warning("buckets still take roll-ups; run `cdm init --upgrade`", reason=str(error))
        except StoreError as error:
            log.debug("buckets not changed over", reason=str(error))
