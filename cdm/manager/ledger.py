"""What slices reserve of the processors and the memory of their nodes, summed up while slices come and go."""

from __future__ import annotations

from collections import Counter

from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.quantity import millicores
from cdm.model.rules import Needs


class Ledger:
    """Sums by node. A slice counts until its key is gone, whatever its state: its program may still be running."""

    def __init__(self) -> None:
        self._needs: dict[SliceKey, Needs] = {}
        self._millicores: Counter[NodeId] = Counter()
        """Thousandths of cores: sums of whole numbers are exact."""
        self._memory: Counter[NodeId] = Counter()

    @property
    def empty(self) -> bool:
        """Whether no slice reserves anything."""
        return not self._needs

    def note(self, key: SliceKey, needs: Needs | None) -> None:
        """A slice reserves so much from now on; None: nothing, or it is gone."""
        before = self._needs.get(key)
        if before == needs:
            return
        if before is not None:
            self._add(key, before, -1)
            del self._needs[key]
        if needs is not None:
            self._add(key, needs, 1)
            self._needs[key] = needs

    def of(self, key: SliceKey) -> Needs | None:
        """What a slice reserves."""
        return self._needs.get(key)

    def cpu(self, node: NodeId) -> float:
        """Cores that are reserved on a node."""
        return self._millicores[node] / 1000

    def memory(self, node: NodeId) -> int:
        """Bytes that are reserved on a node."""
        return self._memory[node]

    def _add(self, key: SliceKey, needs: Needs, times: int) -> None:
        self._millicores[key.node] += times * millicores(needs.cpu)
        self._memory[key.node] += times * needs.memory


def more(needs: Needs | None, than: Needs | None) -> Needs | None:
    """What a slice reserves beyond what it reserved before, of each kind; None: nothing."""
    if needs is None or than is None:
        return needs
    cpu, memory = max(needs.cpu - than.cpu, 0.0), max(needs.memory - than.memory, 0)
    return Needs(cpu, memory) if cpu or memory else None
