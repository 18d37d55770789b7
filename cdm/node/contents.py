"""Has a manager know what the artifacts consist of, wherever that can be read; elsewhere it manages without.

A cluster may have no bucket for artifacts, a manager no permission to read it, and its stream, which has replicas of
its own, no leader. None of it is a reason not to manage: `ContentsUnknown` is routed, and nothing else is missing.
"""

from __future__ import annotations

import anyio

from cdm.dispatch.messages import ContentsUnknown
from cdm.errors import AccessDenied, BucketMissing, StoreBusy, StoreError, Uncertain, Unreachable, innermost
from cdm.log import Log
from cdm.node.part import QUIET, Ground
from cdm.store.descriptions import Descriptions
from cdm.store.watch import Hearing, Watch

log = Log("cdm.node")

BARRIER_PATIENCE = 1.0
"""Seconds that a new leader waits to know what was pushed last: it is not to wait for a stream that has no leader."""
_TRANSIENT = (StoreBusy, Uncertain, Unreachable)


class ContentsWatch:
    """Follows the artifacts' descriptions.

    Args:
        ground: the node's.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._bucket = Descriptions(ground.connection)
        self._scope = anyio.CancelScope()
        self._watch = self._new()
        self._problem = ""
        """Why nothing is known, where that was found out; it was logged then."""

    @property
    def known(self) -> bool:
        """Whether the bucket is followed, as far as anybody found out."""
        return not self._problem

    async def run(self) -> None:
        """Follow the bucket until cancelled; ends only with an exception of a receiver."""
        while True:
            denied = ""
            with anyio.CancelScope() as self._scope:
                try:
                    await self._watch.run()
                except* AccessDenied as errors:
                    denied = str(innermost(errors))
            if denied:
                self._give_up(denied)
            self._watch = self._new()
            if self._problem:
                # Whoever makes the bucket, or grants the permission, has no way of telling.
                await anyio.sleep(self._ground.settings.reconcile_interval)

    async def caught_up(self) -> None:
        """Wait until all that the bucket holds is known (read barrier). Where that cannot be had nothing is known."""
        if self._problem:
            return
        watch, problem = self._watch, ""
        with anyio.move_on_after(BARRIER_PATIENCE) as scope:
            try:
                await watch.caught_up()
            except StoreError as error:
                problem = str(error)
        if scope.cancelled_caught:
            problem = f"what was pushed last could not be read within {BARRIER_PATIENCE:g} s"
        if problem and watch.reached:
            log.debug("contents of artifacts are read anew", reason=problem)
            self._forget()

    async def check(self) -> None:
        """As `Watch.check`."""
        if not self._problem:
            await self._watch.check()

    def _new(self) -> Watch:
        return Watch(
            self._bucket,
            self._ground.route,
            on_live=self._on_live,
            provide=self._provide,
            relist_interval=self._ground.settings.relist_interval,
            hearing=Hearing(alone=QUIET),
        )

    async def _provide(self) -> None:
        """Create the bucket, where nodes may create buckets; else do without."""
        settings = self._ground.settings
        try:
            await self._bucket.ensure(create=settings.create, replicas=settings.replicas)
        except _TRANSIENT:
            raise
        except BucketMissing:
            self._give_up(f"bucket {self._bucket.name} does not exist")
        except StoreError as error:
            self._give_up(str(error))

    def _give_up(self, problem: str) -> None:
        if problem != self._problem:
            log.warning(
                "what artifacts consist of is not known: what is pushed over them is not rolled out", why=problem
            )
        self._problem = problem
        self._forget()

    def _forget(self) -> None:
        """What is known may not hold any more."""
        self._ground.route(ContentsUnknown())
        self._scope.cancel()

    def _on_live(self, live: bool) -> None:
        if live and self._problem:
            self._problem = ""
            log.info("what artifacts consist of is known")
