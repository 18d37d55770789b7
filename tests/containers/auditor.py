"""An auditor: it judges what the buckets' streams stored by the protocol's promises alone.

It is a second opinion. So it takes nothing from cdm: what a live slice is, who may write what, and how many instances
there may be is written down here again.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

NOT_LIVE = ("FAILED", "UNLOAD", "UNLOADING")
COMMANDS = ("LOAD", "ACTIVATE", "DEACTIVATE", "UNLOAD")
FENCE = "$KV.slices._term"


class Entry(NamedTuple):
    """One message that was stored."""

    bucket: str
    key: str
    sequence: int
    time: float
    """When, by the server's clock, in seconds since 1970."""
    previous: int
    """Number of the key's message before it; 0 where there was none."""
    data: bytes
    headers: Mapping[str, str]

    @property
    def gone(self) -> bool:
        """Whether it is a delete or an expiry."""
        return "KV-Operation" in self.headers or "Nats-Marker-Reason" in self.headers

    @property
    def value(self) -> Any:
        """The decoded value; None where there is none."""
        if self.gone:
            return None
        try:
            return json.loads(self.data)
        except ValueError:
            return None

    @property
    def ends(self) -> float:
        """When the server removes it by itself, and leaves no trace of it."""
        ttl = re.fullmatch(r"(\d+)(ms|s|)", self.headers.get("Nats-TTL", ""))
        return self.time + int(ttl[1]) * (0.001 if ttl[2] == "ms" else 1) if ttl else math.inf

    @property
    def fields(self) -> Mapping[str, Any]:
        """The value's fields; empty where it has none."""
        value = self.value
        return value if isinstance(value, dict) else {}

    def __str__(self) -> str:
        what = "deleted" if self.gone else self.data.decode("utf-8", "replace")
        return f"{self.bucket} #{self.sequence} {self.key} {what}"


class Past:
    """What a key held, moment by moment."""

    def __init__(self) -> None:
        self._changes: list[tuple[float, Any]] = []

    def add(self, time: float, value: Any) -> None:
        """It holds this from then on."""
        self._changes.append((time, value))

    def during(self, start: float, end: float) -> list[Any]:
        """Everything that it held at some moment of this time."""
        before = [value for time, value in self._changes if time <= start]
        return [before[-1] if before else None, *(value for time, value in self._changes if start < time <= end)]

    @property
    def last(self) -> Any:
        """What it holds at the end."""
        return self._changes[-1][1] if self._changes else None


class Slice(NamedTuple):
    """What a slice key holds."""

    node: str
    artifact: str
    state: str
    since: float

    @property
    def live(self) -> bool:
        """Whether it counts towards the instances."""
        return self.state not in NOT_LIVE


class Step(NamedTuple):
    """One write to a slice: what the key held, what it holds now, and what all others hold."""

    entry: Entry
    before: Slice | None
    now: Slice | None
    others: Mapping[str, Slice]

    @property
    def by_leader(self) -> bool:
        """Whether a leader wrote it. A node deletes nothing but what is UNLOADING, and has no guard."""
        if self.entry.gone:
            return self.before is None or self.before.state != "UNLOADING" or bool(guard(self.entry))
        return _by_leader(self.entry)


