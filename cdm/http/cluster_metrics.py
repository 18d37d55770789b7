"""What there is to measure of the cluster: the same from every process that follows all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from cdm.http.families import Labelled, counter, counters, gauge, gauges, histogram, ones
from cdm.http.lives import Lives
from cdm.http.sight import Sight
from cdm.http.unplaced import Unplaced, unplaced
from cdm.model.keys import decode_artifact
from cdm.model.node import LOST, Schedule
from cdm.model.slice import SliceState
from cdm.model.status import RolloutStatus, Status

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_NODE, _ARTIFACT, _SERVICE = ("node",), ("artifact",), ("service",)


def cluster_families(sight: Sight, lives: Lives, now: float) -> Iterator[Metric]:
    """All of them; ``now`` in seconds on this node's clock."""
    yield gauge("unreadable_keys", "Keys and values in the buckets that cannot be read.", len(sight.unreadable))
    yield from _leadership(sight, lives)
    yield from _nodes(sight, now)
    yield from _slices(sight, lives)
    statuses = [(artifact, each) for name, each in sight.cluster.statuses.items() if (artifact := _artifact(name))]
    yield from _blueprints(statuses)
    yield from _rollouts(statuses)


def _artifact(name: str) -> str:
    try:
        return str(decode_artifact(name))
    except ValueError:
        return ""  # a blueprint's key that does not parse has a status, too


def _leadership(sight: Sight, lives: Lives) -> Iterator[Metric]:
    lease = sight.lease
    yield gauges(
        "leader", "1 for the node that leads; nothing where nobody does.", _NODE, ones({(lease.node,)} if lease else ())
    )
    yield gauge("term", "Number of the present leadership, or the latest.", sight.term)
    yield counter("leader_changes_total", "How often another leadership began.", lives.leader_changes)


def _nodes(sight: Sight, now: float) -> Iterator[Metric]:
    nodes = [(node, put.value, put.at) for node, put in sight.nodes.items()]
    cluster = sight.cluster

    def each(name: str, about: str, values: Iterable[float | None]) -> Metric:
        named = zip(((node,) for node, _, _ in nodes), values, strict=True)
        return gauges(f"node_{name}", about, _NODE, named)

    said = [registration for _, registration, _ in nodes]
    vitals = [registration.vitals for registration in said]
    labels = ("node", "role", "runtime", "version")
    yield gauges(
        "node_info",
        "1 for each node that is registered.",
        labels,
        ones((node, each.role, each.runtime, each.version) for node, each, _ in nodes),
    )
    ages = (max(now - at, 0.0) for _, _, at in nodes)
    yield each("heartbeat_age_seconds", "Time since the node was last heard.", ages)
    yield each("ttl_seconds", "Silence after which the node counts as dead.", (one.ttl for one in said))
    taken = (len(cluster.on_node.get(node, ())) for node, _, _ in nodes)
    yield each("slices", "Slices on the node, whatever their state.", taken)
    yield each(
        "capacity_slices", "Most slices that the node takes; not told: no limit.", (one.capacity for one in said)
    )
    about = "How busy its processors are, in coarse steps; 1: each has just enough to do."
    yield each("load_ratio", about, (one.load for one in said))
    yield each("cpu_cores", "Cores that slices may reserve.", (one.cpu for one in said))
    reserved = (cluster.reserved.cpu(node) for node, _, _ in nodes)
    yield each("cpu_reserved_cores", "Cores that slices reserve.", reserved)
    yield each("memory_bytes", "Memory that slices may reserve.", (one.memory for one in said))
    memory = (cluster.reserved.memory(node) for node, _, _ in nodes)
    yield each("memory_reserved_bytes", "Memory that slices reserve.", memory)
    yield each(
        "disk_bytes",
        "Size of the disk that the node's folder is on.",
        (one.disk_size if one else None for one in vitals),
    )
    yield each("disk_free_bytes", "What is free of it.", (one.disk_free if one else None for one in vitals))
    closed = (sight.schedule(node) is not Schedule.NORMAL for node, _, _ in nodes)
    yield each("closed", "1 where nothing new is placed, since it is cordoned or drained.", closed)
    yield gauges(
        "node_drain_remaining_slices",
        "Slices that are left on a node that is to be empty; not told: it is not drained.",
        _NODE,
        _draining(sight),
    )
    lost = ((node,) for node, put in sight.seen.items() if put.value.gone == LOST and node not in sight.nodes)
    yield gauges("node_lost", "1 for each node that is lost, and not forgotten.", _NODE, ones(lost))


