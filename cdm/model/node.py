"""What nodes say of themselves, operators' intents for them, and the records of leadership."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum, unique
from math import inf

import msgspec
from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from cdm.errors import InvalidValue
from cdm.model.artifact import NodeId
from cdm.model.duration import Duration, check_duration, seconds
from cdm.model.problems import problem_with_encoding, without_mark
from cdm.model.quantity import MOST_CPU, MOST_MEMORY
from cdm.model.slice import Term

EXTERNAL = "external"
"""No runtime of cdm's: an agent outside cdm obeys the commands."""
PROCESS = "process"
"""The default runtime: slices are processes of the machine."""
NO_RUNTIME = "none"
"""Registered by a node that runs no slices."""


ROLLOUTS = "rollouts"
"""The feature of managers that carry out rollouts, and read what blueprints say of them."""
PLACEMENT = "placement"
"""The feature of managers that know what blueprints say of where instances go."""
SECRETS = "secrets"
"""The feature of managers that know secrets in blueprints, and keep copies of blueprints out of ``status``."""
DRAINS = "drains"
"""The feature of managers that know intents with a deadline or a reason, and nodes that leave (`Registration.leaving`);
one that does not takes such an intent for one that cannot be read, and so for cordon."""
EXPIRY_BY_CLOCK = "expiry-by-clock"
"""The feature of managers that know by their clock when a lease or a registration expires, and need no marker of it."""
EXPIRY_IN_WORDS = "that leases and registrations expire without a marker"
"""What such a manager knows, for people."""
RUN_MARKS = "run-marks"
"""The feature of nodes that mark in slices' output where a run ends and another one begins."""
SLOTS = "slots"
"""The feature of managers that know the keys of managers' slots; to one that does not they are keys out of order."""
FEATURES = (RUN_MARKS, ROLLOUTS, PLACEMENT, SECRETS, DRAINS, EXPIRY_BY_CLOCK, SLOTS)
"""Every feature that all nodes of this version have."""
MANIFEST_INSIDE = "manifest-inside"
"""The feature of nodes that read artifacts with the manifest at the end of their bytes."""
GIVES_SECRETS = "gives-secrets"
"""The feature of nodes that have secrets, and a runtime that gives them to slices."""
RUNS_SIGNED = "runs-signed"
"""The feature of nodes that run only what is signed by a key that they trust."""


_MOST = {"capacity": 2**53, "cpu": MOST_CPU, "memory": MOST_MEMORY, "load": 1_000.0, "ttl": 365 * 86_400.0}
"""The most of each that is believed of a node; below 0 is 0."""
_YEAR = 365 * 86_400.0
_MOST_VITALS = {
    "clock": 1e11,
    "lease_ttl": _YEAR,
    "disk_free": 2**63,
    "disk_size": 2**63,
    "stop_limit": _YEAR,
    "stop_needs": _YEAR,
    "managers": 1_000,
}
"""The same of its vitals."""


def _bound(told: Struct, most_of: Mapping[str, float]) -> None:
    """Make numbers that are out of bounds the nearest within them."""
    for name, most in most_of.items():
        said = getattr(told, name)
        if said is not None and not 0 <= said <= most:
            force_setattr(told, name, min(max(said, type(most)(0)), most))


HEARING_PACE = 0.004
"""Seconds for each node within which all hear their commands again after an outage, one after the other."""
HEARTBEATS_PER_TTL = 3
"""A registration survives the loss of this many heartbeats less one."""
LATE = 0.6
"""Share of its TTL after which a node is late with a heartbeat."""


@unique
class Role(StrEnum):
    """What a process is for."""

    ALL = "all"
    """Takes part in elections, and runs slices."""
    MANAGER = "manager"
    """Takes part in elections, and runs no slices."""
    AGENT = "agent"
    """Runs slices, and never leads."""
    AUTO = "auto"
    """Runs slices, and takes part in elections while it holds a manager's slot. It registers as `ALL` or `AGENT`."""


