"""Nodes as they describe themselves, what operators want of them, and the leadership records."""

from __future__ import annotations

from enum import StrEnum, unique

import msgspec
from msgspec import Struct, field

from cdm.errors import InvalidValue
from cdm.model.artifact import NodeId
from cdm.model.slice import Term

EXTERNAL = "external"
"""No runtime of ours: an agent outside obeys the commands."""
PROCESS = "process"
"""The runtime that is taken unless another is asked for: slices are processes of the machine."""
NO_RUNTIME = "none"
"""What a node says that runs no slices."""


@unique
class Role(StrEnum):
    """What a process is for."""

    ALL = "all"
    """It takes part in elections, and its machine runs slices."""
    MANAGER = "manager"
    """It takes part in elections; no slices run here."""
    AGENT = "agent"
    """Its machine runs slices; it never leads."""


class Registration(Struct, frozen=True, omit_defaults=True):
    """What a node says of itself under ``nodes/{node}``; put again as its heartbeat."""

    role: str = Role.ALL
    """One of `Role`; text, so that a role of a later version does not make the registration unreadable.

    A manager says a capacity of 0 as well, which readers obey that know nothing of roles.
    """
    labels: dict[str, str] = field(default_factory=dict)
    capacity: int | None = None
    """Most slices that the node takes; None: no limit."""
    runtime: str = EXTERNAL
    version: str = ""
    started: str = ""
    """When the process started, RFC 3339."""
    incarnation: str = ""
    """Nonce of the process: tells a restarted process from its predecessor."""
    ttl: float | None = None
    """Seconds after which the registration expires without a heartbeat; None: not said."""

    @property
    def hosts(self) -> bool:
        """Whether slices run there."""
        return self.role != Role.MANAGER

    @property
    def leads(self) -> bool:
        """Whether it takes part in elections."""
        return self.role != Role.AGENT

    @classmethod
    def parse(cls, raw: bytes) -> Registration:
        """Read JSON. Fields that are not known are ignored, with one exception: see below.

        Raises:
            InvalidValue: it is an operator's intent under the wrong key. Taken for a registration it would be a node
                that nobody runs and that never expires.
            DecodeError: of msgspec; it is no registration.
        """
        found = _DECODER.decode(raw)
        if not found.incarnation and "schedule" in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]):
            raise InvalidValue('is no registration of a node; a "schedule" belongs under its key with .intent')
        return found


_DECODER = msgspec.json.Decoder(Registration)


@unique
class Schedule(StrEnum):
    """What an operator wants of a node."""

    NORMAL = "normal"
    CORDON = "cordon"
    """Place nothing new here; what runs stays."""
    DRAIN = "drain"
    """Place nothing new here, and move what runs elsewhere."""


class Intent(Struct, frozen=True, forbid_unknown_fields=True):
    """The value under ``nodes/{node}.intent``. Typed by people: a misspelt field is an error."""

    schedule: Schedule


NO_INTENT = Intent(Schedule.NORMAL)
"""What holds where no operator said anything."""
UNREADABLE_INTENT = Intent(Schedule.CORDON)
"""What holds where an operator said something that nobody can read: every process takes it for the careful reading."""


class Lease(Struct, frozen=True):
    """The value under ``slices/_leader``: who leads. It expires unless it is renewed."""

    node: NodeId
    term: Term
    incarnation: str = ""


class Fence(Struct, frozen=True):
    """The value under ``slices/_term``: its revision is what every leader's write is checked against."""

    term: Term
    leader: str = ""
