"""The ClusterDeploymentManager: runs on every node, is Active on the leader only.

On every node it records what the buckets say (`cdm.cluster`), so that a new leader starts warm. What is done about
it depends on the state, which is a type and not a flag: `Dormant` does nothing; `Active` belongs to one term, keeps
the list of artifacts to look at, decides with `cdm.reconciliation`, and hands commands to the outbox.

Active decides about an artifact only when its mirror has reached the last sequence that it wrote for it
(read-your-writes): until then the artifact is held back.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from cdm.allocation import Ranking
from cdm.cluster import Cluster, Desired
from cdm.messages import (
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
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import MAX_INSTANCES, Blueprint
from cdm.model.keys import (
    BlueprintKey,
    FenceKey,
    LeaseKey,
    SliceKey,
    StatusKey,
    decode_artifact,
    encode_artifact,
)
from cdm.model.node import Schedule
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Status
from cdm.outbox import Order, Outbox
from cdm.reconciliation import (
    Command,
    Place,
    Policy,
    reconcile,
    refused_status,
    settled,
    status_of,
)
from cdm.router import receiver
from cdm.topology import Registered, Topology

log = structlog.get_logger("cdm.manager")

WORK_BUDGET = 0.02
"""Seconds of deciding after which other tasks get their turn."""
LOGGED_A_TURN = 20
"""Most decisions and statuses that are logged at level info in one turn; of more, the rest is counted."""
LOGGED_KEYS = 20
"""Most slices that a line in the log names; it counts them all."""


class Dormant:
    """Somebody else leads, or nobody: nothing is decided here."""

    def touch(self, artifact: Artifact, now_due: bool = False) -> None:
        """The artifact changed."""

    def seen(self, key: SliceKey) -> None:
        """The mirror shows the slice, or shows it no more."""

    def reached(self, revision: int) -> None:
        """The mirror of ``slices`` has come this far."""

    def wake_at(self) -> float | None:
        """Nothing will ever be due."""
        return None


class Active:
    """This node leads: the artifacts to look at, and when.

    Args:
        manager: whose records are decided upon.
        term: the leadership's number; every command carries it.
        now: seconds on this node's clock.
    """

    def __init__(self, manager: ClusterDeploymentManager, term: int, now: float) -> None:
        self.term = term
        self._manager = manager
        self._cluster = manager.cluster
        self._dirty: dict[Artifact, bool] = {}
        """Artifacts to look at; True: look closely, whatever the counts say."""
        self._awaited: dict[Artifact, float] = {}
        """Artifacts with writes that the mirror does not show yet: the revision to wait for (inf: not yet acked)."""
        self._held: dict[Artifact, bool] = {}
        """Artifacts that changed while they were awaited."""
        self._acked: deque[tuple[int, Artifact]] = deque()
        self._commanded: dict[Artifact, set[SliceKey]] = {}
        """New slices that were commanded and that the mirror does not show yet."""
        self._extra: Counter[NodeId] = Counter()
        """The same, counted by node."""
        self._timers: list[tuple[float, Artifact]] = []
        self._timer_of: dict[Artifact, float] = {}
        self._unplaced: dict[Artifact, int] = {}
        self._statuses: dict[str, Status | None] = {}
        """The last status asked to be written, by blueprint key."""
        self._places: dict[NodeId, Place] | None = None
        self._draining: list[NodeId] = []
        self._ranking = Ranking()
        self._recount: set[NodeId] = set()
        """Nodes whose number of slices is another one than the ranking has."""
        self._cursor: NodeId | None = None
        self._next_round = now
        self._unfinished = False
        self._said = 0

    # What happens

    def touch(self, artifact: Artifact, now_due: bool = False) -> None:
        """The artifact changed; ``now_due``: look closely, whatever the counts say."""
        if artifact in self._awaited:
            self._held[artifact] = now_due or self._held.get(artifact, False)
        else:
            self._dirty[artifact] = now_due or self._dirty.get(artifact, False)
            self._manager.wake()

    def seen(self, key: SliceKey) -> None:
        """The mirror shows the slice, or shows it no more."""
        self._recount.add(key.node)
        commanded = self._commanded.get(key.artifact)
        if commanded is not None and key in commanded:
            commanded.remove(key)
            self._extra[key.node] -= 1

    def reached(self, revision: int) -> None:
        """The mirror of ``slices`` has come this far: what waited for it is decided next."""
        while self._acked and self._acked[0][0] <= revision:
            awaited, artifact = self._acked.popleft()
            if self._awaited.get(artifact) == awaited:
                self._release(artifact)

    def written(self, artifact: Artifact, revision: int) -> None:
        """An order is stored, up to this revision."""
        if artifact in self._awaited:
            self._awaited[artifact] = revision
            self._acked.append((revision, artifact))
            self.reached(self._manager.revision)
        self._manager.wake()  # there may be room in the outbox again

    def write_failed(self, artifact: Artifact, revision: int) -> None:
        """An order may or may not be stored: look closely once the mirror shows everything up to this revision."""
        if artifact in self._awaited:
            self._held[artifact] = True
            self.written(artifact, revision)

    def node_changed(self, node: NodeId) -> None:
        """A node joined, left, died, went missing or was given another intent."""
        self._places = None
        for artifact in self._cluster.artifacts_on(node):
            self.touch(artifact, now_due=True)
        for artifact in list(self._unplaced):
            self.touch(artifact, now_due=True)

    def wake_at(self) -> float | None:
        """When something is due, in seconds on this node's clock; -inf: there is work now."""
        if self._unfinished:
            return -math.inf
        return min(self._next_round, self._timers[0][0]) if self._timers else self._next_round

    # What is done about it

    def work(self, now: float) -> None:
        """Decide about artifacts that changed or are due, for at most `WORK_BUDGET` seconds."""
        manager = self._manager
        if now >= self._next_round:
            self._next_round = now + manager.reconcile_interval
            self._begin_round()
        while self._timers and self._timers[0][0] <= now:
            due, artifact = heapq.heappop(self._timers)
            if self._timer_of.get(artifact) == due:
                del self._timer_of[artifact]
                self.touch(artifact, now_due=True)
        stop = manager.clock() + WORK_BUDGET
        self._said = 0
        while self._dirty and not manager.outbox.full:
            artifact = next(iter(self._dirty))
            self._decide(artifact, self._dirty.pop(artifact), now)
            if manager.clock() >= stop:
                break
        if self._said > LOGGED_A_TURN:
            log.info("and more", lines=self._said - LOGGED_A_TURN, level_of_these="debug")
        # With a full outbox the next `Written` message brings the next turn.
        self._unfinished = bool(self._dirty) and not manager.outbox.full

    def _begin_round(self) -> None:
        self._places = None
        for artifact in self._cluster.artifacts():
            # A deadline may have passed while nobody counted.
            self.touch(artifact, now_due=self._cluster.group(artifact).moving)
        # A node may have left or died while this one was dormant; the counts do not show whose slices are whose.
        places = self._current_places()
        for node in self._cluster.on_node:
            if node not in places:
                for artifact in self._cluster.artifacts_on(node):
                    self.touch(artifact, now_due=True)
        # What somebody else wrote to `status`, or left behind there, is found out here.
        self._statuses.clear()
        for name in self._cluster.statuses:
            if name not in self._cluster.refused and self._of(name) is None:
                self._tell(name, None)
        for name, (problem, revision) in self._cluster.refused.items():
            self.tell_refused(name, problem, revision)

    def tell_refused(self, name: str, problem: str, revision: int) -> None:
        """Write the status of a blueprint whose key does not parse."""
        self._tell(name, refused_status(problem, revision, self.term))

    def forget_refused(self, name: str) -> None:
        """A blueprint whose key does not parse is gone."""
        self._tell(name, None)

    def _of(self, name: str) -> Desired | None:
        try:
            return self._cluster.desired.get(decode_artifact(name))
        except ValueError:
            return None

    def _decide(self, artifact: Artifact, closely: bool, now: float) -> None:
        cluster, manager = self._cluster, self._manager
        desired, group = cluster.desired.get(artifact), cluster.group(artifact)
        if not closely and artifact not in self._unplaced and settled(desired, group) and not self._drains(artifact):
            if group.moving and artifact not in self._timer_of:
                self._set_timer(artifact, now + manager.policy.command_timeout)
        else:
            places = self._current_places()
            plan = reconcile(
                artifact,
                desired,
                group,
                places,
                self._total,
                now,
                manager.policy,
                cluster.failed_unloading,
                self._cursor,
                self._current_ranking(places),
            )
            self._cursor = plan.cursor
            self._unplaced.pop(artifact, None)
            if plan.unplaced:
                self._unplaced[artifact] = plan.unplaced
            if plan.wake_at is not None:
                self._set_timer(artifact, plan.wake_at)
            if plan.commands:
                # The status follows once the mirror shows them.
                self._send(artifact, plan.commands)
                return
        self._update_status(artifact, desired)

    def _send(self, artifact: Artifact, commands: Sequence[Command]) -> None:
        self._said += 1
        _log_commands(artifact, commands, log.info if self._said <= LOGGED_A_TURN else log.debug)
        self._awaited[artifact] = math.inf
        known = self._cluster.group(artifact).slices
        new = {each.key for each in commands if each.state is SliceState.LOAD and each.key not in known}
        if new:
            self._commanded[artifact] = new
            self._extra.update(key.node for key in new)
            self._recount.update(key.node for key in new)
        self._manager.outbox.order(Order(artifact, self.term, commands))

    def _release(self, artifact: Artifact) -> None:
        del self._awaited[artifact]
        for key in self._commanded.pop(artifact, ()):
            self._extra[key.node] -= 1
            self._recount.add(key.node)
        if artifact in self._held:
            self.touch(artifact, self._held.pop(artifact))

    def _total(self, node: NodeId) -> int:
        return len(self._cluster.on_node.get(node, ())) + self._extra[node]

    def _current_places(self) -> dict[NodeId, Place]:
        if self._places is None:
            topology = self._manager.topology
            self._places = {}
            for node in sorted(topology.nodes):
                presence, schedule = topology.nodes[node], topology.schedule(node)
                if isinstance(presence, Registered):
                    normal, capacity = schedule is Schedule.NORMAL, presence.registration.capacity
                    self._places[node] = Place(node, normal, schedule is Schedule.DRAIN, capacity)
                else:
                    self._places[node] = Place(node, open=False, draining=False)
            self._draining = [node for node, place in self._places.items() if place.draining]
            self._ranking = Ranking()
            self._recount.update(self._places)
        return self._places

    def _current_ranking(self, places: dict[NodeId, Place]) -> Ranking:
        for node in self._recount:
            place = places.get(node)
            total = self._total(node)
            if place is not None and place.open and (place.capacity is None or total < place.capacity):
                self._ranking.put(node, total)
            else:
                self._ranking.drop(node)
        self._recount.clear()
        return self._ranking

    def _drains(self, artifact: Artifact) -> bool:
        """Whether the artifact has slices on a draining node."""
        self._current_places()
        on_node = self._cluster.on_node
        return any(key.artifact == artifact for node in self._draining for key in on_node.get(node, ()))

    def _set_timer(self, artifact: Artifact, at: float) -> None:
        known = self._timer_of.get(artifact)
        if known is None or at < known:
            self._timer_of[artifact] = at
            heapq.heappush(self._timers, (at, artifact))

    def _update_status(self, artifact: Artifact, desired: Desired | None) -> None:
        name = encode_artifact(artifact)
        if desired is None:
            self._tell(name, None)
            return
        places = self._current_places()
        unplaced = self._unplaced.get(artifact, 0)
        open_nodes = sum(place.open for place in places.values()) if unplaced else 0
        self._tell(name, status_of(desired, self._cluster.group(artifact), unplaced, open_nodes, self.term))

    def _tell(self, name: str, status: Status | None) -> None:
        known = self._statuses[name] if name in self._statuses else self._cluster.statuses.get(name)
        if (status is None and known is None) or (status is not None and status.same_as(known)):
            return
        self._statuses[name] = status
        if status is not None and status.condition is not (known.condition if known else None):
            self._said += 1
            say = log.info if self._said <= LOGGED_A_TURN else log.debug
            say("status", blueprint=name, condition=str(status.condition), reason=status.reason or None)
        self._manager.outbox.status(name, status)


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
    ) -> None:
        self.node = node
        self.topology = topology
        self.outbox = outbox
        self.clock = clock
        self.policy = policy or Policy()
        self.reconcile_interval = reconcile_interval
        self.cluster = Cluster()
        self.revision = 0
        """How far the mirror of ``slices`` has come."""
        self.state: Dormant | Active = Dormant()
        self.wake = wake

    def wake_at(self) -> float | None:
        """When it wants its next `Tick`, in seconds on this node's clock; None: only when something happens."""
        return self.state.wake_at()

    # Leadership

    @receiver
    def on_leader_change(self, change: LeaderChange) -> None:
        """Become Active in a term of this node's own, Dormant in any other."""
        if change.local_node_is_leader:
            log.info("active", term=change.term, blueprints=len(self.cluster.desired), nodes=len(self.topology.nodes))
            self._recover_blueprints()
            self.state = Active(self, change.term, self.clock())
            self.wake()
        elif isinstance(self.state, Active):
            log.info("dormant", term=self.state.term, leader=change.leader)
            self.state = Dormant()
            self.outbox.clear()

    # The buckets

    @receiver
    def on_value_put(self, put: ValuePut[SliceKey | BlueprintKey, Any]) -> None:
        """A slice or a blueprint has a new value."""
        key = put.key
        if isinstance(key, SliceKey):
            self._record_slice(key, put)
        else:
            self._record_blueprint(key, put)

    @receiver
    def on_value_remove(self, remove: ValueRemove[SliceKey | BlueprintKey, Any]) -> None:
        """A slice or a blueprint is gone."""
        key = remove.key
        if isinstance(key, SliceKey):
            self.cluster.remove_slice(key)
            self.state.seen(key)
            self.state.touch(key.artifact)
            self._reached(remove.revision)
        else:
            self.cluster.remove_blueprint(key.artifact, remove.revision)
            log.debug("blueprint removed", artifact=str(key.artifact), revision=remove.revision)
            self.state.touch(key.artifact)

    @receiver
    def on_value_rejected(self, rejected: ValueRejected[SliceKey | BlueprintKey, Any]) -> None:
        """A blueprint is refused, or nobody can tell what a slice is doing."""
        key = rejected.key
        if isinstance(key, BlueprintKey):
            log.warning(
                "blueprint refused", artifact=str(key.artifact), reason=rejected.reason, revision=rejected.revision
            )
            self.cluster.refuse_blueprint(key.artifact, rejected.reason, rejected.revision, rejected.removed)
            self.state.touch(key.artifact)
        else:
            # As good as failed: it is replaced, and asked to unload.
            log.warning("unreadable slice counts as failed", key=str(key), reason=rejected.reason)
            value = SliceValue(SliceState.FAILED, reason=f"unreadable value: {rejected.reason}")
            self._record_slice(key, ValuePut(key, value, rejected.revision, rejected.at))

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
        """A key that did not parse is gone, and so is what there was to say of it."""
        if removed.kind is BlueprintKey:
            self.cluster.refused.pop(removed.name, None)
            if isinstance(self.state, Active):
                self.state.forget_refused(removed.name)

    @receiver
    def on_status(
        self,
        message: ValuePut[StatusKey, Status] | ValueRemove[StatusKey, Status] | ValueRejected[StatusKey, Status],
    ) -> None:
        """What users are told at present."""
        if isinstance(message, ValuePut):
            self.cluster.statuses[message.key.name] = message.value
        else:
            self.cluster.statuses.pop(message.key.name, None)

    @receiver
    def on_leadership_record(
        self, message: ValuePut[LeaseKey | FenceKey, Any] | ValueRemove[LeaseKey | FenceKey, Any]
    ) -> None:
        """The lease and the fence share the slices' stream: they tell how far its mirror has come."""
        self._reached(message.revision)

    # Nodes, time, and the outbox

    @receiver
    def on_node(self, change: NodeJoined | NodeLeft | NodeMissing | NodeDied | IntentChanged) -> None:
        """The set of nodes that can be used is another one now."""
        if isinstance(self.state, Active):
            self.state.node_changed(change.node)
            self.wake()

    @receiver
    def on_tick(self, tick: Tick) -> None:
        """Decide what is to be decided."""
        if isinstance(self.state, Active):
            self.state.work(tick.at)

    @receiver
    def on_written(self, written: Written) -> None:
        """An order is stored."""
        if isinstance(self.state, Active) and self.state.term == written.term:
            self.state.written(written.artifact, written.revision)

    @receiver
    def on_write_failed(self, failed: WriteFailed) -> None:
        """An order may not be stored: the mirror will tell."""
        if isinstance(self.state, Active) and self.state.term == failed.term:
            log.warning("commands may not be stored", artifact=str(failed.artifact), reason=failed.reason)
            self.state.write_failed(failed.artifact, failed.revision)

    def _record_blueprint(self, key: BlueprintKey, put: ValuePut[Any, Blueprint]) -> None:
        self.cluster.accept_blueprint(key.artifact, put.value, put.revision)
        log.debug("blueprint", artifact=str(key.artifact), instances=put.value.instances, revision=put.revision)
        self.state.touch(key.artifact)

    def _record_slice(self, key: SliceKey, put: ValuePut[Any, SliceValue]) -> None:
        self.cluster.put_slice(put)
        node = key.node
        if node not in self.topology.nodes:
            self.topology.notice(node)
        self.state.seen(key)
        self.state.touch(key.artifact)
        self._reached(put.revision)

    def _recover_blueprints(self) -> None:
        """Where refused blueprints have pushed the valid one out of the history, the status still has it."""
        for artifact, desired in self.cluster.desired.items():
            status = self.cluster.statuses.get(encode_artifact(artifact))
            if desired.blueprint is not None or status is None:
                continue
            revision = status.in_force_revision
            if revision > self.cluster.removed.get(artifact, 0) and 0 <= status.desired <= MAX_INSTANCES:
                self.cluster.recover_blueprint(artifact, Blueprint(status.desired), revision)

    def _reached(self, revision: int) -> None:
        self.revision = revision
        self.state.reached(revision)


def _log_commands(artifact: Artifact, commands: Sequence[Command], say: Callable[..., Any]) -> None:
    alike: dict[tuple[str, str], list[SliceKey]] = {}
    for command in commands:
        alike.setdefault((command.state or "delete", command.reason), []).append(command.key)
    for (state, reason), keys in alike.items():
        shown = [str(key).removeprefix("slices/") for key in keys[:LOGGED_KEYS]]
        say(state, artifact=str(artifact), count=len(keys), reason=reason, slices=shown)
