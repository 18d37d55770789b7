"""Nodes that are being drained, and nodes that are gone, as ``cdm nodes`` and ``cdm status`` tell of them. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sized
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

from cdm.dispatch.messages import ValuePut
from cdm.manager.left import Left
from cdm.model.artifact import NodeId
from cdm.model.keys import SeenKey
from cdm.model.node import Schedule, Seen

if TYPE_CHECKING:
    from cdm.manager.onlooker import Onlooker


class Emptied(Struct, frozen=True):
    """A node that is being drained, and how far that is."""

    node: NodeId
    leaving: bool
    """Whether the node wants it itself, since it is about to stop."""
    since: str
    """When that was written, RFC 3339; empty: not known."""
    by: str
    """Who wrote it, as declared; empty: unknown, or the node itself."""
    reason: str
    deadline: str
    """When it is to be over, RFC 3339; empty: no time is said."""
    force: bool
    """Whether what is left goes then, be there a replacement or not."""
    overdue: bool
    """Whether that time is over."""
    waits: str
    """Why it is not forced although it is due: which manager does not know of it; empty: nothing keeps it."""
    left: list[Left]
    """The slices that are left there, and why each is."""


class GoneNode(Struct, frozen=True):
    """A node that is not registered any more, and not forgotten."""

    node: NodeId
    how: str
    """``lost``: it was not heard of any more; ``left``: it took its registration back; ``missing``: nobody has given
    it up yet."""
    since: str
    """When that was found out, RFC 3339."""
    had: dict[str, int]
    """How many slices of which artifacts it had then."""
    slices: int
    """How many of its slices are still there."""
    labels: dict[str, str]
    role: str
    version: str

    @property
    def lost(self) -> bool:
        """Whether it went without a word."""
        return self.how != "left"


def emptied(look: Onlooker, epoch: float, writers: Mapping[NodeId, str]) -> list[Emptied]:
    """The nodes that are being drained.

    Args:
        look: at the buckets.
        epoch: the time of day less that on this process's clock, in seconds.
        writers: who wrote the nodes' intents, where that is known.
    """
    registered = [node for node in look.topology.nodes if look.topology.schedule(node) is Schedule.DRAIN]
    away = [
        node
        for node, each in look.topology.intents.items()
        if each.intent.schedule is Schedule.DRAIN and look.cluster.on_node.get(node)
    ]
    return [emptied_of(look, node, epoch, writers.get(node, "")) for node in sorted({*registered, *away})]


def emptied_of(look: Onlooker, node: NodeId, epoch: float, by: str = "") -> Emptied:
    """One node that is being drained; arguments as in `emptied`."""
    from cdm.manager.emptying import left_on  # noqa: PLC0415  # slow to import, and rarely needed

    found = look.topology.intended(node)
    drained = found.intent.schedule is Schedule.DRAIN
    due = found.due
    overdue = due <= look.now
    return Emptied(
        node,
        not drained,
        _time(found.at + epoch) if drained else "",
        by if drained else "",
        found.intent.reason,
        _time(due + epoch) if due < inf else "",
        drained and found.intent.force,
        overdue,
        look.unforced if overdue and found.intent.force else "",
        left_on(look, node),
    )


def gone(
    seen: Mapping[NodeId, ValuePut[SeenKey, Seen]],
    registered: Container[NodeId],
    slices: Mapping[NodeId, Sized],
    epoch: float,
) -> list[GoneNode]:
    """The nodes that are gone, and not forgotten.

    Args:
        seen: what is remembered of nodes.
        registered: those that are not gone.
        slices: what is on each node.
        epoch: as in `emptied`.
    """
    return [
        GoneNode(
            node,
            put.value.gone or "missing",
            _time(put.at + epoch),
            put.value.had,
            len(slices.get(node, ())),
            put.value.registration.labels,
            put.value.registration.role,
            put.value.registration.version,
        )
        for node, put in sorted(seen.items())
        if node not in registered
    ]


def _time(at: float) -> str:
    return datetime.fromtimestamp(max(at, 0.0), UTC).isoformat(timespec="seconds")
