"""What a look at a cluster found: of which kind it is, how bad, where, and how to mend it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum, unique

from msgspec import Struct


@unique
class Severity(StrEnum):
    """How bad something is, the worst last."""

    OK = "ok"
    """Looked at, and all is well."""
    NOTE = "note"
    """Good to know; nothing has to be done."""
    WARNING = "warning"
    """It works, and will not when something else happens."""
    CRITICAL = "critical"
    """It does not work."""

    @property
    def rank(self) -> int:
        """0 for the least."""
        return list(Severity).index(self)


@unique
class FindingKind(StrEnum):
    """What is looked at, in the order in which it is shown."""

    SERVER = "server"
    """The version of nats-server, JetStream, and how full it is."""
    PERMISSIONS = "permissions"
    """What this credential may do."""
    BUCKETS = "buckets"
    """Whether the buckets are there, led, and have the settings that cdm needs."""
    REPLICAS = "replicas"
    """On how many servers they are, and whether these keep up."""
    COPIES = "copies"
    """Whether the copies that operators read keep up."""
    CHANGEOVER = "changeover"
    """Whether buckets still take roll-ups, for managers of an earlier version."""
    LEADER = "leader"
    """Whether somebody leads."""
    MANAGERS = "managers"
    """How many nodes can lead."""
    VERSIONS = "versions"
    """Whether all nodes are of one version, and what waits for those that are not."""
    NODES = "nodes"
    """Whether those that were there are there, and are heard in time."""
    TTL = "ttl"
    """Whether the TTLs of leases and registrations fit together, and fit the cluster."""
    CLOCK = "clock"
    """Whether this machine's clock and those of the nodes agree with the server's."""
    DISK = "disk"
    """What room nodes have in their folders."""
    STOPPING = "stopping"
    """Whether systemd gives nodes enough time to stop."""
    SLICES = "slices"
    """Whether slices are on nodes that nobody knows."""
    KEYS = "keys"
    """Whether the buckets hold what nobody understands."""


class Finding(Struct, frozen=True):
    """One thing that was found."""

    severity: Severity
    kind: FindingKind
    where: str
    """The bucket, node or key that it is about; empty: the cluster."""
    what: str
    mend: str = ""
    """A command, or what else to do; empty: nothing has to be done."""
    fixable: bool = False
    """Whether ``--fix`` mends it."""


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity among them."""
    return max((each.severity for each in findings), key=lambda each: each.rank, default=Severity.OK)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, and otherwise by kind and place."""
    kinds = list(FindingKind)
    return sorted(findings, key=lambda each: (-each.severity.rank, kinds.index(each.kind), each.where))
