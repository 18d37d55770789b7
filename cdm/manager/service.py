"""What is known of a service when a decision about its rollout is made, and what follows from a record alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cdm.manager.cluster import Desired
from cdm.manager.gates import GateVerdict
from cdm.manager.group import Group, SlicePut
from cdm.manager.health import NOTHING_WRONG
from cdm.manager.standing import Fleet
from cdm.model.artifact import Artifact, Service
from cdm.model.keys import SliceKey
from cdm.model.record import Rollout, RolloutPhase, Side, Weights
from cdm.model.slice import SliceState

BACK = frozenset({RolloutPhase.REVERTING, RolloutPhase.REVERTED})
"""Phases of a rollout that is taken back."""


class Version(NamedTuple):
    """One version of a service."""

    artifact: Artifact
    desired: Desired | None
    """Its blueprint; None: there is none, or none that was ever valid."""
    wanted: Side | None
    """What that blueprint says an instance is to be."""
    group: Group
    """Its slices."""


class Facts(Struct, frozen=True):
    """What is known of a service when a decision is made."""

    service: Service
    record: Rollout | None
    versions: Mapping[str, Version]
    """Every version that has a blueprint or slices."""
    fleet: Fleet
    now: float
    """Seconds on this node's clock; what `ValuePut.at` is on."""
    epoch: float = 0.0
    """The server's clock less this node's: seconds since 1970 when this node's clock was at 0."""
    term: int = 0
    waits_for: str = ""
    """Why no rollout may begin; empty: one may."""
    crowded: bool = False
    """Whether a new instance could not be placed, or waits for a port that an old one holds."""
    ports: Mapping[SliceKey, int] = {}
    """Slices that wait for a port that another instance of the service holds on their node, and which port."""
    checks: GateVerdict = NOTHING_WRONG
    """What the blueprint's checks say."""
    checked: str = ""
    """Of which step that is (`series_of`)."""
    goes_back: str = ""
    """Why it goes back although nothing is wrong with it: another service of its group does; empty: none does."""
    stuck: bool = False
    """Whether, by the rules of where instances go, none that is there would leave its place to a new one."""


def of_side(put: SlicePut, side: Side) -> bool:
    """Whether a slice was started as this side says, as far as is known."""
    value = put.value
    return value.template in (None, side.digest) and (
        value.content is None or side.content is None or value.content == side.content
    )


def is_new(put: SlicePut, target: Side) -> bool:
    """Whether a slice was started as the side says that a rollout under way leads to.

    Where agents drop the digests, and who leads has not seen the commands, their blueprint's revision tells. What
    failed and tells not even that is no failure of the new side: it may have failed long before.
    """
    value = put.value
    if value.template is None:
        failed = value.state is SliceState.FAILED
        if value.blueprint < target.revision if value.blueprint is not None else failed:
            return False
    return of_side(put, target)


def revert(record: Rollout, reason: str, now: float) -> Rollout:
    """Go back to the stable side; where that is the same, say so and stay.

    Args:
        record: of the rollout.
        reason: why.
        now: server time, in seconds since 1970.
    """
    source, target = record.source, record.target
    if source.same_as(target):
        if record.phase is RolloutPhase.FAILED:
            return record  # said before, and each time that it is asked
        reason = f"{reason}; the version before is the same, so there is nothing to go back to"
        return replace(record, phase=RolloutPhase.FAILED, since=now, reason=reason)
    superseded = {version: revision for version, revision in record.superseded.items() if version != source.version}
    # After the end nothing is there yet of the side that comes back: all that serves is sent requests.
    weighted = record.weights is not None and record.phase is not RolloutPhase.COMPLETE
    return replace(
        record,
        phase=RolloutPhase.REVERTING,
        since=now,
        weights=Weights(100, 0) if weighted else None,
        superseded=superseded,
        reverted={**record.reverted, target.version: target.mark},
        reasons={**record.reasons, target.version: reason},
        reason=reason,
    )


def series_of(record: Rollout, *, ready: bool) -> str:
    """Names a rollout and its step: what its checks say is about these alone.

    It counts anew once the step's new instances are healthy (``ready``): what passed before passed without them.
    """
    return f"{record.target.revision}/{record.target.digest}/{record.step}/{int(ready)}"


def serving(record: Rollout) -> Side:
    """What serves, or is gone back to, by the record of the last rollout."""
    return record.target if record.phase is RolloutPhase.COMPLETE else record.source


def governing(facts: Facts, record: Rollout) -> Desired | None:
    """The blueprint that says how many instances there are, and how they are exchanged: the one written last.

    One of a version that was taken back and says 0 instances says only that nobody wants that version: the other one
    has its own number.
    """
    ends = (record.source.version, record.target.version)
    found = {
        name: version.desired
        for name in ends
        if (version := facts.versions.get(name)) and version.desired and version.desired.blueprint
    }
    if len(found) > 1 and record.phase in BACK and found[record.target.version].instances == 0:
        del found[record.target.version]
    return max(found.values(), key=lambda desired: desired.in_force, default=None)
