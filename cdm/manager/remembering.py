"""What is remembered of nodes: that there was one, how it went, and what it had. Pure."""

from __future__ import annotations

from collections import Counter

from cdm.manager.cluster import Cluster
from cdm.manager.outbox import Outbox
from cdm.manager.topology import Registered, Topology
from cdm.model.artifact import NodeId
from cdm.model.node import HAD, LEFT, LOST, Seen


class Remembering:
    """Has it stored that there is a node, or that it is gone, where that is not known yet.

    Args:
        cluster: what nodes have.
        topology: which nodes there are, and what is remembered of them.
        outbox: takes what is to be stored.
    """

    def __init__(self, cluster: Cluster, topology: Topology, outbox: Outbox) -> None:
        self._cluster = cluster
        self._topology = topology
        self._outbox = outbox
        self._had: dict[NodeId, dict[str, int]] = {}
        """Of nodes that are gone, until that is stored: their keys may be deleted by then."""

    def note(self, node: NodeId) -> None:
        """Look at a node."""
        topology = self._topology
        presence, known = topology.nodes.get(node), topology.seen.get(node)
        if isinstance(presence, Registered):
            self._had.pop(node, None)
            seen = Seen(presence.registration.lasting)
        elif presence is None and known is not None and known.gone is None:
            had = self._had.get(node) or self._had.setdefault(node, self._has(node))
            seen = Seen(known.registration, LEFT if topology.left(node) else LOST, had)
        else:
            self._had.pop(node, None)
            return
        if seen != known:
            self._outbox.remember(node, seen)

    def _has(self, node: NodeId) -> dict[str, int]:
        counts = Counter(str(key.artifact) for key in self._cluster.on_node.get(node, ()))
        return dict(sorted(counts.items())[:HAD])
