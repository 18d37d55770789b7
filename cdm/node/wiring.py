"""Parts, wired: the mirrors that they need, one router for what these tell, and whether anything is heard at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from cdm import clock
from cdm.dispatch.messages import Connected, Disconnected, Message
from cdm.dispatch.router import Router
from cdm.model.keys import SLICES
from cdm.node.part import QUIET, WHOLE, Ground, Part, Work
from cdm.node.settings import NodeSettings
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.lending import Lent
from cdm.store.watch import Hearing, Watch

_EACH_NODES = Hearing(QUIET, QUIET, of_each_node=True)
"""Of the consumers of agents."""
_OF_MANAGERS = {
    **dict.fromkeys(("blueprints", "status"), Hearing(alone=QUIET)),  # they change seldom
    "nodes": Hearing(can_wait=True),
}
"""Of those of managers, but for ``slices``, which hears of the leader. Silence in ``nodes`` must not be taken for that
of nodes, nor in ``slices`` for the leader's."""


class Composition(NamedTuple):
    """What is wired together."""

    parts: tuple[Callable[[Ground], Part], ...]
    hears_by: tuple[str, ...]
    """The buckets whose mirrors tell whether the node can hear: `Connected` and `Disconnected` are about them."""
    says: Mapping[str, Any] = {}
    """Fields of the registration that are decided by it."""
    borrows: bool = False
    """Whether managers make its consumers, where this user may make none."""

    @property
    def judges(self) -> bool:
        """Whether it judges by heartbeats which nodes are there."""
        return "nodes" in self.hears_by


class Wiring:
    """Wired parts; everything is called on the event loop.

    Args:
        settings: the node's.
        connection: the node's.
        composition: what is wired.
        incarnation: the node's; None: a new one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        connection: Connection,
        composition: Composition,
        incarnation: str | None = None,
    ) -> None:
        self.composition = composition
        self.ground = Ground(settings, connection, self._route, incarnation)
        self.parts = tuple(make(self.ground) for make in composition.parts)
        self.routed = 0
        """Messages, for those who want to know how much there was to do."""
        self._behind = set(composition.hears_by)
        self._accepting = True
        self._hearing = False
        self.ground.watches.update(
            (name, self._watch(self.ground.buckets[name], keys)) for name, keys in _widest(self.parts).items()
        )
        self.router = Router(
            (receiver for part in self.parts for receiver in part.receivers),
            (message for part in self.parts for message in part.sends),
        )

    @property
    def work(self) -> Iterator[Work]:
        """What is to run for as long as the parts do."""
        for watch in self.ground.watches.values():
            yield watch.run
        for part in self.parts:
            yield from part.work

    def on_accepting(self, accepting: bool) -> None:
        """The bucket accepts this node's heartbeats, or does not: then it accepts nobody's."""
        self._accepting = accepting
        self._tell_hearing()

    def _route(self, message: Message) -> None:
        self.routed += 1
        self.router.route(message)

    def _watch(self, bucket: Bucket, keys: str) -> Watch:
        name, settings = bucket.layout.name, self.ground.settings
        return Watch(
            bucket,
            self._route,
            keys=keys,
            on_live=partial(self._on_live, name) if name in self.composition.hears_by else None,
            on_reset=self._on_reset if bucket.layout is SLICES else None,
            provide=partial(self._provide, bucket),
            relist_interval=settings.relist_interval,
            backpressure=self.ground.backpressure if bucket.layout is SLICES else None,
            lent=Lent(self.ground.connection, settings.node) if self.composition.borrows else None,
            hearing=_OF_MANAGERS.get(name) if keys == WHOLE else _EACH_NODES,
        )

    async def _provide(self, bucket: Bucket) -> None:
        for part in self.parts:
            await part.provide(bucket)

    def _on_live(self, name: str, live: bool) -> None:
        if live:
            self._behind.discard(name)
        else:
            self._behind.add(name)
        self._tell_hearing()

    def _tell_hearing(self) -> None:
        """Nodes are heard where their bucket is watched and accepts heartbeats."""
        hearing = not self._behind and self._accepting
        if hearing is not self._hearing:
            self._hearing = hearing
            self._route(Connected(clock.now()) if hearing else Disconnected(clock.now()))
            for part in self.parts:
                part.wake()

    def _on_reset(self, reason: str) -> None:
        for part in self.parts:
            part.reset(reason)


def _widest(parts: tuple[Part, ...]) -> dict[str, str]:
    """Which keys of which buckets are mirrored, so that every part has what it needs."""
    found: dict[str, str] = {}
    for part in parts:
        for bucket, keys in part.mirrors.items():
            found[bucket] = keys if found.get(bucket, keys) == keys else WHOLE
    return found
