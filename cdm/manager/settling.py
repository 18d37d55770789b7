"""Whether a leader that has just begun waits for nodes before it places anything. Pure: time comes with the questions.

After a power cut nodes come back one after another: the first one would get everything. So a leader waits for those
that are known from before, and where none is, at the very first start or after all have left, for those that may come.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from cdm.manager.policy import Policy
from cdm.manager.topology import Registered, Topology
from cdm.model.artifact import NodeId


class Settling:
    """The wait of one leadership. Scaling down and deleting never wait.

    Args:
        topology: which nodes there are.
        holding: the nodes that slices name.
        policy: how long a start waits at which no node is known to be there from before.
        now: when the leadership began, in seconds on this node's clock.
    """

    def __init__(self, topology: Topology, holding: Iterable[NodeId], policy: Policy, now: float) -> None:
        self._topology = topology
        remembered = {node for node, seen in topology.seen.items() if seen.registration.hosts}
        known = {node for node in remembered.union(holding) if not self._had_gone(node)}
        self._first = not known
        self._pause = policy.settle
        self._awaited = {node for node in known if self._may_come(node)}
        self._until = now + topology.node_ttl

    @property
    def over(self) -> bool:
        """Whether nodes are waited for no more, whatever happens."""
        return not (self._first or self._awaited)

    def until(self, now: float) -> float | None:
        """How long to wait, as far as is known now, in seconds on this node's clock; None: not at all."""
        if self._first:
            began = self._topology.hosting_since
            if began is None:
                return None  # there is no node to place anything on
            until = began + self._pause
        else:
            self._awaited = {node for node in self._awaited if self._may_come(node)}
            until = self._until if self._awaited else -inf
        if until > now:
            return until
        self._first, self._awaited = False, set()
        return None

    def _had_gone(self, node: NodeId) -> bool:
        """Whether it is gone, or was before this leader began: then it is there anew, and knows of no other."""
        seen = self._topology.seen.get(node)
        return self._topology.left(node) or (seen is not None and seen.gone is not None)

    def _may_come(self, node: NodeId) -> bool:
        """Whether the node is neither there nor known to be gone."""
        topology = self._topology
        return not (isinstance(topology.nodes.get(node), Registered) or topology.left(node) or node in topology.lost)