class Vitals(Struct, frozen=True, omit_defaults=True):
    """What a node tells with each heartbeat for those who look after it; nothing is decided by it.

    What is None is not known.
    """

    clock: float | None = None
    """The time of day by its clock when it sent this, in seconds since 1970."""
    lease_ttl: float | None = None
    """Of a manager: seconds that its lease would last."""
    disk_free: int | None = None
    """Bytes that are free where its folder is."""
    disk_size: int | None = None
    """Bytes that there are where its folder is."""
    stop_limit: float | None = None
    """Seconds after which systemd kills it when it is told to stop."""
    stop_needs: float | None = None
    """Seconds that it may take to stop now: the longest grace of its slices, and what it waits for them to be replaced
    elsewhere."""
    managers: int | None = None
    """Of role `Role.AUTO`: how many nodes of that role are to manage, as far as it was told."""

    def __post_init__(self) -> None:
        """Believe no number that no machine has."""
        _bound(self, _MOST_VITALS)


class HttpAt(Struct, frozen=True, omit_defaults=True):
    """Where a node serves HTTP."""

    port: int
    address: str | None = None
    """None: at the node's own address."""
    tls: bool = False


class Registration(Struct, frozen=True, omit_defaults=True):
    """The value under ``nodes/{node}``, which the node puts again as its heartbeat.

    Numbers out of bounds become the nearest within them: refused, the node would be lost for what it tells wrongly.
    """

    role: str = Role.ALL
    """One of `Role`; a string, so that a role of a later version does not make the registration unreadable.

    A manager registers a capacity of 0, too, for readers that do not know roles.
    """
    labels: dict[str, str] = field(default_factory=dict)
    capacity: int | None = None
    """Most slices that the node takes; None: no limit. A node that is about to leave puts 0."""
    runtime: str = EXTERNAL
    version: str = ""
    started: str = ""
    """When the process started, RFC 3339."""
    incarnation: str = ""
    """A nonce that distinguishes a restarted process from its predecessor."""
    ttl: float | None = None
    """Seconds after which the registration expires without a heartbeat; None: not given."""
    address: str | None = None
    """Where its slices are reached; None: not given."""
    features: tuple[str, ...] = ()
    """What this version of cdm can do that earlier ones cannot (`FEATURES`)."""
    cpu: float | None = None
    """Cores that slices may reserve; None: not given."""
    memory: int | None = None
    """Bytes of memory that slices may reserve; None: not given."""
    load: float | None = None
    """How busy its processors are, in coarse steps: 1.0 means that each has just enough to do. None: not given."""
    leaving: bool = False
    """It is about to stop, and waits for its slices to be moved elsewhere: to managers it is a node that drains."""
    auto: bool = False
    """Its role changes: it takes part in elections while it holds a manager's slot, and takes a free one."""
    vitals: Vitals | None = None
    """For `cdm doctor`; None: an earlier version."""
    http: HttpAt | None = None
    """Where it serves HTTP, and can be asked for metrics; None: it does not."""

    def __post_init__(self) -> None:
        """Believe no number that no machine has: whatever a node says of itself, those that decide can reckon with."""
        _bound(self, _MOST)
        if self.ttl == 0:
            force_setattr(self, "ttl", None)

    def differs_from(self, other: Registration) -> bool:
        """Whether it says another thing; how busy and how well it is changes all the time, and does not count."""
        return self != other and replace(self, load=other.load, vitals=other.vitals) != other

    @property
    def lasting(self) -> Registration:
        """The same without how busy and how well it is."""
        return self if self.load is None and self.vitals is None else replace(self, load=None, vitals=None)

    @property
    def hosts(self) -> bool:
        """Whether slices run there."""
        return self.role != Role.MANAGER

    @property
    def leads(self) -> bool:
        """Whether it takes part in elections."""
        return self.role != Role.AGENT

    @property
    def may_lead(self) -> bool:
        """Whether it takes part in elections, or may do so any time."""
        return self.leads or self.auto

    @classmethod
    def parse(cls, raw: bytes) -> Registration:
        """Read JSON. Unknown fields are ignored, with one exception.

        Raises:
            InvalidValue: it is an operator's intent under the wrong key; as a registration it would be a node without
                a process, which never expires.
            DecodeError: msgspec's; it is not a registration.
        """
        found = _DECODER.decode(raw)
        if not found.incarnation and "schedule" in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]):
            raise InvalidValue('is not the registration of a node; a "schedule" belongs under the key NODE.intent')
        return found


