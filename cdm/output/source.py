"""One node that ``cdm logs`` asks for output: what was asked, and what came."""

from __future__ import annotations

from collections import defaultdict, deque
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from cdm import clock
from cdm.dispatch.messages import ValuePut
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey
from cdm.model.node import EXTERNAL, Registration
from cdm.output.wire import LogReply, Position, WireLine

Registered = ValuePut[NodeKey, Registration]


def keeps_output(registration: Registration) -> bool:
    """Whether a node runs slices itself."""
    return registration.hosts and registration.runtime != EXTERNAL


class Shown(NamedTuple):
    """A line, and where it comes from."""

    artifact: str
    node: str
    line: WireLine

    @property
    def time(self) -> datetime:
        """When it was written."""
        return self.line.time


class Received:
    """What one node has sent, whatever the number of requests that were needed.

    Args:
        node: its name.
        artifact: whose lines they are.
    """

    def __init__(self, node: NodeId, artifact: str) -> None:
        self.node = node
        self._artifact = artifact
        self.lines: deque[Shown] = deque()
        """Lines that are not shown yet."""
        self.positions: defaultdict[int, Position] = defaultdict(Position)
        """How far each slice's lines have come, by ordinal."""
        self.complained = False
        """Whether the user knows that the node does not answer."""

    @property
    def after(self) -> dict[int, datetime]:
        """Where another request is to go on."""
        return {ordinal: at.time for ordinal, at in self.positions.items() if at.time is not None}

    def go_back(self) -> None:
        """The node is asked once more, for what comes `after`."""
        for position in self.positions.values():
            position.go_back()

    def take(self, lines: list[WireLine]) -> None:
        """Keep the lines that are new."""
        self.lines.extend(
            Shown(self._artifact, self.node, new) for line in lines for new in self.positions[line.ordinal].new(line)
        )

    def remark(self, text: str) -> None:
        """Put a line of cdm's own between them."""
        self.lines.append(Shown(self._artifact, self.node, WireLine(datetime.now(UTC), "cdm", 0, text)))


class SourcePhase(Enum):
    """How far a request has come.

    ::

        ASKED ──► REPLYING ──► ENDED
          │           │
          ├───────────┼──► LOST
          └───────────┴──► REFUSED
    """

    ASKED = auto()
    REPLYING = auto()
    ENDED = auto()
    """Everything that was asked for has been received."""
    LOST = auto()
    """The node does not answer. It is asked again as soon as it is heard of again."""
    REFUSED = auto()
    """The node said why it does not answer. It would say so again: only its next process is asked again."""


class Source:
    """One request to a node.

    Args:
        registered: the node's newest heartbeat.
        subject: where the node listens.
        session: beginning of the subjects that it replies to.
        received: what it sent before; this request goes on there.
        excused: whether its process may be about to listen: that it does not listen yet is then no reason to complain.
    """

    def __init__(
        self, registered: Registered, subject: str, session: str, received: Received, *, excused: bool
    ) -> None:
        self.registered = registered
        self.node = registered.key.node
        self.subject = subject
        self.session = session
        self.received = received
        self.excused = excused
        self.phase = SourcePhase.ASKED
        self.slices: list[int] | None = None
        """The ordinals that it has output of; None: it has not replied yet."""
        self.published = 0
        """Messages that were sent to the node for this request: each names a reply subject of its own."""
        self.seen = 0
        """Number of the last reply with lines."""
        self.acknowledged = 0
        """Number of the last reply whose lines were shown."""
        self.heard = clock.now()
        """When its last reply came."""

    @property
    def open(self) -> bool:
        """Whether replies are expected."""
        return self.phase in (SourcePhase.ASKED, SourcePhase.REPLYING)

    def reply(self, reply: LogReply, lines: list[WireLine]) -> bool:
        """Take in a reply; returns False where earlier ones with lines were lost."""
        if self.phase is SourcePhase.ASKED:
            self.phase = SourcePhase.REPLYING
            self.slices = reply.slices or []
        lost = reply.number - self.seen - bool(lines)
        if lost:
            self.received.remark(f"{lost} messages with lines were lost on the way")
        self.seen = reply.number
        self.received.take(lines)
        if reply.end:
            self.phase = SourcePhase.ENDED
        return not lost
