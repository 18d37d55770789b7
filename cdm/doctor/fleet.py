"""Judges the nodes: who leads, who could, which versions and TTLs there are, clocks, room, time to stop. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import ceil
from shlex import quote

from cdm.doctor.finding import Finding, FindingKind, Severity
from cdm.doctor.picture import Picture
from cdm.model.artifact import NodeId
from cdm.model.node import (
    DRAINS,
    EXPIRY_BY_CLOCK,
    HEARTBEATS_PER_TTL,
    LATE,
    LOST,
    PLACEMENT,
    ROLLOUTS,
    SECRETS,
    managers_without,
)
from cdm.model.quantity import memory_shown

ELECTION = 9.0
"""Seconds for which NATS may accept nothing while it elects a stream's leader."""
MANY_BEATS = 500.0
"""Heartbeats a second, of all nodes, from which on longer TTLs are worth it."""
CLOCK_OFF = 1.0
"""Seconds by which a clock may be wrong; more puts lines of logs and times of changes out of order."""
LITTLE, NEXT_TO_NOTHING = 0.1, 0.02
"""Shares of a disk that are free: little, and next to nothing."""
LEAST_FREE = 2**30
"""Bytes that are enough, whatever share of the disk that is."""
STOP_MARGIN = 10.0
"""Seconds that a node takes to stop besides what its slices do: it tells managers, and awaits programs."""
CROWD = 9
"""Managers above which there are more than are of any use."""
NAMED = 5
"""Most nodes that are named in one finding."""

_WORDS = {
    ROLLOUTS: "rollouts",
    PLACEMENT: "rules of placement",
    SECRETS: "secrets",
    DRAINS: "drains with a deadline",
    EXPIRY_BY_CLOCK: "that leases and registrations expire without a marker",
}


def leader(picture: Picture) -> Iterator[Finding]:
    """Somebody leads, and is registered."""
    lease = picture.lease
    if lease is None:
        able = bool(_managers(picture))
        yield Finding(
            Severity.CRITICAL,
            FindingKind.LEADER,
            "",
            "nobody leads: what runs goes on running, and nothing changes"
            + ("" if able else "; no node is registered that could lead"),
            "wait ten seconds, and then read the managers' logs" if able else "start cdm node, of role auto or manager",
        )
    elif lease.node not in picture.nodes:
        yield Finding(
            Severity.WARNING,
            FindingKind.LEADER,
            lease.node,
            "leads and is not registered: it has just died, or its heartbeats are not accepted",
            "look at its log; another node takes over when the lease has expired",
        )
    else:
        yield Finding(Severity.OK, FindingKind.LEADER, lease.node, f"leads, in term {lease.term}")


def managers(picture: Picture) -> Iterator[Finding]:
    """One that is lost is replaced by another."""
    able = _managers(picture)
    spare = sorted(node for node, each in picture.nodes.items() if each.registration.auto and node not in able)
    count = f"{len(able)} node{'' if len(able) == 1 else 's'} can lead"
    if spare:
        count += (
            f", and {len(spare)} more stand{'s' if len(spare) == 1 else ''} by to take the place of one that is lost"
        )
    lost = any(seen.gone == LOST and node not in picture.nodes for node, seen in picture.seen.items())
    if len(able) == 1 and (len(picture.nodes) > 1 or lost) and not spare:
        yield Finding(
            Severity.WARNING,
            FindingKind.MANAGERS,
            able[0],
            "is the only node that can lead; when it is lost nothing is replaced",
            "start cdm node, of role auto or manager, on two more machines",
        )
    elif len(able) > CROWD:
        yield Finding(
            Severity.NOTE,
            FindingKind.MANAGERS,
            "",
            f"{count}, and each of them keeps all buckets in memory; three to five are enough",
            "run the others with cdm node --role auto, or agent",
        )
    elif able:
        yield Finding(Severity.OK, FindingKind.MANAGERS, "", count)
    wanted = _by_value(
        {node: vitals.managers for node, each in picture.nodes.items() if (vitals := each.registration.vitals)}
    )
    if len(wanted) > 1:
        told = "; ".join(f"{most:g}: {_named(where)}" for most, where in sorted(wanted.items()))
        yield Finding(
            Severity.WARNING,
            FindingKind.MANAGERS,
            "",
            f"nodes have different --managers ({told}); how many can lead depends on who comes first",
            "start all nodes with the same --managers",
        )