_DECODER = msgspec.json.Decoder(Registration)


def managers_without(feature: str, nodes: Iterable[tuple[NodeId, Registration]]) -> list[tuple[NodeId, str]]:
    """The managers among these nodes that do not have a feature, and their version of cdm."""
    return sorted(
        (node, each.version) for node, each in nodes if each.may_lead and each.version and feature not in each.features
    )


def waits_for(lacking: Sequence[tuple[NodeId, str]], what: str) -> str:
    """Say which managers do not know something yet; empty: none of them."""
    if not lacking:
        return ""
    node, version = lacking[0]
    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    return f"waiting for manager {node}{more}: its cdm {version} does not know {what}; upgrade managers first"


@unique
class Schedule(StrEnum):
    """What may be placed on a node."""

    NORMAL = "normal"
    CORDON = "cordon"
    """Nothing new is placed here; what runs stays."""
    DRAIN = "drain"
    """Nothing new is placed here, and what runs is moved elsewhere."""


class Intent(Struct, frozen=True, omit_defaults=True):
    """The value under ``nodes/{node}.intent``. Operators write it, by hand too."""

    schedule: Schedule
    deadline: Duration | None = None
    """Of a drain: how long after it was stored the node is to be empty; None: whenever it is."""
    force: bool = False
    """Of a drain: what is left at the deadline is taken away, be there a replacement or not; at once without one."""
    reason: str = ""
    """For people."""
    unknown: tuple[str, ...] = ()
    """Fields that this version does not know, which have no effect; they are found when it is read."""

    @property
    def due(self) -> float:
        """Seconds after it was stored at which a drain is to be over; inf: no time is said."""
        if self.deadline is not None:
            return seconds(self.deadline)
        return 0.0 if self.force else inf

    @classmethod
    def parse(cls, raw: bytes) -> Intent:
        """Read JSON. Unknown fields are noted, and have no effect.

        Raises:
            InvalidValue: it is not encoded in UTF-8, or its deadline is too long.
            DecodeError: msgspec's; it is not an intent.
        """
        if problem := problem_with_encoding(raw):
            raise InvalidValue(problem)
        text = without_mark(raw)
        found = _INTENT_DECODER.decode(text)
        if found.deadline is not None:
            check_duration("deadline", found.deadline)
        told = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return replace(found, unknown=tuple(each for each in told if each not in INTENT_FIELDS))


INTENT_FIELDS = ("schedule", "deadline", "force", "reason")
"""What is written under ``nodes/{node}.intent``."""
_INTENT_DECODER = msgspec.json.Decoder(Intent)
NO_INTENT = Intent(Schedule.NORMAL)
"""The intent where there is none."""
UNREADABLE_INTENT = Intent(Schedule.CORDON)
"""The intent where the value cannot be read: the careful one, and the same for every process."""


LEFT, LOST = "left", "lost"
"""How a node can be gone: it took its registration back, or it was not heard of any more."""
HAD = 200
"""Most artifacts of which it is remembered that a lost node had some."""


class Seen(Struct, frozen=True, omit_defaults=True):
    """The value under ``nodes/{node}.seen``: that there is such a node. The leader writes it; it never expires."""

    registration: Registration
    """The node's last one."""
    gone: str | None = None
    """`LEFT` or `LOST`, since this was written; None: the node is there, or was when last heard of."""
    had: dict[str, int] = field(default_factory=dict)
    """Of one that is gone: how many slices of which artifacts it had at that time, `HAD` artifacts at most."""


class Slot(Struct, frozen=True):
    """The value under ``nodes/_manager.{number}``: which node manages. It expires unless it is renewed."""

    node: NodeId
    incarnation: str = ""


class Lease(Struct, frozen=True):
    """The value under ``slices/_leader``: which node leads. It expires unless it is renewed."""

    node: NodeId
    term: Term
    incarnation: str = ""


class Fence(Struct, frozen=True):
    """The value under ``slices/_term``: its revision is what every leader's write is checked against."""

    term: Term
    leader: str = ""
    incarnation: str = ""
    """Nonce of the leader's process: tells its own writes from others'."""