class History:
    """What the buckets stored, from their first message on.

    Args:
        entries: by bucket, in the order of its stream.
        grace: seconds for which a fact may be unknown to a leader that acts; a fact that changed more recently
            excuses what was right before.
        patience: seconds after which a slice that does not move may be replaced.
    """

    def __init__(self, entries: Mapping[str, Sequence[Entry]], grace: float = 2.0, patience: float = 60.0) -> None:
        self.slices = entries["slices"]
        self._entries = entries
        self._grace = grace
        self._patience = patience
        self._blueprints: defaultdict[str, Past] = defaultdict(Past)
        last = max((entry.time for several in entries.values() for entry in several), default=0.0)
        self._nodes = registrations(entries["nodes"], last)
        for entry in entries["blueprints"]:
            count = _instances(entry)
            if count is not None:
                self._blueprints[entry.key].add(entry.time, count)

    def violations(self) -> list[str]:
        """Everything in it that the protocol forbids, but for the end state."""
        return [*self.holes(), *self.terms(), *self.fences(), *self.placements()]

    def story(self) -> str:
        """All of it but for what was written again unchanged, line by line in order of time, to explain a failure."""
        told = []
        for entries in self._entries.values():
            last: dict[str, bytes | None] = {}
            for entry in entries:
                held = None if entry.gone else entry.data
                if entry.key not in last or last[entry.key] != held:
                    told.append(entry)
                last[entry.key] = held
        return "\n".join(f"{entry.time:.3f} {entry}" for entry in sorted(told, key=lambda entry: entry.time))

    def holes(self) -> list[str]:
        """Numbers that are missing: without them nothing is proved."""
        found = []
        for bucket, entries in self._entries.items():
            numbers = [entry.sequence for entry in entries]
            if numbers:
                missing = sorted({*range(numbers[0], numbers[-1] + 1)} - {*numbers})
                found += [f"{bucket} #{number} was not recorded" for number in missing]
        return found

    def terms(self) -> list[str]:
        """In the order of the stream no term is followed by an earlier one, and each has one holder."""
        terms = _Terms()
        for entry, after in zip(self.slices, [*self.slices[1:], None], strict=True):
            if _by_leader(entry) and isinstance(entry.fields.get("term"), int):
                terms.take(entry, after)
        return terms.found

    def fences(self) -> list[str]:
        """What leaders write to slices is guarded by the fence of that moment, a batch by its first message."""
        found = []
        fence = 0
        guarded: dict[str, bool] = {}
        steps = {step.entry.sequence: step for step in self._steps()}
        for entry in self.slices:
            if entry.key == "_term":
                fence = entry.sequence
            batch = entry.headers.get("Nats-Batch-Id", "")
            if not batch or batch not in guarded:
                guarded[batch] = guard(entry) == str(fence)
            if entry.sequence in steps and steps[entry.sequence].by_leader and not guarded[batch]:
                found.append(f"{entry}: written without the fence #{fence}")
        return found

    def placements(self) -> list[str]:
        """No LOAD makes more live slices than are wanted; none is taken away that was healthy and wanted."""
        found = []
        for step in self._steps():
            entry, now = step.entry, step.now
            if self._took(step) and step.before and self._healthy(step.before, entry.time):
                found.append(f"{entry}: it was {step.before.state} on a healthy node, and not one too many")
            if now and now.state == "LOAD":
                most = max(self._wanted(now.artifact, entry.time))
                count = self._count(now.artifact, {**step.others, entry.key: now}, entry.time, steadily=True)
                if count > most:
                    found.append(f"{entry}: makes {count} where {most} are wanted")
        return found

    def evicted(self) -> list[Entry]:
        """Writes of leaders that took a live slice away, for whatever reason, while its blueprint wanted it."""
        return [step.entry for step in self._steps() if self._took(step)]

    def _steps(self) -> Iterator[Step]:
        """The history of slices, write by write."""
        slices: dict[str, Slice] = {}
        for entry in self.slices:
            if entry.key.startswith("_"):
                continue
            before, now = slices.pop(entry.key, None), _slice(entry)
            yield Step(entry, before, now, slices)
            if now:
                slices[entry.key] = now

    def _took(self, step: Step) -> bool:
        """Whether a leader ended a live slice that was not one too many."""
        before = step.before
        if before is None or not before.live or (step.now and step.now.live) or not step.by_leader:
            return False
        time = step.entry.time
        count = self._count(before.artifact, {**step.others, step.entry.key: before}, time)
        return count <= min(self._wanted(before.artifact, time))

    def _healthy(self, before: Slice, time: float) -> bool:
        return time - before.since < self._patience and self._steady(before.node, time)

    def end(self) -> list[str]:
        """In the end each blueprint has its instances, all ACTIVE on registered nodes, and nothing else is."""
        slices: dict[str, Slice] = {}
        for step in self._steps():
            slices.pop(step.entry.key, None)
            if step.now:
                slices[step.entry.key] = step.now
        found = [f"{key} is {each.state}" for key, each in slices.items() if each.state != "ACTIVE"]
        found += [
            f"{key} is on a node that is gone" for key, each in slices.items() if self._nodes[each.node].last is None
        ]
        counts = Counter(each.artifact for each in slices.values())
        for artifact in {*self._blueprints, *counts}:
            wanted = self._blueprints[artifact].last or 0
            if counts[artifact] != wanted:
                found.append(f"{artifact} has {counts[artifact]} instances instead of {wanted}")
        return found

    def first_load(self, artifact: str, after: float) -> float | None:
        """When the first LOAD of an artifact was stored, from a moment on."""
        for step in self._steps():
            now = step.now
            if now and now.state == "LOAD" and now.artifact == artifact and step.entry.time >= after:
                return step.entry.time
        return None

    def first_take_over(self, after: float) -> float | None:
        """When the first term began, from a moment on."""
        fences = [entry for entry in self.slices if entry.key == "_term"]
        before = max((entry.fields.get("term", 0) for entry in fences if entry.time < after), default=0)
        return next((e.time for e in fences if e.time >= after and e.fields.get("term", 0) > before), None)

    def last_renewal(self, term: int) -> float:
        """When a term's lease was last taken or renewed."""
        return max(e.time for e in self.slices if e.key == "_leader" and e.fields.get("term") == term)

    def _wanted(self, artifact: str, time: float) -> list[int]:
        """How many instances were wanted at some moment up to now that a leader may act on."""
        return [count or 0 for count in self._blueprints[artifact].during(time - self._grace, time)]

    def _count(self, artifact: str, slices: Mapping[str, Slice], time: float, *, steadily: bool = False) -> int:
        """How many live slices there are on registered nodes, or on those only that were so for a while."""
        is_there: Callable[[str, float], bool] = self._steady if steadily else self._registered
        return sum(each.live and each.artifact == artifact and is_there(each.node, time) for each in slices.values())

    def _registered(self, node: str, time: float) -> bool:
        return self._nodes[node].during(time, time)[0] is not None

    def _steady(self, node: str, time: float) -> bool:
        """Whether a node was registered and schedulable all the while."""
        start = time - self._grace
        return all(value is not None for value in self._nodes[node].during(start, time)) and all(
            value is None for value in self._nodes[f"{node}.intent"].during(start, time)
        )


