"""The state of a manager that leads: `Active`, in one term.

It keeps the list of artifacts to look at, decides with `reconciliation`, and hands commands to the outbox. It
decides about an artifact only when its mirror has reached the last sequence that it wrote for it (read-your-writes):
until then the artifact is held back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from msgspec import UNSET
from msgspec.structs import replace

from cdm.log import Log, Ration
from cdm.manager.agenda import Agenda
from cdm.manager.cluster import Desired
from cdm.manager.copies import Copies
from cdm.manager.draining import Drains
from cdm.manager.gates import Gates
from cdm.manager.moves import Moves
from cdm.manager.outbox import Order, log_order
from cdm.manager.placement import Placement
from cdm.manager.plan import Command
from cdm.manager.planning import Planning
from cdm.manager.reconciliation import settled
from cdm.manager.releases import Job, Release, Releases
from cdm.manager.remembering import Remembering
from cdm.manager.settling import Settling
from cdm.manager.status import refused_status, status_of, with_counts
from cdm.manager.statuses import Statuses
from cdm.manager.together import together
from cdm.manager.topology import Registered
from cdm.manager.undecided import LeftAlone, status_of_undecided
from cdm.manager.wanted import Wanted
from cdm.manager.wishes import Wishes
from cdm.manager.workplace import Workplace
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey, decode_artifact, encode_artifact
from cdm.model.status import Condition, Status

log = Log("cdm.manager")

WORK_BUDGET = 0.0025
"""Seconds of deciding after which other tasks get their turn: the server is idle until the next batch is sent."""
HEALTHY_PAUSE = 1.0
"""Seconds at least between two looks at an artifact only because more of its instances are healthy."""
LOGGED_A_SECOND = 20
"""Decisions and statuses that are logged at level info; of more, the rest is counted."""


class Active:
    """This node leads: the artifacts to look at, and when.

    Args:
        at: what it works with.
        term: the leadership's number; every command carries it.
        now: seconds on this node's clock.
    """

    def __init__(self, at: Workplace, term: int, now: float) -> None:
        self.term = term
        self._at = at
        self._cluster = at.cluster
        self._placement = Placement(at.cluster, at.topology)
        self._agenda = Agenda(at.wake)
        self.orders: Mapping[Artifact, Order] = self._agenda.orders
        """By artifact the order of which the mirror may not show everything yet."""
        self._gated: dict[Artifact, None] = {}
        """Artifacts whose rollout may not begin, or about which nothing is done, since a manager does not know how."""
        self._unwritten: dict[Artifact, str] = {}
        """Artifacts whose last order was not stored, and why."""
        self._ration = Ration(LOGGED_A_SECOND)
        self._statuses = Statuses(at.cluster, at.outbox, self._level)
        self._barrier = 0.0
        """The revision that the mirror of ``slices`` must reach before anything is decided; inf: not known yet."""
        self._next_round = now
        self._unfinished = False
        self._undecided = LeftAlone()
        self.gates = Gates(at.outbox)
        self._wishes = Wishes(at.cluster, self._placement, at.topology)
        self._copies = Copies(at.cluster, self._wishes.no_copies)
        self._releases = Releases(at.cluster, self._placement, self._wishes, self.gates, at.epoch, term)
        self._remembering = Remembering(at.cluster, at.topology, at.outbox)
        settling = Settling(at.topology, at.cluster.on_node, at.policy, now)
        self._moves = Moves(self._up_since, partial(self.touch, now_due=True))
        for node in at.topology.nodes:
            self._moves.node_changed(node)
        self._drains = drains = Drains(at.cluster, at.topology, self._placement, self._wishes.no_deadlines)
        self._planning = Planning(
            at.cluster, self._placement, self._moves, self._releases, self._agenda, settling, drains, at.policy, now
        )

    # What happens

    def touch(self, artifact: Artifact, now_due: bool = False) -> None:
        """The artifact changed; ``now_due``: look closely, whatever the counts say."""
        self._agenda.touch(artifact, now_due)

    def seen(self, key: SliceKey, *, gone: bool = False) -> None:
        """The mirror shows the slice, or (``gone``) shows it no more."""
        self._placement.seen(key)
        if gone:
            self._planning.free(self._at.clock())
            for artifact in self._drains.freed_by(key.artifact):
                self.touch(artifact, now_due=True)

    def heard(self, node: NodeId) -> None:
        """A node's heart beat."""
        self._placement.heard(node)

    def reached(self, revision: int) -> None:
        """The mirror of ``slices`` has come this far: what waited for it is decided next."""
        if self._barrier:
            if revision < self._barrier:
                return
            self._barrier = 0.0
            self._at.wake()
        for artifact in self._agenda.reached(revision):
            self._placement.release(artifact)

    def shown(self, name: str, status: Status | None) -> None:
        """The mirror shows the status, or shows it no more."""
        if not self._statuses.shown(name, status) and status is None and self._of(name) is not None:
            self.touch(decode_artifact(name))  # somebody else removed it: it is written again

    def written(self, artifact: Artifact, revision: int) -> None:
        """An order is stored, up to this revision."""
        self._unwritten.pop(artifact, None)
        if self._agenda.written(artifact, revision):
            self.reached(self._cluster.revision)
        self._at.wake()  # there may be room in the outbox again

    def write_failed(self, artifact: Artifact, revision: int, reason: str) -> None:
        """An order may or may not be stored: look closely once the mirror shows everything up to this revision."""
        if self._agenda.is_put_off(artifact):
            self._agenda.touch(artifact, closely=True)
            self.written(artifact, revision)
            self._unwritten[artifact] = reason

    def decide_from(self, revision: float) -> None:
        """Decide nothing until the mirror of ``slices`` has reached this revision; inf: it is not known yet."""
        self._barrier = revision
        self.reached(self._cluster.revision)

    def node_changed(self, node: NodeId) -> None:
        """A node joined, left, died, went missing, was forgotten or given another intent, or has other labels."""
        self._placement.refresh()
        self._moves.node_changed(node)
        self._remembering.note(node)
        ruled = self._cluster.ruled
        for artifact in self._cluster.artifacts_on(node):
            self.touch(artifact, now_due=True)
            for neighbour in ruled.wanting(artifact.service):
                self.touch(neighbour, now_due=True)
        for artifact in (*self._planning.waiting_for_nodes(), *ruled.each, *ruled.on_join, *self._moves.stuck):
            self.touch(artifact, now_due=True)
        gated, self._gated = self._gated, {}
        for artifact in gated:
            self.touch(artifact, now_due=True)

    def _up_since(self, node: NodeId) -> float:
        presence = self._at.topology.nodes.get(node)
        return presence.since if isinstance(presence, Registered) else math.inf

    @property
    def backlog(self) -> int:
        """How many artifacts are to be looked at now."""
        return self._agenda.length

    @property
    def undecided(self) -> Mapping[Artifact, Exception]:
        """The artifacts whose latest decision raised an exception, and which."""
        return self._undecided.errors

    @property
    def at_rest(self) -> bool:
        """Whether everything was looked at, and the mirrors show all that was asked to be written."""
        agenda = self._agenda
        if self._barrier or agenda.awaits or not agenda.empty or self._statuses.pending:
            return False
        if self._at.clock() >= self._next_round:
            return False
        topology = self._at.topology
        return all(seen.gone is not None or node in topology.nodes for node, seen in topology.seen.items())

    def wake_at(self) -> float | None:
        """When something is due, in seconds on this node's clock; -inf: now; None: once the mirror has come further."""
        if self._barrier:
            return None
        if self._unfinished:
            return -math.inf
        due = min(self._next_round, self._agenda.due_at, self._planning.due_at)
        return min(due, self._ration.missed_at, self._drains.due_at)

    # What is done about it

    def work(self, now: float) -> None:
        """Decide about artifacts that changed or are due, for at most `WORK_BUDGET` seconds."""
        if self._barrier:
            return
        at = self._at
        for node in self._drains.look(now):
            self.node_changed(node)
        for artifact in (*self._planning.settle(now), *self._planning.waiting_for_room(now)):
            self.touch(artifact, now_due=True)
        if now >= self._next_round:
            self._next_round = now + at.reconcile_interval
            at.pace.begin(now)
            self._begin_round()
        agenda = self._agenda
        agenda.ring(now)
        began = at.clock()
        while not agenda.empty and not at.outbox.full:
            artifact, closely = agenda.take()
            try:
                self._decide(artifact, closely, now)
            except Exception as error:  # noqa: BLE001  # the leader has to go on for all others
                self._leave(artifact, error, now)
            else:
                self._undecided.forget(artifact)
            if at.clock() >= began + WORK_BUDGET:
                break
        if missed := self._ration.missed(now):
            log.info("and more", lines=missed, level_of_these="debug")
        # With a full outbox the next `Written` message brings the next turn.
        self._unfinished = not agenda.empty and not at.outbox.full
        at.pace.worked(began, at.clock(), done=agenda.empty)

    def _begin_round(self) -> None:
        self._placement.refresh()
        for node in {**self._at.topology.nodes, **self._at.topology.seen}:
            self._remembering.note(node)
        # A node may have left or died while this one was dormant; the counts do not show whose slices are whose.
        live = self._placement.nodes
        for node in self._cluster.on_node:
            if node not in live:
                for artifact in self._cluster.artifacts_on(node):
                    self.touch(artifact, now_due=True)
        # Where something is likely to be done comes before what is only looked at, of which there may be much.
        for artifact in sorted(self._cluster.artifacts(), key=self._cluster.looks_settled):
            # A deadline may have passed while this node did not lead.
            self.touch(artifact, now_due=self._cluster.group(artifact).moving)
        # What somebody else wrote to `status`, or left behind there, is found out here.
        self._statuses.begin_round()
        for name in self._cluster.statuses:
            if name not in self._cluster.refused and self._of(name) is None:
                self._statuses.tell(name, None)
        for name, (problem, revision) in self._cluster.refused.items():
            self.tell_refused(name, problem, revision)

    def tell_refused(self, name: str, problem: str, revision: int) -> None:
        """Write the status of a blueprint whose key does not parse."""
        self._statuses.tell(name, refused_status(problem, revision, self.term))

    def forget_refused(self, name: str) -> None:
        """A blueprint whose key does not parse is gone."""
        self._statuses.tell(name, None)

    def _of(self, name: str) -> Desired | None:
        try:
            return self._cluster.desired.get(decode_artifact(name))
        except ValueError:
            return None

    def _decide(self, artifact: Artifact, closely: bool, now: float) -> None:
        cluster, placement, planning = self._cluster, self._placement, self._planning
        ruled = artifact in cluster.ruled.artifacts
        if cluster.ruled.artifacts and (why := self._wishes.not_known(artifact)):
            self._hold(artifact, why, now)
            return
        group, wanted = cluster.group(artifact), self._wishes.wanted(artifact)
        if self._releases.concern(artifact, wanted, group):
            self._decide_release(artifact, now)
            return
        group = placement.counted(group, with_exclusive=True)
        closely = closely or self._copies.is_due(artifact) or planning.is_short(artifact) or placement.drains(artifact)
        closely = closely or (ruled and planning.may_move(Job(artifact, wanted, group), now))
        if not closely and settled(wanted, group):
            self._unwritten.pop(artifact, None)
            if group.moving and not self._agenda.is_timed(artifact):
                self._agenda.look_at(artifact, now + self._at.policy.command_timeout)
        else:
            planning.forget((artifact,))
            plan = planning.plan(Job(artifact, wanted, group), planning.fleet(), now)
            if self._carry_out(Order(artifact, self.term, plan.commands)):
                return  # the status follows once the mirror shows them
        self._update_status(artifact, now)

    def _leave(self, artifact: Artifact, error: Exception, now: float) -> None:
        """Leave an artifact as it is whose decision raised, until something happens to it, or for one round."""
        self._undecided.note(artifact, error)
        for each in self._placement.expecting:
            if not self._agenda.is_put_off(each):
                self._placement.release(each)  # what was about to be commanded is not
        self._agenda.look_at(artifact, now + self._at.reconcile_interval)
        name, desired = encode_artifact(artifact), self._cluster.desired.get(artifact)
        if desired is not None:
            known = self._cluster.statuses.get(name)
            self._statuses.tell(name, status_of_undecided(desired, known, error, self.term))

    def _hold(self, artifact: Artifact, why: str, now: float) -> None:
        """Leave the artifact's instances as they are: not all managers know what its blueprint says."""
        self._gated[artifact] = None
        group = self._placement.counted(self._cluster.group(artifact), with_exclusive=True)
        self._planning.forget((artifact,))
        plan = self._planning.plan(Job(artifact, Wanted(None), group), self._planning.fleet(), now)
        if not self._carry_out(Order(artifact, self.term, plan.commands)):
            self._update_status(artifact, now, held=why)

    def _carry_out(self, order: Order) -> bool:
        """Send an order, where it says anything; returns whether its outcome is to be waited for."""
        artifacts, order = (order.artifact, *order.also), self._copies.added_to(order)
        if order.size == 0:
            for artifact in artifacts:
                self._unwritten.pop(artifact, None)  # what was not stored is not wanted any more
            return False
        level = self._level()
        if log.tells(level):
            log_order(order, getattr(log, level))
        self._placement.expect(order.commands)
        self._at.outbox.order(order)
        for artifact in artifacts:
            self._agenda.put_off(artifact, order)
        return self._unwritten.keys().isdisjoint(artifacts)

    def _decide_release(self, artifact: Artifact, now: float) -> None:
        """Decide about all versions of a service at once, and of those that advance together with it."""
        services = self._releases.group_of(artifact.service)
        artifacts = sorted({artifact, *(each for one in services for each in self._cluster.versions_of(one))})
        if not self._agenda.take_all(artifacts):
            return
        self._planning.forget(artifacts)
        fleet = self._planning.fleet()
        releases = together(services, partial(self._planning.release_of, fleet, now))
        commands: list[Command] = []
        for release in releases:
            self._releases.check(release)
            for job in release.jobs:
                planned = self._planning.plan(job, fleet, now).commands
                self._placement.expect(planned)  # the next job finds these keys and this room taken
                fleet = self._planning.fleet()
                commands += planned
            if release.jobs:
                self._agenda.look_at(release.jobs[0].artifact, release.decision.wake_at)
        records = {each.service: each.record for each in releases if each.changed}
        if self._carry_out(Order(artifacts[0], self.term, commands, artifacts[1:], records)):
            return
        for release in releases:
            for version in release.facts.versions.values():
                self._update_status(version.artifact, now, release)
                if release.facts.waits_for:
                    self._gated[version.artifact] = None

    def _update_status(self, artifact: Artifact, now: float, release: Release | None = None, held: str = "") -> None:
        name, desired = encode_artifact(artifact), self._wishes.desired(artifact)
        if desired is None:
            self._statuses.tell(name, None)
            return
        plan = self._planning.short(artifact)
        group = self._placement.counted(self._cluster.group(artifact))
        nodes = self._at.topology.nodes.values()
        any_nodes = any(isinstance(each, Registered) or not each.hearsay for each in nodes)
        told = self._releases.told(release, artifact, desired)
        if held:
            told = told._replace(progressing=held)
        wanted = self._wishes.wanted(artifact, desired)
        job = Job(artifact, wanted, group)
        for remark in self._planning.remarks(job, now) if desired.blueprint is not None else ():
            told = told.noting(remark)
        status, until = status_of(desired, group, plan, self.term, now, any_nodes=any_nodes, told=told)
        if until is not None:
            self._agenda.look_at(artifact, until)
        status = self._copies.without_copy(artifact, status)
        if desired.blueprint is not None:
            status, healthy_at = with_counts(status, group, wanted, now)
            self._agenda.look_at(artifact, max(healthy_at, now + HEALTHY_PAUSE))
            if artifact in self._cluster.ruled.artifacts:
                violations, rebalanced = self._planning.forbidden(job, now).number, self._planning.rebalanced(artifact)
                status = replace(status, violations=violations or UNSET, rebalanced=rebalanced or UNSET)
        if (reason := self._unwritten.get(artifact)) and status.condition is not Condition.INVALID:
            status = replace(status, condition=Condition.DEGRADED, reason=f"commands cannot be stored: {reason}")
        self._statuses.tell(name, status)

    def _level(self) -> str:
        """At which level to log one more decision: thousands of lines a second are of no use, and cost time."""
        return "info" if self._ration.take(self._at.clock()) else "debug"
