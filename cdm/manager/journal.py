"""What a manager sees and decides, kept until it is told as events: bounded, and cheap where it happens.

Every manager keeps it, whether it leads or not. So a new leader tells what the one before it may not have got round to.
What that one did tell is told again under the same id, and the stream drops it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from cdm.dispatch.messages import LeaderChange, Message, NodeDied, NodeLeft, ValuePut, ValueRemove
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, SeenKey
from cdm.model.node import Registration, Seen

MOST = 8_192
"""Most notes that wait to be told; where more come, the oldest are dropped and counted."""
TELLABLE = 100.0
"""Seconds after which nothing is told any more: the stream knows an id again for little longer, and what another leader
told before would be told twice."""


class Note(NamedTuple):
    """Something that happened."""

    message: Message
    before: Any = None
    """What was known until then of what it is about, as `cdm.manager.events` needs it for such a message."""
    beside: Any = None
    """Of a slice, the `Order` that may have led to it; of what carries no time, when it was."""

    @property
    def at(self) -> float:
        """When it was, in seconds on this node's clock."""
        at: float = getattr(self.message, "at", self.beside)
        return at


class Journal:
    """The notes of one process.

    Args:
        wake: called when a leader has something to tell, and had nothing before.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._notes: deque[tuple[Message, Any, Any]] = deque(maxlen=MOST)
        """Plain tuples: a note is made of one when it is told."""
        self._append = self._notes.append
        self._noted = 0
        """How many notes were made."""
        self._taken = 0
        """How many of them were taken, or are known to be dropped."""
        self._wanted = False
        """Whether somebody waits for the next note."""
        self.leads = False
        """Whether this process is to tell what is noted."""
        self._nodes: dict[NodeId, ValuePut[NodeKey, Registration] | None] = {}
        """With which message each node last said what it is; None: it is gone since."""

    def note(self, message: Message, before: Any = None, beside: Any = None) -> None:
        """Keep what happened; see `Note`."""
        self._append((message, before, beside))
        self._noted += 1
        if self._wanted:
            self._wanted = False
            self._wake()

    def note_node(self, put: ValuePut[NodeKey, Registration]) -> None:
        """Keep that a node says something else than before, or that it is there."""
        node = put.key.node
        self.note(put, self._nodes.get(node), node in self._nodes)
        self._nodes[node] = put

    def note_gone(self, change: NodeLeft | NodeDied, at: float) -> None:
        """Keep that a node is gone."""
        self.note(change, self._nodes.get(change.node), at)
        self._nodes[change.node] = None

    def note_forgotten(self, remove: ValueRemove[SeenKey, Seen]) -> None:
        """Keep that what was remembered of a node is gone; here, too, where the node is."""
        self.note(remove)
        if self._nodes.get(remove.key.node) is None:
            self._nodes.pop(remove.key.node, None)

    def lead(self, change: LeaderChange, at: float) -> None:
        """This process tells from now on, also what happened lately."""
        self.note(change, None, at)
        kept = [each for each in self._notes if Note._make(each).at > at - TELLABLE]
        self._notes.clear()
        self._notes.extend(kept)
        self._noted, self._taken, self._wanted, self.leads = len(kept), 0, False, True
        self._wake()

    def follow(self) -> None:
        """Another process tells."""
        self._wanted = self.leads = False

    @property
    def waiting(self) -> int:
        """How many notes wait to be told."""
        return len(self._notes)

    def take(self, limit: int) -> list[Note]:
        """Up to ``limit`` notes, the oldest first; where there are none, the next one wakes."""
        notes = self._notes
        taken = [Note._make(notes.popleft()) for _ in range(min(limit, len(notes)))]
        self._taken += len(taken)
        self._wanted = not taken
        return taken

    def dropped(self) -> int:
        """How many notes were dropped since this was last asked."""
        missing = self._noted - self._taken - len(self._notes)
        self._taken += missing
        return missing