class _Terms:
    """Follows the lease and the fence."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._highest = self._fence = self._number = 0
        self._holders: dict[int, tuple[Any, Any]] = {}
        self._announced: dict[int, tuple[Any, Any]] = {}
        """Who wrote the fence of a term before its lease, as where the server took no batch."""

    def take(self, entry: Entry, after: Entry | None) -> None:
        """A leader wrote this, and somebody what is stored after it."""
        term = entry.fields["term"]
        if term < self._highest:
            self.found.append(f"{entry}: written after term {self._highest} began")
        self._highest = max(self._highest, term)
        if entry.key == "_leader":
            self._lease(entry, term, after)
        elif entry.key == "_term":
            self._take_fence(entry, term)
        elif term != self._fence:
            self.found.append(f"{entry}: a command of term {term} under the fence of term {self._fence}")

    def _lease(self, entry: Entry, term: int, after: Entry | None) -> None:
        holder = (entry.fields.get("node"), entry.fields.get("incarnation"))
        if term in self._announced and term not in self._holders and guard(entry) != str(self._number):
            self.found.append(f"{entry}: a lease that its fence #{self._number} does not guard")
        if self._announced.get(term, holder) != holder:
            self.found.append(f"{entry}: the fence of term {term} is {self._announced[term]}'s")
        if self._holders.setdefault(term, holder) != holder:
            self.found.append(f"{entry}: term {term} is {self._holders[term]}'s")
        if term > self._fence and not (after and after.key == "_term" and after.fields.get("term") == term):
            self.found.append(f"{entry}: a lease without its fence")

    def _take_fence(self, entry: Entry, term: int) -> None:
        fields, holder = entry.fields, self._holders.get(term)
        # Its own leader, which names its process, writes it anew where it cannot know what was stored.
        anew = holder and fields.get("incarnation") and fields["incarnation"] == holder[1]
        if term < self._fence or (term == self._fence and not anew):
            self.found.append(f"{entry}: the fence was {self._fence} before")
        elif holder is None:
            self._announced[term] = (fields.get("leader"), fields.get("incarnation"))
        if holder and holder[0] != fields.get("leader"):
            self.found.append(f"{entry}: the lease of term {term} is {holder}'s")
        self._fence, self._number = term, entry.sequence


def registrations(nodes: Sequence[Entry], last: float) -> defaultdict[str, Past]:
    """What each key of ``nodes`` held: a value that is not renewed within its TTL ends, and leaves no trace.

    Args:
        nodes: everything that the stream of nodes stored, from its first message on.
        last: until when is known what was stored, in seconds since 1970.
    """
    found: defaultdict[str, Past] = defaultdict(Past)
    for entry, following in _with_the_next(nodes):
        found[entry.key].add(entry.time, entry.value)
        if entry.ends <= (following.time if following else last):
            found[entry.key].add(entry.ends, None)
    return found


def _with_the_next(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry | None]]:
    """Each entry, and what was written next under its key."""
    later: dict[str, Entry] = {}
    found = []
    for entry in reversed(entries):
        found.append((entry, later.get(entry.key)))
        later[entry.key] = entry
    return reversed(found)


def _by_leader(entry: Entry) -> bool:
    """Whether a leader wrote this value. Nodes copy the term of the command that they answer."""
    return entry.key in ("_leader", "_term") or entry.fields.get("state") in COMMANDS


def guard(entry: Entry) -> str:
    """The number that the fence must have for this write to be taken."""
    if entry.headers.get("Nats-Expected-Last-Subject-Sequence-Subject") != FENCE:
        return ""
    return entry.headers.get("Nats-Expected-Last-Subject-Sequence", "")


def _slice(entry: Entry) -> Slice | None:
    state = entry.fields.get("state")
    if not isinstance(state, str):
        return None
    node, _, rest = entry.key.partition(".")
    return Slice(node, "/".join(rest.split("/")[:3]), state, entry.time)


def _instances(entry: Entry) -> int | None:
    """How many instances a blueprint wants; None where it is none, and the one before stays in force."""
    if entry.gone:
        return 0
    value = entry.value
    if isinstance(value, dict):
        value = value.get("instances")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000 else None