def _draining(sight: Sight) -> Labelled:
    for node in {**sight.nodes, **sight.cluster.on_node}:
        if sight.schedule(node) is Schedule.DRAIN:
            yield (node,), len(sight.cluster.on_node.get(node, ()))


def _slices(sight: Sight, lives: Lives) -> Iterator[Metric]:
    groups, known = sight.cluster.groups, set(sight.cluster.artifacts())
    yield gauges(
        "slices",
        "Slices in each state; states without any are not told.",
        ("artifact", "state"),
        (
            ((artifact, state), count)
            for artifact, group in groups.items()
            for state, count in group.counts.items()
            if count or state is SliceState.ACTIVE
        ),
    )
    for name, about, counts in (
        ("slice_restarts_total", "Programs that ended, and were started again by their node.", lives.restarts),
        ("slice_failures_total", "Slices that became FAILED.", lives.failures),
    ):
        yield counters(name, about, _ARTIFACT, (((each,), counts.get(each, 0)) for each in known))
    yield histogram("slice_activation", "Time from the command LOAD until a slice was ACTIVE.", lives.to_active)


def _blueprints(statuses: list[tuple[str, Status]]) -> Iterator[Metric]:
    def each(name: str, about: str, values: Iterable[float | None]) -> Metric:
        named = zip(((artifact,) for artifact, _ in statuses), values, strict=True)
        return gauges(f"blueprint_{name}", about, _ARTIFACT, named)

    told = [status for _, status in statuses]
    yield gauges(
        "blueprint_condition",
        "1 for the condition that each blueprint is in.",
        ("artifact", "condition"),
        ones((artifact, status.condition) for artifact, status in statuses),
    )
    yield each("wanted_instances", "Instances that are wanted.", (one.desired for one in told))
    yield each(
        "healthy_instances", "Instances that have been ACTIVE for min_healthy.", (_set(one.healthy) for one in told)
    )
    yield each("outdated_instances", "Live instances of another template.", (_set(one.outdated) for one in told))
    about = "Live instances where a hard rule does not hold any more."
    yield each("violating_instances", about, (_set(one.violations) or 0 for one in told))
    about = "Instances that cannot be placed, by what keeps most nodes from taking them."
    yield gauges("unplaced_instances", about, ("artifact", "reason"), _unplaced(statuses))


def _unplaced(statuses: list[tuple[str, Status]]) -> Labelled:
    for artifact, status in statuses:
        found: Unplaced = unplaced(status.reason)
        if found.instances:
            yield (artifact, found.reason), found.instances


def _rollouts(statuses: list[tuple[str, Status]]) -> Iterator[Metric]:
    """The version that takes over tells of its service's rollout, as the leader sees it."""
    found: dict[str, RolloutStatus] = {}
    for artifact, status in statuses:
        service, _, version = artifact.rpartition(":")
        if status.rollout is not UNSET and status.rollout.target == version:
            found[service] = status.rollout

    def each(name: str, about: str, values: Iterable[float]) -> Metric:
        return gauges(f"rollout_{name}", about, _SERVICE, zip(((one,) for one in found), values, strict=True))

    rollouts: list[RolloutStatus] = list(found.values())
    yield gauges(
        "rollout_phase",
        "1 for the phase that each service's rollout is in.",
        ("service", "phase"),
        ones((service, one.phase) for service, one in found.items()),
    )
    yield each(
        "step", "Number of the step that is being taken, from 1; 0: there are none.", (one.step for one in rollouts)
    )
    yield each("steps", "How many steps there are.", (one.steps for one in rollouts))
    yield each("step_start_timestamp_seconds", "When this step began, since 1970.", (one.since for one in rollouts))
    yield each("healthy_ratio", "Healthy new instances, of all that are wanted.", (one.share / 100 for one in rollouts))
    yield each("stuck", "1 where it goes back to instances that do not come up.", (one.stuck for one in rollouts))


def _set(count: Any) -> float | None:
    return None if count is UNSET else float(count)
