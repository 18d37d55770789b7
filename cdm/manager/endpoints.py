"""Where the instances of one service can be sent requests, and how many of them each is to get. Pure.

An instance is an endpoint while it is ACTIVE, its slice tells a port, and its node is registered; one that is told to
go (UNLOAD, DEACTIVATE) is none from that moment on. All get the same; while a rollout goes on, a side to which its
record gives a weight of 0 gets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRejected, ValueRemove
from cdm.model.artifact import NodeId, Service
from cdm.model.keys import NodeKey, RolloutKey, SliceKey
from cdm.model.node import Registration
from cdm.model.record import Rollout, Side
from cdm.model.slice import SliceState, SliceValue

PLACES = 4
"""Decimal places of weights: of 10,000 instances each still has one that is not 0."""
DEFAULT_TTL = 10.0
"""Seconds without a heartbeat after which a node that does not say so itself counts as gone."""
EXPIRY_GRACE = 0.5
"""Fraction of its TTL for which a node whose registration expired may still be heard. After an outage of NATS all
registrations expire at once, before any node could renew its own."""


class Endpoint(Struct, frozen=True):
    """An instance that may be sent requests."""

    address: str
    port: int
    weight: float
    """Per cent of the service's requests, rounded to `PLACES` decimal places; all weights come to 100."""
    node: NodeId
    version: str


class _Instance(NamedTuple):
    """An instance that could be sent requests."""

    address: str
    port: int
    key: SliceKey
    value: SliceValue


def endpoints(
    slices: Mapping[SliceKey, SliceValue], nodes: Mapping[NodeId, Registration], record: Rollout | None
) -> list[Endpoint]:
    """Work out the endpoints of one service, ordered by address and port.

    Args:
        slices: the slices of all its versions.
        nodes: the nodes that are registered.
        record: of its rollout; None: there is none.
    """
    found = [each for each in _instances(slices, nodes) if each is not None]
    weighted = _weighted(found, record) if record is not None and record.phase.under_way else _shared(found, 100.0)
    return sorted(
        (
            Endpoint(each.address, each.port, round(weight, PLACES), each.key.node, each.key.artifact.version)
            for each, weight in weighted
        ),
        key=lambda each: (each.address, each.port, each.node, each.version),
    )


def without_address(slices: Mapping[SliceKey, SliceValue], nodes: Mapping[NodeId, Registration]) -> int:
    """How many instances serve on a port of which nobody says the address: their nodes run an earlier cdm."""
    return sum(each is None for each in _instances(slices, nodes))


def _instances(
    slices: Mapping[SliceKey, SliceValue], nodes: Mapping[NodeId, Registration]
) -> Iterable[_Instance | None]:
    """Those that serve on a port, on registered nodes; None for one whose address nobody says."""
    for key, value in slices.items():
        node = nodes.get(key.node)
        if node is not None and value.state is SliceState.ACTIVE and value.port is not None:
            address = value.address or node.address
            yield _Instance(address, value.port, key, value) if address else None


def _shared(instances: list[_Instance], weight: float) -> list[tuple[_Instance, float]]:
    return [(each, weight / len(instances)) for each in instances]


def _weighted(found: list[_Instance], record: Rollout) -> list[tuple[_Instance, float]]:
    """The instances that are sent requests while a rollout is under way, each as many as any other.

    A side whose weight is 0 gets none. What a step's weight is in per cent, the numbers of instances come to when the
    step is over: before, a few new ones would get more than they can take. What is of neither side was replaced in the
    middle: it serves until it is told to go, and where one side is to get all, until that side has as many.
    """
    weights = record.weights
    if weights is None:
        return _shared(found, 100.0)
    shut = {side for side, weight in (("from", weights.source), ("to", weights.target)) if weight == 0}
    chosen = [(each, side) for each in found if (side := _side(each, record)) not in shut]
    if shut:
        neither = sum(side is None for _, side in chosen)
        replaced = 2 * neither > len(chosen)
        chosen = [(each, side) for each, side in chosen if (side is None) == replaced]
    return _shared([each for each, _ in chosen], 100.0)


