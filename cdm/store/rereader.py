"""Holds a bucket against its mirror beside all that goes on, instead of listing it.

A listing takes as long as there are keys, and the mirror follows nothing meanwhile. A pass over a large bucket goes on
beside it: a few thousand messages, without their values, then a pause, so that all were held against the mirror in the
time between two listings. For the few keys of one node, which are listed in no time, another consumer would have to be
made, which is work for all servers of a cluster: there the stream's leader is asked about each. Whatever differs, and
still does when it is asked again, has everything listed. All else is listed whole; when, is decided here, too.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from cdm import clock
from cdm.errors import AccessDenied, StoreError, Uncertain
from cdm.log import Log
from cdm.store.bucket import Bucket
from cdm.store.mirror import Mirror
from cdm.store.rereading import Rereading
from cdm.store.wire import StreamState, delivery_of
from cdm.wakeup import Wakeup

log = Log("cdm.watch")

RELIST_SPREAD = 0.5, 1.5
"""Between which parts of the time between two listings the next one comes, by chance: what listed at the same time, as
all nodes do where NATS was away for long, would make its next consumers at the same time for ever."""
LARGE = 20_000
"""Keys from which on a bucket is held against its mirror in parts: fewer are listed in a fraction of a second."""
FEW = 100
"""Keys of one node up to which the stream's leader is asked about each: a consumer is more work than that."""
AT_ONCE = 5_000
"""Messages that are asked for at a time: taken in within some ten milliseconds."""
PART = 500_000
"""Messages after which it is looked for keys that should have been among them: that goes over all that are known."""
TURN = 10_000
"""Keys after which others have their turn."""
PACE = 1.0
"""How long a pass takes, in terms of the time between two listings."""
MOST_ASKED = 100
"""Keys that the stream's leader is asked about at a time; where more differ a pass has come to nothing."""
TRIES = 3
"""How often a key is asked about that is being changed meanwhile."""
PATIENCE = 5.0
"""Seconds for which messages, or the mirror, are waited for."""
KEPT = 60.0
"""Seconds beyond a pause after which the server deletes a consumer of which nobody asks for more."""


class Differs(Exception):
    """The mirror does not say what the bucket holds."""


