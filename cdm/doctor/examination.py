"""Judges a whole picture: every kind of finding once, and what is well is told, too. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cdm.doctor import fleet, storage
from cdm.doctor.finding import Finding, FindingKind, Severity, ordered
from cdm.doctor.picture import READ, Picture

Check = Callable[[Picture], Iterator[Finding]]

CHECKS: dict[FindingKind, tuple[Check, str]] = {
    FindingKind.SERVER: (storage.server, ""),
    FindingKind.PERMISSIONS: (storage.permissions, ""),
    FindingKind.BUCKETS: (storage.buckets, "all are there, with the settings that are needed"),
    FindingKind.REPLICAS: (storage.replicas, "as many as the servers allow, and all keep up"),
    FindingKind.COPIES: (storage.copies, "none, or all keep up"),
    FindingKind.CHANGEOVER: (storage.changeover, "no bucket has what earlier versions needed"),
    FindingKind.LEADER: (fleet.leader, ""),
    FindingKind.MANAGERS: (fleet.managers, ""),
    FindingKind.VERSIONS: (fleet.versions, "all nodes have the same"),
    FindingKind.NODES: (fleet.nodes, "all are there, and heard in time"),
    FindingKind.TTL: (fleet.ttls, "they fit"),
    FindingKind.CLOCK: (fleet.clocks, "those that are told agree with the server's"),
    FindingKind.DISK: (fleet.disks, "there is room where it is told"),
    FindingKind.STOPPING: (fleet.stopping, "there is time enough where it is told"),
    FindingKind.SLICES: (fleet.slices, "all are of nodes that are known"),
    FindingKind.KEYS: (fleet.keys, "all are understood"),
}
"""Of each kind what looks for it, and what is told where it finds nothing; empty: nothing is."""
ABOUT_CONTENTS = (*list(FindingKind)[list(FindingKind).index(FindingKind.LEADER) :],)
"""The kinds that nothing can be said of where the buckets cannot be read."""
ABOUT_STREAMS = (FindingKind.REPLICAS, FindingKind.COPIES, FindingKind.CHANGEOVER)
"""Those that nothing can be said of where no bucket's stream can be looked at."""


def examine(picture: Picture) -> list[Finding]:
    """All that is found, the worst first; at least one of each kind that can be judged."""
    if picture.server.problem:
        return ordered(storage.server(picture))
    skipped: tuple[FindingKind, ...] = () if any(not bucket.problem for bucket in picture.buckets) else ABOUT_STREAMS
    if picture.unseen:
        skipped += ABOUT_CONTENTS
    found: list[Finding] = []
    for kind, (check, well) in CHECKS.items():
        if kind not in skipped:
            findings = list(check(picture))
            found += findings or ([Finding(Severity.OK, kind, "", well)] if well else [])
    if picture.unseen and not any(each.severity is Severity.CRITICAL for each in found):
        found.append(_unseen(picture))
    return ordered(found)


def _unseen(picture: Picture) -> Finding:
    if READ in picture.may and picture.may[READ] is False:
        return Finding(
            Severity.WARNING,
            FindingKind.PERMISSIONS,
            "",
            f"may not read the buckets, so nobody has looked at the nodes, and at what is stored: {picture.unseen}",
            "cdm doctor with the credentials of an operator or a manager",
        )
    return Finding(
        Severity.CRITICAL,
        FindingKind.BUCKETS,
        "",
        f"cannot be read, so nothing is known of the nodes: {picture.unseen}",
        "start the servers that hold them; see their logs",
    )
