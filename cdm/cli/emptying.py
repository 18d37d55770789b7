"""Nodes that are being drained, and nodes that are gone, as ``cdm nodes`` and ``cdm status`` tell of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

from cdm.cli.wording import ago
from cdm.dispatch.messages import Cause, ValuePut, ValueRemove
from cdm.manager.cluster_view import ClusterView
from cdm.manager.left import Left
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, SeenKey
from cdm.model.node import LEFT, Registration, Schedule, Seen

if TYPE_CHECKING:
    from cdm.manager.onlooker import Onlooker

MISSING = "missing"
"""How a node is gone that nobody has given up yet."""


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
    """``lost``: it was not heard of any more, and the leader gave it up; ``left``: it took its registration back;
    ``missing``: it is not heard of any more, and nobody has given it up yet."""
    since: str
    """When the leader found that out; where none has, when the registration ended. RFC 3339; empty: not known."""
    had: dict[str, int]
    """How many slices of which artifacts it had, where the leader found it out."""
    slices: int
    """How many of its slices are still there."""
    labels: dict[str, str]
    role: str
    version: str

    @property
    def lost(self) -> bool:
        """Whether it went without a word."""
        return self.how != LEFT

    @property
    def in_words(self) -> str:
        """How long it has been gone; empty: not known."""
        return f"{ago(datetime.fromisoformat(self.since).timestamp())} ago" if self.since else ""


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


def gone(view: ClusterView, epoch: float) -> list[GoneNode]:
    """The nodes that are gone, and not forgotten.

    Args:
        view: the cluster.
        epoch: as in `emptied`.
    """
    return [
        GoneNode(
            node,
            *_how(put, view.ends.get(node), epoch),
            put.value.had,
            len(view.cluster.on_node.get(node, ())),
            put.value.registration.labels,
            put.value.registration.role,
            put.value.registration.version,
        )
        for node, put in sorted(view.seen.items())
        if node not in view.nodes
    ]


def _how(put: ValuePut[SeenKey, Seen], end: ValueRemove[NodeKey, Registration] | None, epoch: float) -> tuple[str, str]:
    """How a node is gone, and since when: that it was there is remembered for long, and says nothing of its end."""
    if put.value.gone is not None:
        return put.value.gone, _time(put.at + epoch)
    if end is None:
        return MISSING, ""
    return LEFT if end.cause is Cause.DELETED else MISSING, _time(end.at + epoch)


def _time(at: float) -> str:
    return datetime.fromtimestamp(max(at, 0.0), UTC).isoformat(timespec="seconds")
