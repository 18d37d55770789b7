"""What the stream of slices stored for one service, played again batch by batch, for the auditor of rollouts.

It takes nothing from cdm, as the auditors do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.containers.auditor import COMMANDS, NOT_LIVE, Entry


class Template(NamedTuple):
    """What an instance is started with, as far as it is told. None: not known, and equal to everything."""

    version: str
    digest: str | None
    content: str | None

    def same(self, other: Template) -> bool:
        """Whether they may be the same."""
        digests = self.digest is None or other.digest is None or self.digest == other.digest
        contents = self.content is None or other.content is None or self.content == other.content
        return self.version == other.version and digests and contents


class Fall(NamedTuple):
    """An instance that was ACTIVE, and ended to be."""

    since: float
    until: float


class Instance(NamedTuple):
    """What a slice key of the service holds."""

    node: str
    template: Template
    state: str
    restarts: int
    up: float | None
    """Since when it is ACTIVE without a restart, in seconds since 1970; None: it is not."""
    fell: Fall | None = None
    """When it last ended to serve by itself: a leader may not know it yet."""

    @property
    def live(self) -> bool:
        """Whether it counts towards the instances."""
        return self.state not in NOT_LIVE


class Leg(NamedTuple):
    """What a record says of the rollout at one moment."""

    entry: Entry

    @property
    def phase(self) -> str:
        """Its phase."""
        return str(self.entry.fields.get("phase", "?"))

    @property
    def step(self) -> int:
        """The number of its step."""
        step = self.entry.fields.get("step", 0)
        return step if isinstance(step, int) else -1

    @property
    def old(self) -> Template | None:
        """The one to go back to."""
        return _template(self.entry.fields.get("from"))

    @property
    def new(self) -> Template | None:
        """The one that takes over."""
        return _template(self.entry.fields.get("to"))

    def starts(self, template: Template) -> bool:
        """Whether it is what the rollout brings."""
        return self.new is not None and template.same(self.new) and template != self.old

    def same_as(self, other: Leg) -> bool:
        """Whether both are of one rollout."""
        ends = (self.old, other.old), (self.new, other.new)
        return all(one is not None and another is not None and one.same(another) for one, another in ends)


class Move(NamedTuple):
    """Messages that were stored as one: an atomic batch, or a single one."""

    entries: Sequence[Entry]
    before: Mapping[str, Instance]
    after: Mapping[str, Instance]
    leg_before: Leg | None
    leg: Leg | None

    @property
    def time(self) -> float:
        """When, by the server's clock."""
        return self.entries[-1].time


class Service:
    """The keys of a service. Played again they tell how its instances stood at each moment.

    Args:
        name: ``group/name``, as in keys.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.record = f"_rollout.{name}"
        """The key of its rollout's record."""

    def owns(self, key: str) -> bool:
        """Whether it is the key of one of its instances."""
        return not key.startswith("_") and key.partition(".")[2].startswith(f"{self._name}/")

    def moves(self, slices: Iterable[Entry]) -> Iterator[Move]:
        """The history of the service, batch by batch."""
        now: dict[str, Instance] = {}
        leg: Leg | None = None
        for batch in batches(slices):
            entries = [entry for entry in batch if entry.key == self.record or self.owns(entry.key)]
            if not entries:
                continue
            before, leg_before = dict(now), leg
            for entry in entries:
                if entry.key == self.record:
                    leg = None if entry.gone else Leg(entry)
                else:
                    _take(now, entry)
            yield Move(entries, before, dict(now), leg_before, leg)


def commanded(entry: Entry) -> bool:
    """Whether it is a command."""
    return entry.fields.get("state") in COMMANDS


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Messages by the batch with which they were stored."""
    gathered: list[Entry] = []
    for entry in entries:
        batch = entry.headers.get("Nats-Batch-Id")
        if gathered and (not batch or batch != gathered[0].headers.get("Nats-Batch-Id")):
            yield gathered
            gathered = []
        gathered.append(entry)
    if gathered:
        yield gathered


def _take(now: dict[str, Instance], entry: Entry) -> None:
    """One write to a slice."""
    before = now.pop(entry.key, None)
    fields = entry.fields
    state = fields.get("state")
    if not isinstance(state, str):
        return
    node, _, rest = entry.key.partition(".")
    template = Template(rest.split("/")[2], fields.get("template"), fields.get("content"))
    restarts = fields.get("restarts") or 0
    up = fell = None
    if before is not None and state != "LOAD":
        # Agents copy what they were commanded, but older ones drop it.
        digest = template.digest or before.template.digest
        template = template._replace(digest=digest, content=template.content or before.template.content)
        fell = before.fell
    if before is not None and before.up is not None and state == "ACTIVE" and restarts <= before.restarts:
        up = before.up
    elif state == "ACTIVE":
        up = entry.time
    if state in COMMANDS:
        fell = None
    elif before is not None and before.up is not None and up != before.up:
        fell = Fall(before.up, entry.time)
    now[entry.key] = Instance(node, template, state, restarts, up, fell)


def _template(value: object) -> Template | None:
    if not isinstance(value, dict) or not isinstance(value.get("version"), str):
        return None
    return Template(value["version"], value.get("digest") or None, value.get("content") or None)