class Rereader:
    """Rereads one bucket for as long as it is large.

    Args:
        bucket: the bucket.
        subjects: which of its subjects the mirror holds.
        interval: seconds in which everything is to be held against the mirror once, on average.
        check: looks whether the stream is the one that is followed; see `Watch.check`.
        caught_up: waits until the mirror holds what the bucket does; see `Watch.caught_up`.
        relist: has everything listed.
        one_of_many: every node has a mirror of such a part.
    """

    def __init__(
        self,
        bucket: Bucket,
        subjects: str,
        interval: float,
        check: Callable[[], Awaitable[None]],
        caught_up: Callable[[], Awaitable[None]],
        relist: Callable[[], None],
        *,
        one_of_many: bool = False,
    ) -> None:
        self._bucket = bucket
        self._interval = interval
        self._relist_after = interval
        """Seconds from the last listing to the next."""
        self._check = check
        self._caught_up = caught_up
        self._relist = relist
        self._subjects = subjects
        self._one_of_many = one_of_many
        self._whole = subjects == bucket.all_subjects
        self._able = bucket.layout.history == 1
        self.lent = False
        """Whether managers make the consumers, for a user who may not ask about keys."""
        self._news = Wakeup()
        self.passes = 0
        """How many have come to their end."""

    def serves(self, mirror: Mirror) -> bool:
        """Whether a mirror of this size is held against its bucket here."""
        if self._one_of_many:
            return self._able and not self.lent and len(mirror.known) <= FEW
        return self._able and self._whole and len(mirror.known) >= LARGE

    def plan(self) -> None:
        """Everything is about to be compared: decide when it is to be compared again."""
        self._relist_after = random.SystemRandom().uniform(*RELIST_SPREAD) * self._interval

    def relist_due(self, mirror: Mirror) -> float:
        """When everything is to be listed, unless it was held against the bucket before."""
        spare = self._relist_after if self._one_of_many else self._interval
        return mirror.listed_at + self._relist_after + self.serves(mirror) * spare

    def wake(self) -> None:
        """The mirror is complete (again)."""
        self._news.set()

    async def run(self, mirror: Mirror) -> None:
        """Make one pass after the other until cancelled; never raises a `StoreError`."""
        while True:
            if not mirror.is_live or not self.serves(mirror):
                await self._news.wait()
                continue
            try:
                if await (self._ask_for_each(mirror) if self._one_of_many else self._read_through(mirror)):
                    self.passes += 1
                    mirror.reread(clock.now())
                    self.plan()
            except Differs as error:
                log.warning("the copy differs; everything is listed", bucket=self._bucket.name, key=str(error))
                self._relist()
                await self._news.wait()
            except AccessDenied as error:
                # Users made by an earlier version may not ask for a consumer's messages.
                log.info("listed whole now and then", bucket=self._bucket.name, reason=str(error))
                self._able = False
            except StoreError as error:
                log.debug("bucket not reread", bucket=self._bucket.name, reason=str(error))
                await asyncio.sleep(self._interval / 30)

    async def _ask_for_each(self, mirror: Mirror) -> bool:
        """Returns whether that was done: it is not due before its time."""
        if (left := mirror.listed_at + PACE * self._relist_after - clock.now()) > 0:
            await asyncio.sleep(left)
            return False  # it may have been listed meanwhile
        await self._check()
        found, generation, at = Rereading(mirror.known), mirror.generation, len(self._bucket.subject(""))
        names = {subject[at:] for subject in await self._bucket.subjects(self._subjects)} | mirror.known.keys()
        for name in filter(_can_be_asked_for, names):
            if await self._bucket.revision_of(name) != _revision(mirror, name):
                found.suspects.add(name)
            if len(found.suspects) > MOST_ASKED:
                raise Uncertain(f"{len(found.suspects)} keys are not as they are known")
        if generation != mirror.generation or not mirror.is_live:
            raise Uncertain("the mirror does not follow at present")
        await self._judge(found, mirror)
        return True

    async def _read_through(self, mirror: Mirror) -> bool:
        await self._check()
        began, generation = clock.now(), mirror.generation
        stream = await self._bucket.state()
        found = Rereading(mirror.known)
        async with self._reading(found, self._pause_of(stream)) as ask:
            taken = 0
            while True:
                more = await ask()
                taken += more
                if not more:
                    found.finish(stream.last)
                if not more or found.seen >= PART:
                    await _look_for_missing(found)
                if generation != mirror.generation or not mirror.is_live:
                    raise Uncertain("the mirror does not follow at present")
                await self._judge(found, mirror)
                if not more:
                    return True
                plan = began + PACE * self._interval * min(taken / max(stream.keys, 1), 1.0)
                await asyncio.sleep(max(plan - clock.now(), 0))

    def _pause_of(self, stream: StreamState) -> float:
        return self._interval * AT_ONCE / max(stream.keys, AT_ONCE)

    @asynccontextmanager
    async def _reading(self, found: Rereading, pause: float) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """Read the bucket from its beginning in the ``with`` block.

        What it gives asks for some more messages, and returns how many came; 0: there are no more.
        """
        connection, stream = self._bucket.connection, self._bucket.stream
        name, inbox = f"cdm-{secrets.token_hex(8)}", connection.new_inbox()
        part = _Messages(found, len(self._bucket.subject("")))
        subscription = await connection.subscribe_directly(inbox, part.take)
        more = connection.api_subject(f"CONSUMER.MSG.NEXT.{stream}.{name}")

        async def ask() -> int:
            part.begin()
            async with connection.accepted((more,)):
                await connection.publish(more, b'{"batch":%d,"no_wait":true}' % AT_ONCE, reply=inbox)
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await part.over.wait()
            if not part.over.is_set() or not part.whole():
                raise Uncertain("not all that was asked for came")
            return part.count

        config = {
            "name": name,
            "deliver_policy": "all",
            "filter_subject": self._bucket.all_subjects,
            "ack_policy": "none",
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int((KEPT + pause) * 1e9),
        }
        try:
            call = f"CONSUMER.CREATE.{stream}.{name}.{self._bucket.all_subjects}"
            await connection.api_retried(call, {"stream_name": stream, "config": config})
            yield ask
        finally:
            await connection.unsubscribe(subscription)
            connection.see_to(self._delete(name))

    async def _delete(self, name: str) -> None:
        with suppress(StoreError):
            await self._bucket.connection.api(f"CONSUMER.DELETE.{self._bucket.stream}.{name}", timeout=PATIENCE / 10)

    async def _judge(self, found: Rereading, mirror: Mirror) -> None:
        """Ask about what is suspicious. Raises `Differs` where it is for good reason."""
        for name in [*found.suspects][:MOST_ASKED]:
            for _ in range(TRIES):
                held = await self._bucket.revision_of(name)
                try:
                    async with asyncio.timeout(PATIENCE):
                        await self._caught_up()
                except TimeoutError:
                    raise Uncertain("the mirror is behind") from None
                if held == _revision(mirror, name):
                    break
            else:
                raise Differs(name)
        if len(found.suspects) > MOST_ASKED:
            raise Uncertain(f"{len(found.suspects)} keys were changed meanwhile")
        found.suspects.clear()


def _can_be_asked_for(name: str) -> bool:
    """A key that is not UTF-8 is told in one way and delivered in another; one with a wildcard stands for others."""
    return "\ufffd" not in name and "\\" not in name and not {"*", ">"} & {*name.split(".")}


def _revision(mirror: Mirror, name: str) -> int:
    known = mirror.known.get(name)
    return known.revision if known else 0


class _Messages:
    """What came of what was asked for."""

    def __init__(self, found: Rereading, name_at: int) -> None:
        self._found = found
        self._name_at = name_at
        self._taken = 0
        self._last = b""
        self.begin()

    def begin(self) -> None:
        """More is asked for."""
        self.count = 0
        self.over = asyncio.Event()
        """Set when no more is to come."""

    def take(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        """A message, or that there is none."""
        if not reply:
            self.over.set()
            return
        tokens = reply.split(b".")  # as `delivery_of` has it
        sequence = int(tokens[5] if len(tokens) == 9 else tokens[7])
        self._found.take(subject[self._name_at :].decode("utf-8", "backslashreplace"), sequence, block)
        self._last = reply
        self.count += 1
        if self.count == AT_ONCE:
            self.over.set()

    def whole(self) -> bool:
        """Whether none of what came was lost on its way."""
        self._taken += self.count
        last = delivery_of(self._last)
        return not self._taken or (last is not None and last[2] == self._taken)


async def _look_for_missing(found: Rereading) -> None:
    names = found.names()
    for first in range(0, len(names), TURN):
        found.look_for(names[first : first + TURN])
        await asyncio.sleep(0)
    found.next_part()
