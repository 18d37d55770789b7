"""A leader's death as an event, where the server can tell of it.

The server deletes a consumer to which nobody has listened for a moment, and tells that it did. So a leader keeps one
that has nothing to deliver, its beacon. When the leader's connection ends followers hear that the beacon is out, and
ask soon whether the leader is there; so they need not ask ten times a second. What they hear proves nothing by itself.

Only where the stream has one replica: else the beacon may be on a server that dies together with the leader.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from cdm.errors import AccessDenied, StoreError
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.wakeup import Wakeup

log = Log("cdm.lease")

OUT_AFTER = 0.01
"""Seconds without a listener after which the server deletes a beacon."""
AGAIN_AFTER = 1.0
"""Seconds after which something is tried again that the server did not take."""
PROOF_PATIENCE = 2.0
"""Seconds within which a follower has to hear of the end of a beacon of its own, to rely on it."""


class Beacon:
    """The present leader's beacon, as its leader or a follower sees it. Everything is called on the event loop.

    Args:
        slices: the bucket.
        on_out: told when the leader's beacon has gone out, or would not be heard to.
    """

    def __init__(self, slices: Bucket, on_out: Callable[[], None]) -> None:
        self._slices = slices
        self._connection = slices.connection
        self._on_out = on_out
        self._term = 0
        self._own = False
        self.hears = False
        """Whether this process would hear that the beacon of this term is out."""
        self.burns = False
        """Whether there is one, of this process."""
        self._news = Wakeup()

    def follow(self, term: int, *, own: bool) -> None:
        """This is the term; ``own``: this process leads."""
        if (term, own) != (self._term, self._own):
            self._term, self._own = term, own
            self.hears = self.burns = False
            self._news.set()

    async def run(self) -> None:
        """Keep what is needed for the present term until cancelled."""
        if not await self._is_told():
            log.debug("leaders are asked often: nothing tells of their end")
            return
        while True:
            # A take-over goes first; and for so long nobody judges a new leader anyway.
            await anyio.sleep(AGAIN_AFTER)
            self._news.forget()
            try:
                if self._own:
                    await self._keep(self._term)
                elif self._term:
                    await self._hear(self._term)
                else:
                    await self._news.wait()
            except StoreError as error:
                log.debug("no beacon yet", reason=str(error))

    async def _is_told(self) -> bool:
        """Whether a beacon's end is heard here: permissions, another account, or a domain may be in between."""
        name, heard = f"leader-{secrets.token_hex(8)}", anyio.Event()
        while True:
            try:
                if (await self._slices.state()).replicas > 1:
                    return False
                async with self._listening(name, heard.set):
                    await self._make(name, self._connection.new_inbox())
                    with anyio.move_on_after(PROOF_PATIENCE):
                        await heard.wait()
                return heard.is_set()
            except AccessDenied:
                return False
            except StoreError as error:
                log.debug("no beacon yet", reason=str(error))
                await anyio.sleep(AGAIN_AFTER)

    async def _hear(self, term: int) -> None:
        async with self._listening(f"leader-{term}", self._on_out):
            self.hears = self._term == term and not self._own
            try:
                await self._news.wait()
            finally:
                self.hears = False
                self._on_out()

    async def _keep(self, term: int) -> None:
        """Have a beacon for as long as the term is this process's."""
        out, name, inbox = Wakeup(), f"leader-{term}", self._connection.new_inbox()

        def went_out() -> None:
            self.burns = False
            out.set()

        def on_connection(_up: bool) -> None:
            went_out()

        self._connection.listen(on_connection)
        nothing = await self._connection.subscribe_directly(inbox, lambda *_: None)
        try:
            async with self._listening(name, went_out), anyio.create_task_group() as tasks:
                tasks.start_soon(self._burn, name, inbox, out)
                await self._news.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.burns = False
            self._connection.unlisten(on_connection)
            with anyio.CancelScope(shield=True):
                await self._connection.unsubscribe(nothing)

    async def _burn(self, name: str, inbox: str, out: Wakeup) -> None:
        while True:
            try:
                out.forget()
                await self._make(name, inbox)
                self.burns = not out.is_set
                await out.wait()
            except StoreError as error:
                log.debug("no beacon yet", reason=str(error))
            await anyio.sleep(AGAIN_AFTER)

    async def _make(self, name: str, inbox: str) -> None:
        stream, nobody = self._slices.stream, self._slices.subject("_nobody")
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "new",
            "filter_subject": nobody,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(OUT_AFTER * 1e9),
        }
        call = f"CONSUMER.CREATE.{stream}.{name}.{nobody}"
        await self._connection.api(call, {"stream_name": stream, "config": config})

    @asynccontextmanager
    async def _listening(self, name: str, heard: Callable[[], None]) -> AsyncIterator[None]:
        """Hear of the end of the beacon of this name; raises a `StoreError` where that is not to be had."""
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.DELETED.{self._slices.stream}.{name}"
        subscription = await self._connection.subscribe_directly(subject, lambda *_: heard())
        try:
            await self._connection.flush()
            self._connection.check_subscribed(subject)
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._connection.unsubscribe(subscription)
