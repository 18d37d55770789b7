"""What a watch does about a bucket that it cannot follow: has it provided, and complains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cdm import clock
from cdm.errors import StoreBusy, StoreError, Uncertain, Unreachable
from cdm.log import Log, Ration

log = Log("cdm.watch")

COMPLAINT_INTERVAL = 30.0
"""Seconds between two lines that say that updates of a bucket do not come."""


class Provider:
    """What one watch needs, and says that it lacks.

    Args:
        bucket: the bucket's name.
        provide: called when the bucket is missing or lacks settings; None: nobody provides it.
    """

    def __init__(self, bucket: str, provide: Callable[[], Awaitable[object]] | None) -> None:
        self._bucket = bucket
        self._provide = provide
        self._complaints = Ration(1, COMPLAINT_INTERVAL)
        self._complained = False

    async def provide(self, problem: str) -> None:
        """Have the bucket provided; where that fails for good, say what the problem is."""
        try:
            if self._provide is not None:
                await self._provide()
                return
        except (StoreBusy, Uncertain, Unreachable) as error:
            log.debug("bucket not provided", bucket=self._bucket, reason=f"{problem}: {error}")
            return
        except StoreError as error:
            problem = f"{problem}: {error}"
        self.complain("bucket cannot be used; run `cdm init`", problem)

    def complain(self, what: str, reason: str) -> None:
        """Log an error, but not each time: such a state may last."""
        self._complained = True
        if self._complaints.take(clock.now()):
            log.error(what, bucket=self._bucket, reason=reason)

    def mended(self) -> None:
        """The bucket is followed, and nothing of it is missing: who read the complaint is told."""
        if self._complained:
            self._complained = False
            log.info("updates come again", bucket=self._bucket)
