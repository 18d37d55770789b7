"""Judges a whole picture: every kind of finding once, and what is well is told, too. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cdm.doctor import fleet, storage
from cdm.doctor.finding import Finding, Kind, Severity, ordered
from cdm.doctor.picture import Picture

Check = Callable[[Picture], Iterator[Finding]]

CHECKS: dict[Kind, tuple[Check, str]] = {
    Kind.SERVER: (storage.server, ""),
    Kind.PERMISSIONS: (storage.permissions, ""),
    Kind.BUCKETS: (storage.buckets, "all are there, with the settings that are needed"),
    Kind.REPLICAS: (storage.replicas, "as many as the servers allow, and all keep up"),
    Kind.COPIES: (storage.copies, "none, or all keep up"),
    Kind.CHANGEOVER: (storage.changeover, "no bucket has what earlier versions needed"),
    Kind.LEADER: (fleet.leader, ""),
    Kind.MANAGERS: (fleet.managers, ""),
    Kind.VERSIONS: (fleet.versions, "all nodes have the same"),
    Kind.NODES: (fleet.nodes, "all are there, and heard in time"),
    Kind.TTL: (fleet.ttls, "they fit"),
    Kind.CLOCK: (fleet.clocks, "those that are told agree with the server's"),
    Kind.DISK: (fleet.disks, "there is room where it is told"),
    Kind.STOPPING: (fleet.stopping, "there is time enough where it is told"),
    Kind.SLICES: (fleet.slices, "all are of nodes that are known"),
    Kind.KEYS: (fleet.keys, "all are understood"),
}
"""Of each kind what looks for it, and what is told where it finds nothing; empty: nothing is."""
ABOUT_CONTENTS = (*list(Kind)[list(Kind).index(Kind.LEADER) :],)
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
                Kind.KEYS,
                "",
                f"the buckets cannot be read, and so nothing is known of the nodes: {picture.unseen}",
                "see what is told of the buckets and of permissions, and mend that first",
            )
        )
    return ordered(found)
