"""Nodes in the order in which they are served, by the domains that they are in: level by level, never sorted anew.

The tree has one level for each spread, whose branches are its domains; in the leaves are heaps of nodes. Serving a node
only ever makes the others look worse, or leaves them as they are, so what a heap holds is at most too good: it is
looked at anew when it comes up. One step costs what the depth costs, not what the number of nodes does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

from cdm.allocation.sites import Domain

Key = Any
"""What nodes are compared by; no two are equal."""
Value = Callable[[Domain], float | None]
"""How a domain stands: the lowest comes first, None never does."""


Look = Callable[[Key], Key | None]
"""Looks at a node anew: gives its key as it is now; None: it takes no more."""


class Leaf:
    """The nodes that are in the same domains.

    Args:
        look: what to do with a node that comes up; None: nothing but being served changes how it stands.
    """

    __slots__ = ("_look", "heap")

    def __init__(self, look: Look | None = None) -> None:
        self.heap: list[Key] = []
        self._look = look

    def ready(self) -> None:
        """Everything is in."""
        heapify(self.heap)

    def best(self) -> Key | None:
        """The key of the node that comes first; None: there is none."""
        heap, look = self.heap, self._look
        if look is None:
            return heap[0] if heap else None
        while heap:
            key = look(heap[0])
            if key == heap[0]:
                return key
            self.replace(key)
        return None

    def replace(self, key: Key | None) -> None:
        """The first node has this key now; None: it takes no more."""
        if key is None:
            heappop(self.heap)
        else:
            heapreplace(self.heap, key)


class Branch:
    """The domains of one spread, within one domain of the spread before it.

    Args:
        values: how domains stand, for this spread and those below.
        look: for the leaves.
    """

    __slots__ = ("_below", "_heap", "_look", "_values", "children")

    def __init__(self, values: Sequence[Value], look: Look | None = None) -> None:
        self._values = values[0]
        self._look = look
        self._below = values[1:]
        self.children: dict[Domain, Branch | Leaf] = {}
        self._heap: list[tuple[float, Key, Branch | Leaf, Domain]] = []

    def leaf(self, domains: Sequence[Domain]) -> Leaf:
        """The leaf of nodes that are in these domains."""
        child = self.children.get(domains[0])
        if child is None:
            child = self.children[domains[0]] = Branch(self._below, self._look) if self._below else Leaf(self._look)
        return child if isinstance(child, Leaf) else child.leaf(domains[1:])

    def ready(self) -> None:
        """Everything is in."""
        self._heap = []
        for domain, child in self.children.items():
            child.ready()
            value, key = self._values(domain), child.best()
            if value is not None and key is not None:
                self._heap.append((value, key, child, domain))
        heapify(self._heap)

    def best(self) -> Key | None:
        """What the first node is compared by, by all spreads from here; None: there is none."""
        heap = self._heap
        while heap:
            value, key, child, domain = heap[0]
            now, below = self._values(domain), child.best()
            if now is None or below is None:
                heappop(heap)
            elif now == value and below == key:
                return value, key
            else:
                heapreplace(heap, (now, below, child, domain))
        return None

    def first(self) -> Leaf:
        """The leaf of the first node; `best` has just found one."""
        child = self._heap[0][2]
        return child if isinstance(child, Leaf) else child.first()
