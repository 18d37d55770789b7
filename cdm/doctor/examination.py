"""Judges a whole picture: every kind of finding once, and what is well is told, too. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cdm.doctor import fleet, storage
from cdm.doctor.finding import Finding, FindingKind, Severity, ordered
from cdm.doctor.picture import Picture

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


def examine(picture: Picture) -> list[Finding]:
    """All that is found, the worst first; at least one of each kind that can be judged."""
    if picture.server.problem:
        return ordered(storage.server(picture))
    found: list[Finding] = []
    for kind, (check, well) in CHECKS.items():
        if picture.unseen and kind in ABOUT_CONTENTS:
            continue
        findings = list(check(picture))
        if not findings and well:
            findings = [Finding(Severity.OK, kind, "", well)]
        found.extend(findings)
    if picture.unseen and not any(each.severity is Severity.CRITICAL for each in found):
        found.append(
            Finding(
                Severity.CRITICAL,
                FindingKind.KEYS,
                "",
                f"the buckets cannot be read, and so nothing is known of the nodes: {picture.unseen}",
                "see what is told of the buckets and of permissions, and mend that first",
            )
        )
    return ordered(found)
