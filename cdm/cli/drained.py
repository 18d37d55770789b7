"""Follows drains, live from the buckets, until the nodes are empty; begins as many at a time as it was told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum, unique
from functools import partial
from math import inf

import anyio
from msgspec import Struct

from cdm import clock
from cdm.cli.emptying import emptied_of
from cdm.cli.following import APART, Say
from cdm.cli.intending import put_intents
from cdm.cli.node_tables import left_in_short
from cdm.cli.wording import alike
from cdm.dispatch.messages import Message
from cdm.errors import StoreBusy, Uncertain, Unreachable
from cdm.manager.emptying import left_on
from cdm.manager.left import Left
from cdm.manager.onlooker import Onlooker
from cdm.model.artifact import NodeId
from cdm.model.node import Intent
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.snapshot import check_there
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

SETTLED = 1.0
"""Seconds after the intent was stored before a node counts as empty: what was decided before may yet come."""
BETWEEN = 0.2
"""Seconds between two looks at least: in a large cluster something is new all the time."""
LOOK_AGAIN = 5.0
"""Seconds after which it is looked again although nothing is new: what waits for a time tells another one."""
REASONS = 3
"""Most reasons that are told in one line."""


@unique
class Result(StrEnum):
    """How the drain of one node ended, for whoever waited."""

    DRAINED = "drained"
    SUPERSEDED = "superseded"
    """Others want something else of the node by now."""
    TIMED_OUT = "timed out"
    """It was not over in time; it goes on."""
    NOT_BEGUN = "not begun"
    """It was to be begun after others that are not over: it is cordoned."""


class Drained(Struct, frozen=True):
    """What became of the drain of one node."""

    node: NodeId
    result: Result | None
    """None: that was not waited for."""
    left: list[Left]
    """The slices that are left there, and why."""


class LiveLook:
    """The buckets as they are now, kept up by watching them.

    Args:
        connection: to NATS.
    """

    def __init__(self, connection: Connection) -> None:
        self._news = Wakeup()
        self._queue: list[Message] = []
        self._behind = set(there := buckets(connection))
        self._listed = anyio.Event()
        self._buckets = there
        self._look: Onlooker | None = None

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            BucketMissing: the cluster was never initialised; in an exception group, as all errors of a bucket.
        """
        async with anyio.create_task_group() as tasks:
            for name, bucket in self._buckets.items():
                await check_there(bucket)
                tasks.start_soon(Watch(bucket, self._take, on_live=partial(self._on_live, name)).run)

    async def listed(self) -> None:
        """Wait until all that is there is known."""
        await self._listed.wait()

    async def news(self) -> None:
        """Wait until something is new."""
        await self._news.wait()

    def now(self) -> Onlooker:
        """What is known by now."""
        messages, self._queue = self._queue, []
        if self._look is None:
            self._look = Onlooker(messages, clock.now())
        else:
            self._look.look_again(messages, clock.now())
        return self._look

    def _take(self, message: Message) -> None:
        self._queue.append(message)
        self._news.set()

    def _on_live(self, name: str, live: bool) -> None:
        if live:
            self._behind.discard(name)
        if not self._behind:
            self._listed.set()
        self._news.set()