def versions(picture: Picture) -> Iterator[Finding]:
    """All nodes are of one version, or managers of the newest, and nothing waits for them."""
    of = {node: each.registration.version for node, each in picture.nodes.items() if each.registration.version}
    known = sorted({*of.values()}, key=_numbers)
    able = [node for node in _managers(picture) if node in of]
    old = [node for node in able if _numbers(of[node]) < _numbers(known[-1])]
    if old:
        yield Finding(
            Severity.WARNING,
            FindingKind.VERSIONS,
            _named(old),
            f"can lead with cdm {of[old[0]]}, and other nodes have cdm {known[-1]}",
            "upgrade managers first, one after another: stop the node, install, start it",
        )
    elif len(known) > 1:
        behind = [node for node in sorted(of) if of[node] != known[-1]]
        yield Finding(
            Severity.NOTE,
            FindingKind.VERSIONS,
            _named(behind),
            f"have not the newest version, cdm {known[-1]}",
            "upgrade them",
        )
    if known and picture.version not in known:
        yield Finding(
            Severity.NOTE,
            FindingKind.VERSIONS,
            "",
            f"this is cdm {picture.version}, and the nodes have cdm {', '.join(known)}; the two may judge differently",
        )
    registered = [(node, each.registration) for node, each in picture.nodes.items()]
    lacking = {words: managers_without(feature, registered) for feature, words in _WORDS.items()}
    if unknown := [words for words, lack in lacking.items() if lack]:
        lack = sorted({node for each in lacking.values() for node, _ in each})
        what = f"does not know {', '.join(unknown)}; whatever needs that waits"
        yield Finding(Severity.WARNING, FindingKind.VERSIONS, _named(lack), what, "upgrade managers first")


def nodes(picture: Picture) -> Iterator[Finding]:
    """Those that were there are there, and are heard in time."""
    if not picture.nodes:
        yield Finding(Severity.WARNING, FindingKind.NODES, "", "no node is registered", "run cdm node on every machine")
    for node, each in sorted(picture.nodes.items()):
        ttl = each.registration.ttl
        if ttl is not None and each.heard > LATE * ttl:
            yield Finding(
                Severity.WARNING,
                FindingKind.NODES,
                node,
                f"was last heard {each.heard:.1f} s ago, of {ttl:g} s after which it is given up",
                "look at its log, and at what else its machine does",
            )
    for node, seen in sorted(picture.seen.items()):
        if node not in picture.nodes and seen.gone == LOST:
            had = sum(seen.had.values())
            yield Finding(
                Severity.WARNING,
                FindingKind.NODES,
                node,
                f"is lost; it had {had} slice{'' if had == 1 else 's'}",
                f"start cdm node there, or, where it is not to come back: cdm node forget {node}",
            )
    for node, intent in sorted(picture.intents.items()):
        if node not in picture.nodes and node not in picture.seen:
            yield Finding(
                Severity.NOTE,
                FindingKind.NODES,
                node,
                f"is to be {intent.schedule}ed, and there is no such node",
                f"cdm uncordon {node}",
            )


def ttls(picture: Picture) -> Iterator[Finding]:
    """TTLs are the same everywhere, and longer than what they are to outlast."""
    of_nodes = _by_value({node: each.registration.ttl for node, each in picture.nodes.items()})
    leases = {
        node: each.registration.vitals.lease_ttl for node, each in picture.nodes.items() if each.registration.vitals
    }
    of_leases = _by_value(leases)
    for option, found in (("--node-ttl", of_nodes), ("--lease-ttl", of_leases)):
        if len(found) > 1:
            told = "; ".join(f"{ttl:g} s: {_named(where)}" for ttl, where in sorted(found.items()))
            yield Finding(
                Severity.WARNING,
                FindingKind.TTL,
                "",
                f"nodes have different {option} ({told}); how long an outage lasts depends on who leads",
                f"start all nodes with the same {option}",
            )
    lease = max(of_leases, default=0.0)
    shortest = min(of_nodes, default=0.0)
    if shortest and lease > shortest:
        yield Finding(
            Severity.NOTE,
            FindingKind.TTL,
            "",
            f"the lease lasts {lease:g} s, longer than registrations ({shortest:g} s): where the leader hangs, "
            "its slices are replaced only after that",
            f"start all nodes with --lease-ttl {shortest:g}s",
        )
    replicated = any(bucket.replicas > 1 for bucket in picture.buckets)
    for option, ttl in (("--lease-ttl", lease), ("--node-ttl", shortest)):
        if replicated and 0 < ttl < ELECTION:
            yield Finding(
                Severity.WARNING,
                FindingKind.TTL,
                "",
                f"{option} is {ttl:g} s, and while NATS elects a stream's leader it may accept nothing for "
                f"{ELECTION:g} s",
                f"start all nodes with {option} 10s, or more",
            )
    beats = sum(HEARTBEATS_PER_TTL * len(where) / ttl for ttl, where in of_nodes.items())
    if beats > MANY_BEATS:
        yield Finding(
            Severity.NOTE,
            FindingKind.TTL,
            "",
            f"{len(picture.nodes)} nodes send {beats:.0f} heartbeats a second",
            f"start nodes with --node-ttl {ceil(HEARTBEATS_PER_TTL * len(picture.nodes) / MANY_BEATS)}s, or more",
        )


