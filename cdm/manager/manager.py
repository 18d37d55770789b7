"""The ClusterDeploymentManager: runs on every node, is Active on the leader only.

On every node it records what the buckets say (`cluster`), so that a new leader starts warm. What is done about
it depends on the state, which is a type and not a flag (`active`): `Dormant` does nothing, `Active` belongs to one
term and decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cdm.dispatch.messages import (
    CheckResult,
    ContentsUnknown,
    FenceRenewal,
    IntentChanged,
    KeyRejected,
    LeaderChange,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.dispatch.router import receiver
from cdm.log import Log
from cdm.manager.active import Active
from cdm.manager.cluster import Cluster
from cdm.manager.copies import recover
from cdm.manager.dormant import Dormant
from cdm.manager.journal import Journal
from cdm.manager.outbox import Outbox
from cdm.manager.pace import Pace
from cdm.manager.policy import Policy
from cdm.manager.topology import Registered, Topology
from cdm.manager.workplace import Workplace
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.content import Description
from cdm.model.keys import (
    BlueprintKey,
    ContentKey,
    FenceKey,
    IntentKey,
    LastValidKey,
    LeaseKey,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    StatusKey,
)
from cdm.model.last_valid import LastValid
from cdm.model.node import ROLLOUTS, Intent, Registration, Seen
from cdm.model.record import Rollout
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Status

log = Log("cdm.manager")

# On the hot path: before Python 3.12, looking a member up on its class takes ten times as long.
_ACTIVE, _UNLOADING = SliceState.ACTIVE, SliceState.UNLOADING
_COMES_OR_GOES = frozenset({SliceState.LOAD, SliceState.FAILED, SliceState.UNLOAD})
"""States with which another number of instances is on a node."""


class ClusterDeploymentManager:
    """Receives what the buckets and the topology say, and does what its state makes of it.

    Args:
        node: this node.
        topology: which nodes there are.
        outbox: takes commands and statuses.
        clock: seconds on this node's clock (`cdm.clock`); what `Tick.at` and `ValuePut.at` are on.
        wake: called when there is work; the answer is a `Tick`, soon.
        policy: deadlines and backoff.
        reconcile_interval: seconds between two rounds over everything.
        epoch: the server's clock less this node's: seconds since 1970 when this node's clock was at 0.
        journal: takes what is to be told as events.
    """

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        outbox: Outbox,
        clock: Callable[[], float],
        wake: Callable[[], None],
        policy: Policy | None = None,
        reconcile_interval: float = 30.0,
        epoch: Callable[[], float] = lambda: 0.0,
        journal: Journal | None = None,
    ) -> None:
        self.node = node
        self.journal = journal or Journal()
        self.topology = topology
        self.cluster = Cluster()
        self.state: Dormant | Active = Dormant()
        self._leader: NodeId | None = None
        """Which node leads, or led last; None: not known."""
        self._intents: dict[NodeId, Intent] = {}
        self._node_is_news = False
        """Whether the topology found that the registration that is being received says something new."""
        self.pace = Pace()
        self._at = Workplace(
            self.cluster, topology, outbox, clock, wake, policy or Policy(), reconcile_interval, epoch, self.pace
        )

    def wake_at(self) -> float | None:
        """When it needs its next `Tick`, in seconds on this node's clock; None: only when something happens."""
        return self.state.wake_at()

    # Leadership

    @receiver
    def on_leader_change(self, change: LeaderChange) -> None:
        """Become Active in a term of this node's own, Dormant in any other."""
        self._leader = change.leader or self._leader
        if change.local_node_is_leader:
            log.info("active", term=change.term, blueprints=len(self.cluster.desired), nodes=len(self.topology.nodes))
            recover(self.cluster)
            self.state = Active(self._at, change.term, self._at.clock())
            self.journal.lead(change, self._at.clock())
            self._at.wake()
            return
        self.journal.note(change, None, self._at.clock())
        self.journal.follow()
        if isinstance(self.state, Active):
            log.info("dormant", term=self.state.term, leader=change.leader)
            self.state = Dormant()
            self.pace.break_off()
            self._at.outbox.clear()

    # The buckets

    @receiver
    def on_blueprint(self, put: ValuePut[BlueprintKey, Blueprint]) -> None:
        """A valid blueprint says how many instances are wanted."""
        artifact = put.key.artifact
        self.journal.note(put, self.cluster.desired.get(artifact))
        self.cluster.accept_blueprint(artifact, put.value, put.revision, rolls=self._rolls)
        if log.tells("debug"):
            log.debug("blueprint", artifact=str(artifact), instances=put.value.instances, revision=put.revision)
        self._touch(artifact)
        if self.cluster.group(artifact).counts[_UNLOADING]:
            self.state.touch(artifact, now_due=True)  # those may have to go sooner, which the counts do not show

    @receiver
    def on_blueprint_removed(self, remove: ValueRemove[BlueprintKey, Blueprint]) -> None:
        """A blueprint was deleted: no instances are wanted any more."""
        artifact = remove.key.artifact
        self.journal.note(remove, self.cluster.desired.get(artifact))
        self.cluster.remove_blueprint(artifact, remove.revision)
        log.debug("blueprint removed", artifact=str(artifact), revision=remove.revision)
        self._touch(artifact)

    @receiver
    def on_blueprint_rejected(self, rejected: ValueRejected[BlueprintKey, Blueprint]) -> None:
        """A blueprint is refused."""
        artifact = rejected.key.artifact
        log.warning("blueprint refused", artifact=str(artifact), reason=rejected.reason, revision=rejected.revision)
        self.journal.note(rejected, self.cluster.desired.get(artifact))
        self.cluster.refuse_blueprint(artifact, rejected.reason, rejected.revision, rejected.removed)
        self.state.touch(artifact)

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A slice has a new value."""
        key = put.key
        self.journal.note(put, self.cluster.put_slice(put), self.state.orders.get(key.artifact))
        self.state.seen(key)
        # The counts do not show that its node is dead, or was never known.
        self.state.touch(key.artifact, now_due=key.node not in self.topology.nodes)
        if put.value.state in _COMES_OR_GOES:
            self._touch_neighbours(key)
        if put.value.state is _ACTIVE and (dependencies := self.cluster.dependencies):
            for each in sorted(dependencies.dependents(key.artifact.service)):
                self.state.touch(each)
        self._reached(put.revision)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """A slice is gone."""
        key = remove.key
        self.journal.note(remove, self.cluster.remove_slice(key), self.state.orders.get(key.artifact))
        self.state.seen(key, gone=True)
        self.state.touch(key.artifact)
        self._touch_neighbours(key)
        self._reached(remove.revision)

    @receiver
    def on_slice_rejected(self, rejected: ValueRejected[SliceKey, SliceValue]) -> None:
        """What a slice is doing cannot be read: it counts as failed, so it is replaced, and asked to unload."""
        log.warning("unreadable slice counts as failed", key=str(rejected.key), reason=rejected.reason)
        value = SliceValue(SliceState.FAILED, reason=f"unreadable value: {rejected.reason}")
        self.on_slice(ValuePut(rejected.key, value, rejected.revision, rejected.at))

    @receiver
    def on_key_rejected(self, rejected: KeyRejected[BlueprintKey] | KeyRejected[SliceKey]) -> None:
        """A key does not parse: it is reported and left alone."""
        bucket = "blueprints" if rejected.kind is BlueprintKey else "slices"
        log.warning("unreadable key is left alone", bucket=bucket, key=rejected.name, reason=rejected.reason)
        if rejected.kind is BlueprintKey:
            self.cluster.refused[rejected.name] = (rejected.reason, rejected.revision)
            if isinstance(self.state, Active):
                self.state.tell_refused(rejected.name, rejected.reason, rejected.revision)

    @receiver
    def on_rejected_key_removed(self, removed: RejectedKeyRemoved[BlueprintKey] | RejectedKeyRemoved[SliceKey]) -> None:
        """A key that did not parse is gone, and with it the status that said so."""
        if removed.kind is BlueprintKey:
            self.cluster.refused.pop(removed.name, None)
            if isinstance(self.state, Active):
                self.state.forget_refused(removed.name)

    @receiver
    def on_status(
        self,
        message: ValuePut[StatusKey, Status] | ValueRemove[StatusKey, Status] | ValueRejected[StatusKey, Status],
    ) -> None:
        """The ``status`` bucket holds another value."""
        name = message.key.name
        if isinstance(message, ValuePut):
            before = self.cluster.statuses.get(name)
            if before is None or before.condition is not message.value.condition:
                self.journal.note(message, before)
            self.cluster.statuses[name] = message.value
            self.state.shown(name, message.value)
            return
        self.cluster.statuses.pop(name, None)
        if isinstance(message, ValueRemove):
            self.state.shown(name, None)

    @receiver
    def on_rollout(
        self,
        message: ValuePut[RolloutKey, Rollout] | ValueRemove[RolloutKey, Rollout] | ValueRejected[RolloutKey, Rollout],
    ) -> None:
        """The record of a service's rollout."""
        service = message.key.service
        if isinstance(message, ValuePut):
            self.journal.note(message, self.cluster.rollouts.get(service))
            self.cluster.rollouts[service] = message
        elif isinstance(message, ValueRemove):
            self.cluster.rollouts.pop(service, None)
        else:
            log.error("unreadable record of a rollout", service=str(service), reason=message.reason)
        for artifact in sorted(self.cluster.versions_of(service)):
            self.state.touch(artifact)
        self._reached(message.revision)

    @receiver
    def on_copy(
        self,
        message: ValuePut[LastValidKey, LastValid]
        | ValueRemove[LastValidKey, LastValid]
        | ValueRejected[LastValidKey, LastValid],
    ) -> None:
        """The copy of a blueprint; one that cannot be read is written anew."""
        artifact = message.key.artifact
        if isinstance(message, ValuePut):
            self.cluster.copies[artifact] = message.value
        else:
            self.cluster.copies.pop(artifact, None)
        self.state.touch(artifact)
        self._reached(message.revision)

    @receiver
    def on_content(
        self,
        message: ValuePut[ContentKey, Description]
        | ValueRemove[ContentKey, Description]
        | ValueRejected[ContentKey, Description],
    ) -> None:
        """An artifact has another content, or none any more."""
        artifact = message.key.artifact
        digest = message.value.content if isinstance(message, ValuePut) else None
        if artifact is not None and self.cluster.know_content(artifact, digest, rolls=self._rolls):
            log.debug("content", artifact=str(artifact), sha256=digest)
            self.state.touch(artifact)

    @receiver
    def on_contents_unknown(self, unknown: ContentsUnknown) -> None:
        """Nobody can tell what artifacts consist of."""
        self.cluster.contents.clear()

    @receiver
    def on_leadership_record(
        self,
        message: ValuePut[LeaseKey | FenceKey, Any]
        | ValueRemove[LeaseKey | FenceKey, Any]
        | ValueRejected[LeaseKey | FenceKey, Any],
    ) -> None:
        """The lease and the fence share the slices' stream: they tell how far its mirror has come."""
        self._reached(message.revision)

    # Nodes, time, and the outbox

    @receiver
    def on_node(self, change: NodeJoined | NodeLeft | NodeMissing | NodeDied | IntentChanged) -> None:
        """The set of usable nodes changed."""
        if isinstance(change, NodeJoined):
            self._node_is_news = True  # the registration itself comes next
        elif isinstance(change, NodeLeft | NodeDied):
            self.journal.note_gone(change, self._at.clock())
        if isinstance(self.state, Active):
            self.state.node_changed(change.node)
            self._at.wake()

    @receiver
    def on_node_forgotten(self, remove: ValueRemove[SeenKey, Seen]) -> None:
        """What was remembered of a node is gone: what waits for its share of a spread may wait no more."""
        self.journal.note_forgotten(remove)
        if isinstance(self.state, Active):
            self.state.node_changed(remove.key.node)
            self._at.wake()

    @receiver
    def on_heartbeat(self, put: ValuePut[NodeKey, Registration]) -> None:
        """A node's heart beat tells how busy it is; all else that follows, the topology has told."""
        if self._node_is_news:
            self._node_is_news = False
            self.journal.note_node(put)
        self.state.heard(put.key.node)

    @receiver
    def on_intent(
        self,
        message: ValuePut[IntentKey, Intent] | ValueRemove[IntentKey, Intent] | ValueRejected[IntentKey, Intent],
    ) -> None:
        """What an operator wants of a node: what follows from it, the topology tells."""
        self.journal.note(message, self._intents.pop(message.key.node, None))
        if isinstance(message, ValuePut):
            self._intents[message.key.node] = message.value

    @receiver
    def on_tick(self, tick: Tick) -> None:
        """Decide about what changed or is due."""
        if isinstance(self.state, Active):
            self.state.work(tick.at)

    @receiver
    def on_written(self, written: Written) -> None:
        """An order is stored."""
        if isinstance(self.state, Active) and self.state.term == written.term:
            self.state.written(written.artifact, written.revision)

    @receiver
    def on_write_failed(self, failed: WriteFailed) -> None:
        """Whether an order is stored is unknown: the mirror will tell."""
        if isinstance(self.state, Active) and self.state.term == failed.term:
            self.state.write_failed(failed.artifact, failed.revision, failed.reason)

    @receiver
    def on_fence_renewal(self, renewal: FenceRenewal) -> None:
        """What was written last may be stored, or not, and the mirror tells once it shows the new fence."""
        if isinstance(self.state, Active) and self.state.term == renewal.term:
            self.state.decide_from(math.inf if renewal.revision is None else renewal.revision)

    @receiver
    def on_check_result(self, result: CheckResult) -> None:
        """A check of a rollout was made: what follows from it is decided next."""
        if isinstance(self.state, Active):
            for artifact in self.state.gates.hear(result):
                self.state.touch(artifact, now_due=True)

    @property
    def _rolls(self) -> bool:
        """Whether who leads knows rollouts. What changes under an older leader reaches only what it loads later."""
        if isinstance(self.state, Active):
            return True
        presence = self.topology.nodes.get(self._leader) if self._leader is not None else None
        return isinstance(presence, Registered) and ROLLOUTS in presence.registration.features

    def _touch_neighbours(self, key: SliceKey) -> None:
        """An instance came or went: that concerns those that are to be near to its service, or apart from it."""
        ruled = self.cluster.ruled
        for each in ruled.wanting(key.artifact.service) if ruled.artifacts else ():
            self.state.touch(each)

    def _touch(self, artifact: Artifact) -> None:
        """The artifact's blueprint changed: that concerns all that wait for its service, too."""
        self.state.touch(artifact)
        if dependencies := self.cluster.dependencies:
            for each in sorted(dependencies.downstream(artifact.service)):
                self.state.touch(each)

    def _reached(self, revision: int) -> None:
        self.cluster.revision = revision
        self.state.reached(revision)