def _side(instance: _Instance, record: Rollout) -> str | None:
    """The side that an instance is of; None: neither.

    One that could be of either, as its slice says too little of itself, counts to the one that gets more.
    """
    source = _may_be_of(instance, record.source)
    target = _may_be_of(instance, record.target)
    if source and target:
        weights = record.weights
        return "to" if weights is None or weights.target > weights.source else "from"
    return "from" if source else "to" if target else None


def _may_be_of(instance: _Instance, side: Side) -> bool:
    value = instance.value
    if instance.key.artifact.version != side.version:
        return False
    if value.template not in (None, side.digest or side.template.digest):
        return False
    return value.content is None or side.content in (None, value.content)


class ServiceView:
    """What is known of one service, from the messages of the watches of ``slices`` and ``nodes``.

    Args:
        service: which service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._slices: dict[SliceKey, SliceValue] = {}
        self._nodes: dict[NodeId, Registration] = {}
        self._expired: dict[NodeId, float] = {}
        """Nodes whose registration expired, which may yet be heard, and when it did, in seconds on `cdm.clock`."""
        self._record: Rollout | None = None
        self._hearing_since: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the service has a slice, or the record of a rollout."""
        return bool(self._slices) or self._record is not None

    @property
    def without_address(self) -> int:
        """How many instances serve where nobody says the address."""
        return without_address(self._slices, self._nodes)

    def endpoints(self) -> list[Endpoint]:
        """The endpoints, as far as is known."""
        return endpoints(self._slices, self._nodes, self._record)

    def take(self, message: Message) -> bool:
        """Learn from a message about either bucket; returns whether the endpoints may be others, now or later."""
        match getattr(message, "key", None):
            case SliceKey() as key:
                return self._on_slice(key, message)
            case RolloutKey(service):
                return self._on_record(service, message)
            case NodeKey(node):
                return self._on_node(node, message)
        return False

    def _on_slice(self, key: SliceKey, message: Message) -> bool:
        if (key.artifact.group, key.artifact.name) != (self._service.group, self._service.name):
            return False
        match message:
            case ValuePut(value=SliceValue() as value):
                self._slices[key] = value
                return True
        return self._slices.pop(key, None) is not None  # nobody can tell whether what cannot be read serves

    def _on_record(self, service: Service, message: Message) -> bool:
        if service != self._service or isinstance(message, ValueRejected):
            return False
        self._record = message.value if isinstance(message, ValuePut) else None
        return True

    def _on_node(self, node: NodeId, message: Message) -> bool:
        match message:
            case ValuePut(value=Registration() as registration):
                before = self._nodes.get(node)
                self._nodes[node] = registration
                self._expired.pop(node, None)
                return before is None or registration.differs_from(before)
            case ValueRemove(cause=Cause.DELETED):
                return self._forget(node)
            case ValueRemove(at=at) | ValueRejected(at=at) if node in self._nodes:
                self._expired.setdefault(node, at)
                return True
        return False

    def connected(self, now: float) -> None:
        """Nodes can be heard from now on."""
        self._hearing_since = now

    def disconnected(self) -> None:
        """What is known stays as it is: silence means nothing until the connection is back."""
        self._hearing_since = None

    def tick(self, now: float) -> None:
        """Forget the nodes that have not been heard for too long."""
        for node in [node for node in self._expired if self._gone_at(node) <= now]:
            self._forget(node)

    def wake_at(self) -> float | None:
        """When the next node may be gone, in seconds on `cdm.clock`; None: none that is known of."""
        if self._hearing_since is None or not self._expired:
            return None
        return min(map(self._gone_at, self._expired))

    def _gone_at(self, node: NodeId) -> float:
        """When a node whose registration expired is gone, unless it is heard: as managers judge it, or a little later.

        They delete the slices of a node that died, which is told before this.
        """
        if self._hearing_since is None:
            return float("inf")
        ttl = self._nodes[node].ttl or DEFAULT_TTL
        return max(self._hearing_since + ttl, self._expired[node] + EXPIRY_GRACE * ttl)

    def _forget(self, node: NodeId) -> bool:
        self._expired.pop(node, None)
        return self._nodes.pop(node, None) is not None