def clocks(picture: Picture) -> Iterator[Finding]:
    """This machine's clock, and those of the nodes, agree with the server's."""
    here = picture.server
    told = "run NTP there (chrony, systemd-timesyncd)"
    if here.ahead is not None and abs(here.ahead) > CLOCK_OFF + here.within:
        yield Finding(
            Severity.WARNING, FindingKind.CLOCK, "", f"this machine's clock is {_off(here.ahead)} the server's", told
        )
    for node, each in sorted(picture.nodes.items()):
        if each.ahead is not None and abs(each.ahead) > CLOCK_OFF:
            late = "" if each.ahead > 0 else ", or its heartbeats take so long"
            yield Finding(
                Severity.WARNING, FindingKind.CLOCK, node, f"its clock is {_off(each.ahead)} the server's{late}", told
            )


def disks(picture: Picture) -> Iterator[Finding]:
    """Nodes have room for artifacts and for what slices write."""
    for node, each in sorted(picture.nodes.items()):
        vitals = each.registration.vitals
        if vitals is None or vitals.disk_free is None or not vitals.disk_size:
            continue
        share = vitals.disk_free / vitals.disk_size
        if share < LITTLE and vitals.disk_free < LEAST_FREE:
            yield Finding(
                Severity.CRITICAL if share < NEXT_TO_NOTHING else Severity.WARNING,
                FindingKind.DISK,
                node,
                f"{memory_shown(vitals.disk_free)} of {memory_shown(vitals.disk_size)} are free where its folder is; "
                "without room artifacts are not fetched, and output is lost",
                "make room there, or give the node a smaller --cache or another --folder",
            )


def stopping(picture: Picture) -> Iterator[Finding]:
    """Systemd kills no node that still stops its slices."""
    for node, each in sorted(picture.nodes.items()):
        vitals = each.registration.vitals
        if vitals is None or vitals.stop_limit is None:
            continue
        needs = (vitals.stop_needs or 0.0) + STOP_MARGIN
        if vitals.stop_limit < needs:
            yield Finding(
                Severity.WARNING,
                FindingKind.STOPPING,
                node,
                f"systemd kills it {vitals.stop_limit:g} s after it is told to stop, and with what runs there it may "
                f"take {needs:g} s",
                f"set TimeoutStopSec={ceil(needs)} in its unit, and restart it (systemctl edit)",
            )


def slices(picture: Picture) -> Iterator[Finding]:
    """Slices are on nodes that somebody knows."""
    for node, count in sorted(picture.slices.items()):
        if node not in picture.nodes and node not in picture.seen:
            yield Finding(
                Severity.WARNING,
                FindingKind.SLICES,
                node,
                f"{count} slice{'' if count == 1 else 's'} of a node that nobody knows",
                "a leader deletes their keys in its next round; where nobody leads, mend that first",
            )


def keys(picture: Picture) -> Iterator[Finding]:
    """Everything in the buckets is understood."""
    for bucket, key, reason in picture.unreadable:
        yield Finding(
            Severity.WARNING,
            FindingKind.KEYS,
            f"{bucket}/{key}",
            reason,
            f"correct it or, where it is not of a later version: nats kv del -f {bucket} {quote(key)}",
        )


def _managers(picture: Picture) -> list[NodeId]:
    """The nodes that can lead; one that tells no version is an agent that is not cdm's."""
    return sorted(node for node, each in picture.nodes.items() if each.registration.leads and each.registration.version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:3])


def _named(found: list[NodeId]) -> str:
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{', '.join(found[:NAMED])}{more}"


def _by_value(of: Mapping[NodeId, float | None]) -> dict[float, list[NodeId]]:
    found: dict[float, list[NodeId]] = {}
    for node, value in sorted(of.items()):
        if value is not None:
            found.setdefault(value, []).append(node)
    return found


def _off(ahead: float) -> str:
    return f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'}"