class DrainFollower:
    """Waits for drains.

    Args:
        connection: to NATS.
        nodes: which, in the order in which they are begun.
        intent: what is wanted of each.
        parallel: so many at a time, and the others are begun by this; None: all were begun.
        say: shows a line.
    """

    def __init__(
        self, connection: Connection, nodes: Sequence[NodeId], intent: Intent, parallel: int | None, say: Say
    ) -> None:
        self._connection = connection
        self._intent = intent
        self._say = say
        self._most = len(nodes) if parallel is None else parallel
        self.waiting = [*nodes] if parallel is not None else []
        """Nodes that are yet to be begun."""
        self.under_way: dict[NodeId, bool] = {} if parallel is not None else dict.fromkeys(nodes, False)
        """Those that are begun, and whether the bucket was seen to say so."""
        self.ended: dict[NodeId, Result] = {}
        self._live = LiveLook(connection)
        self._shown: dict[NodeId, str] = {}
        self._said_at: dict[NodeId, float] = {}
        self._due: dict[NodeId, float] = {}
        """When there is something to say, or to be judged again, although nothing happens."""

    async def run(self, timeout: float | None) -> list[Drained]:
        """Wait until all are over, or for so many seconds; None: however long it takes."""
        nodes = [*self.under_way, *self.waiting]
        left: dict[NodeId, list[Left]] = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._live.run)
            with anyio.move_on_after(timeout):
                await self._live.listed()
                await self._until_over()
            left = {node: left_on(self._live.now(), node) for node in nodes if node not in self.ended}
            tasks.cancel_scope.cancel()
        results = {
            **dict.fromkeys(self.under_way, Result.TIMED_OUT),
            **dict.fromkeys(self.waiting, Result.NOT_BEGUN),
            **self.ended,
        }
        return [Drained(node, results[node], left.get(node, [])) for node in nodes]

    async def _until_over(self) -> None:
        while True:
            look = self._live.now()
            for node in list(self.under_way):
                self._judge(look, node)
            while self.waiting and len(self.under_way) < self._most and await self._begin(look, self.waiting[0]):
                pass
            if not self.under_way and not self.waiting:
                return
            rest = [self._due[node] - clock.now() for node in self.under_way if node in self._due]
            await anyio.sleep(BETWEEN)
            with anyio.move_on_after(max(min((*rest, LOOK_AGAIN)) - BETWEEN, 0.0)):
                await self._live.news()

    async def _begin(self, look: Onlooker, node: NodeId) -> bool:
        """Begin a drain; returns whether it is stored. While NATS is away it is not, and its turn comes again."""
        try:
            await put_intents(self._connection, {node: self._intent})
        except (Unreachable, StoreBusy, Uncertain) as error:
            self._tell(node, f"not begun so far, and tried again: {error}", clock.now())
            return False
        self.waiting.remove(node)
        self.under_way[node] = False
        count = len(look.cluster.on_node.get(node, ()))
        self._say(f"{node}: drain begun, {count} slice{'' if count == 1 else 's'}")
        return True

    def _judge(self, look: Onlooker, node: NodeId) -> None:
        found, now = look.topology.intended(node), look.now
        if found.intent != self._intent:
            if self.under_way[node]:
                self._end(node, Result.SUPERSEDED, f"{found.intent.schedule} is wanted of it now")
            return
        self.under_way[node] = True
        if not look.cluster.on_node.get(node):
            ripe = found.at + SETTLED
            if now >= ripe:
                away = "" if node in look.topology.nodes else "it is not registered any more"
                self._end(node, Result.DRAINED, away)
            else:
                self._due[node] = ripe
            return
        told = emptied_of(look, node, time.time() - now)
        lines = left_in_short(told.left)
        more = f"; and {len(lines) - REASONS} more" if len(lines) > REASONS else ""
        over = f"its deadline is over, and nothing is forced: {told.waits}; " if told.waits else ""
        count = len(told.left)
        line = f"{over}{count} slice{'' if count == 1 else 's'} left: {'; '.join(lines[:REASONS])}{more}"
        self._tell(node, line, now)

    def _tell(self, node: NodeId, line: str, now: float) -> None:
        self._due.pop(node, None)
        if line == self._shown.get(node) or alike(line, self._shown.get(node, "")):
            return
        again = self._said_at.get(node, -inf) + APART
        if now < again:
            self._due[node] = again
            return
        self._said_at[node], self._shown[node] = now, line
        self._say(f"{node}: {line}")

    def _end(self, node: NodeId, result: Result, why: str) -> None:
        del self.under_way[node]
        self._due.pop(node, None)
        self.ended[node] = result
        self._say(f"{node}: {result}{f': {why}' if why else ''}")
