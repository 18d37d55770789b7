"""Judges what holds the cluster's values: the server, what may be done there, and the buckets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cdm.doctor.finding import Finding, FindingKind, Severity
from cdm.doctor.picture import BucketPicture, Picture
from cdm.model.event import EVENTS
from cdm.model.keys import ARTIFACTS
from cdm.model.node import EXPIRY_BY_CLOCK, managers_without, waits_for

FULL, NEARLY_FULL = 0.95, 0.8
"""Shares of the room that JetStream allows at which it counts as full, and as nearly so."""
MUCH_LAG = 1000
"""Writes that a replica or a copy may be behind; more than are under way at any moment."""
LONG_SILENCE = 10.0
"""Seconds without a sign of life, which come every second, after which a copy counts as cut off."""
WHAT_MANAGERS_KNOW = "that leases and registrations expire without a marker"
"""What a manager must know before buckets take no roll-ups, for people."""
_DISPENSABLE = {ARTIFACTS.name: ": nothing was ever pushed", EVENTS: ": nobody is told what happens"}
"""What there is beside the buckets, and what is missing where it is."""
ENOUGH = 3
"""Servers from which on one of them can be lost."""


def server(picture: Picture) -> Iterator[Finding]:
    """The server's version, JetStream, and the room that is left."""
    found = picture.server
    if found.problem:
        yield Finding(
            Severity.CRITICAL,
            FindingKind.SERVER,
            "",
            found.problem,
            "nats-server 2.12 or later, with JetStream (nats-server -js); of a cluster most servers must run",
        )
    elif found.version:
        known = f"{found.servers} servers are known" if found.servers > 1 else "one server"
        yield Finding(Severity.OK, FindingKind.SERVER, "", f"nats-server {found.version} with JetStream; {known}")
    for room in found.storage:
        share = room.used / room.limit if room.limit > 0 else 0.0
        if share >= NEARLY_FULL:
            yield Finding(
                Severity.CRITICAL if share >= FULL else Severity.WARNING,
                FindingKind.SERVER,
                "",
                f"{share:.0%} of {room.what} is taken; once it is full nothing can be written",
                "raise the limit in the server's configuration, or remove artifacts: cdm artifact ls",
            )


def permissions(picture: Picture) -> Iterator[Finding]:
    """What this credential may do: good to know before one types anything."""
    may = [what for what, allowed in picture.may.items() if allowed]
    not_ = [what for what, allowed in picture.may.items() if allowed is False]
    if picture.may:
        told = f"may {_listed(may) or 'nothing'}"
        yield Finding(
            Severity.OK, FindingKind.PERMISSIONS, "", f"{told}; may not {_listed(not_, 'or')}" if not_ else told
        )


def buckets(picture: Picture) -> Iterator[Finding]:
    """They are there, are led, and have the settings that are needed."""
    for bucket in picture.buckets:
        if bucket.missing:
            lacks = next((told for name, told in _DISPENSABLE.items() if bucket.name.endswith(name)), "")
            yield Finding(
                Severity.NOTE if lacks else Severity.CRITICAL,
                FindingKind.BUCKETS,
                bucket.name,
                "does not exist" + lacks,
                "cdm init",
            )
        elif bucket.problem:
            yield Finding(
                Severity.WARNING, FindingKind.BUCKETS, bucket.name, f"could not be looked at: {bucket.problem}"
            )
        elif not bucket.led:
            yield Finding(
                Severity.CRITICAL,
                FindingKind.BUCKETS,
                bucket.name,
                "has no leader: most of the servers that hold it are away, or one is being elected",
                "start those servers; nats stream info shows them",
            )
        if bucket.lacking:
            changes = ", ".join(f"{name}={value}" for name, value in bucket.lacking.items())
            yield Finding(
                Severity.CRITICAL,
                FindingKind.BUCKETS,
                bucket.name,
                f"has other settings than cdm needs; to be changed: {changes}",
                "cdm doctor --fix, or cdm init",
                fixable=True,
            )


