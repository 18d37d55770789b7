"""What one decision is about: the facts of one artifact, and how commands are made of them. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cdm.manager.group import Group, SlicePut
from cdm.manager.plan import Command
from cdm.manager.policy import Policy
from cdm.manager.standing import NEVER_RAN, Fleet, Standings
from cdm.manager.wanted import Wanted
from cdm.model.artifact import Artifact
from cdm.model.blueprint import DRAIN_DELAY
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState

MOST_FAILURES = 1_000_000
"""Most failures that are counted: one more can always be told."""

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_LOAD = SliceState.LOAD


class Situation(NamedTuple):
    """What is decided about: the facts, which nothing changes, and how commands are made of them."""

    artifact: Artifact
    wanted: Wanted
    group: Group
    fleet: Fleet
    now: float
    policy: Policy
    standings: Standings
    taken: Collection[SliceKey]
    """The keys of all slices of the artifact."""

    def failures(self, put: SlicePut) -> int:
        """How often the instance failed before; what a node says of it is believed up to a bound."""
        return min(put.value.failures or 0, MOST_FAILURES)

    def failures_by_now(self, put: SlicePut) -> int:
        """The same with this time; that it was stopped on purpose is no failure."""
        return self.failures(put) + (not put.value.lapsed)

    def retry_at(self, put: SlicePut) -> float:
        """When a failed slice is due to be tried again, or to be unloaded again."""
        # Whoever puts the blueprint again expects it to be tried again.
        if put.value.blueprint is not None and put.value.blueprint < self.wanted.revision:
            return put.at
        return self.policy.retry_at(put)

    def load(self, key: SliceKey, reason: str, failures: int) -> Command:
        """A LOAD."""
        wanted = self.wanted
        return Command(
            key,
            _LOAD,
            reason,
            failures,
            wanted.revision,
            wanted.overrides,
            0,
            wanted.template,
            wanted.content,
            None,
            wanted.rules.needs,
        )

    def activate(self, put: SlicePut) -> Command:
        """An ACTIVATE. It reserves what it has reserved, which is what there was room for."""
        wanted = self.wanted
        return Command(
            put.key,
            SliceState.ACTIVATE,
            "loaded",
            self.failures(put),
            wanted.revision,
            wanted.overrides,
            put.revision,
            wanted.template,
            wanted.content,
            needs=put.value.needs,
        )

    def unload(self, put: SlicePut, reason: str, *, failed: bool = False, after: float | None = None) -> Command:
        """An UNLOAD; ``failed``: it counts as one more failure."""
        # With the overrides that it runs with: they say for how long it may run unheard of.
        value = put.value
        overrides = None if value.state in NEVER_RAN else value.overrides
        failures = self.failures(put) + 1 if failed else self.failures(put)
        return Command(
            put.key,
            SliceState.UNLOAD,
            reason,
            failures,
            self.wanted.revision,
            overrides,
            template=value.template,
            content=value.content,
            after=after,
            needs=value.needs,
            folder=value.folder,
        )

    def retire(self, put: SlicePut, reason: str) -> Command:
        """An UNLOAD in good order: what can be reached goes on serving until nobody sends to it any more."""
        reached = put.value.state is SliceState.ACTIVE and put.value.port is not None
        delay = DRAIN_DELAY if self.wanted.drain_delay is None else self.wanted.drain_delay
        return self.unload(put, reason, after=delay or None if reached else None)
