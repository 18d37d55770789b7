"""What revisions of blueprints led to, as far as events tell: how many instances came, went and failed, and the end.

The end is that all is Ready for the first time. What happens later, to a node for example, a revision did not lead to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime

import anyio
from msgspec import Struct

from cdm.errors import StoreError
from cdm.model.artifact import Artifact
from cdm.model.event import Event, EventKind
from cdm.model.status import Condition
from cdm.store.connection import Connection
from cdm.store.events import EventReader

PATIENCE = 10.0
"""Seconds that reading events may take; what was not read by then is left out."""
COUNTED = ("load", "unload", "failed")
"""Kinds of events that are counted."""
ENDS = (EventKind.CONDITION, EventKind.ROLLOUT)
"""Kinds of events of which the last one counts."""


class Consequence(Struct, frozen=True, omit_defaults=True):
    """What one revision led to."""

    load: int = 0
    """Instances that were placed, or placed again."""
    unload: int = 0
    """Instances that were taken away."""
    failed: int = 0
    """How often one failed."""
    rollout: str = ""
    """The last phase of its rollout."""
    condition: str = ""
    """The blueprint's last condition, or that it was Ready once."""
    after: float | None = None
    """Seconds after the first of these events at which it had that condition."""

    @property
    def shown(self) -> str:
        """In words."""
        counts = (f"{count} {what}" for what, count in (("load", self.load), ("unload", self.unload)) if count)
        failed = f"{self.failed} failed" if self.failed else ""
        end = self.condition and f"{self.condition}{'' if self.after is None else f' after {self.after:.0f} s'}"
        return ", ".join(filter(None, (*counts, failed, self.rollout and f"rollout {self.rollout}", end)))


async def consequences(connection: Connection, since: Mapping[Artifact, float]) -> dict[int, Consequence]:
    """By revision what blueprints led to.

    Args:
        connection: to NATS.
        since: which artifacts' blueprints, and when the oldest revision of each was written, in seconds since 1970.
            Nothing that cannot be read is told, nor where there are no events.
    """
    found: list[Event] = []
    with anyio.move_on_after(PATIENCE), suppress(StoreError):
        for artifact, begin in since.items():
            for kind in (*COUNTED, *ENDS):
                async for page in EventReader(connection, kind=kind, artifact=artifact).read(begin - 1):
                    found += (each.event for each in page)
    return joined(found)


def joined(events: Iterable[Event]) -> dict[int, Consequence]:
    """The same of events; those that tell of no revision are left out."""
    by_revision: dict[int, list[Event]] = {}
    for each in sorted(events, key=lambda event: event.time):
        if each.data.blueprint:
            by_revision.setdefault(each.data.blueprint, []).append(each)
    return {revision: _consequence(led_to) for revision, led_to in by_revision.items()}


def _consequence(events: list[Event]) -> Consequence:
    kinds = [each.kind for each in events]
    last = {each.kind: each for each in events if each.kind in ENDS}
    ready = next((number for number, each in enumerate(events) if _is_ready(each)), None)
    if ready is not None:
        kinds, last[EventKind.CONDITION] = kinds[: ready + 1], events[ready]
    condition, rollout = last.get(EventKind.CONDITION), last.get(EventKind.ROLLOUT)
    after = None
    if condition is not None and condition is not events[0]:
        after = (_moment(condition) - _moment(events[0])).total_seconds()
    return Consequence(
        load=kinds.count("load"),
        unload=kinds.count("unload"),
        failed=kinds.count("failed"),
        rollout=rollout.data.to if rollout else "",
        condition=condition.data.to if condition else "",
        after=after,
    )


def _is_ready(event: Event) -> bool:
    return event.kind == EventKind.CONDITION and event.data.to == Condition.READY


def _moment(event: Event) -> datetime:
    return datetime.fromisoformat(event.time)