def replicas(picture: Picture) -> Iterator[Finding]:
    """On enough servers, on equally many, and all of these keep up."""
    there = [bucket for bucket in picture.buckets if not (bucket.missing or bucket.problem)]
    counts = {bucket.replicas for bucket in there}
    if len(counts) > 1:
        told = ", ".join(f"{bucket.name} {bucket.replicas}" for bucket in there)
        yield Finding(
            Severity.WARNING,
            FindingKind.REPLICAS,
            "",
            f"buckets have different numbers of replicas ({told}); the cluster is lost with the least",
            f"cdm init --replicas {max(counts)}",
        )
    if counts and min(counts) < ENOUGH <= picture.server.servers:
        alone = "one server holds" if min(counts) == 1 else "two servers hold"
        yield Finding(
            Severity.WARNING,
            FindingKind.REPLICAS,
            "",
            f"{alone} what {picture.server.servers} could; when one is lost, nothing can be written",
            f"cdm init --replicas {ENOUGH}",
        )
    lost: dict[str, list[str]] = {}
    behind: dict[str, int] = {}
    for bucket in there:
        for peer in bucket.peers:
            if peer.lost:
                lost.setdefault(peer.name, []).append(bucket.name)
            elif peer.lag > MUCH_LAG:
                behind[peer.name] = max(peer.lag, behind.get(peer.name, 0))
    states = {name: f"is {lag:,} writes behind" for name, lag in behind.items()}
    states |= {name: f"is not heard, and is to hold {', '.join(held)}" for name, held in lost.items()}
    for name, what in sorted(states.items()):
        yield Finding(
            Severity.WARNING, FindingKind.REPLICAS, name, f"server {what}", "start that server, or look at its log"
        )


def copies(picture: Picture) -> Iterator[Finding]:
    """What operators read is what there is."""
    for bucket in picture.buckets:
        if bucket.lag is None:
            continue
        if bucket.silent is None or bucket.silent > LONG_SILENCE:
            since = "ever" if bucket.silent is None else f"for {bucket.silent:.0f} s"
            told = f"the copy has not heard of its bucket {since}"
        elif bucket.lag > MUCH_LAG:
            told = f"the copy is {bucket.lag:,} writes behind"
        else:
            continue
        yield Finding(
            Severity.WARNING,
            FindingKind.COPIES,
            bucket.name,
            f"{told}; commands show what was",
            "cdm init, as the admin",
        )


def changeover(picture: Picture) -> Iterator[Finding]:
    """Buckets take no roll-ups any more."""
    lacking = managers_without(EXPIRY_BY_CLOCK, ((node, each.registration) for node, each in picture.nodes.items()))
    waits = waits_for(lacking, WHAT_MANAGERS_KNOW)
    old = [bucket for bucket in picture.buckets if bucket.rolls_up]
    for bucket in old:
        known = not (waits or picture.unseen)
        yield Finding(
            Severity.WARNING if known else Severity.NOTE,
            FindingKind.CHANGEOVER,
            bucket.name,
            f"still takes roll-ups: whoever may write one key can have others removed{f'; {waits}' if waits else ''}",
            "cdm doctor --fix, or cdm init --upgrade" if known else "upgrade managers first",
            fixable=known,
        )
    if waits and not old and _whole(picture.buckets):
        yield Finding(
            Severity.CRITICAL,
            FindingKind.CHANGEOVER,
            "",
            f"buckets take no roll-ups any more, and managers of an earlier version elect nobody on them; {waits}",
            "upgrade that manager",
        )


def _whole(found: Iterable[BucketPicture]) -> bool:
    return all(not (bucket.missing or bucket.problem) and bucket.lag is None for bucket in found)


def _listed(words: list[str], last: str = "and") -> str:
    """Words as in a sentence."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
