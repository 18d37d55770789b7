"""Where the instances of one service can be sent requests, and how many of them each is to get. Pure.

An instance is an endpoint while it is ACTIVE, its slice tells a port, and its node is registered; one that is told to
go (UNLOAD, DEACTIVATE) is none from that moment on. All get the same; while a rollout goes on, a side to which its
record gives a weight of 0 gets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.host import is_host, with_port
from cdm.model.keys import SliceKey
from cdm.model.node import Registration
from cdm.model.record import Rollout, Side
from cdm.model.slice import SliceState, SliceValue

PLACES = 4
"""Decimal places of weights: of 10,000 instances each still has one that is not 0."""


class Endpoint(Struct, frozen=True):
    """An instance that may be sent requests."""

    address: str
    port: int
    weight: float
    """Per cent of the service's requests, rounded to `PLACES` decimal places; all weights come to 100."""
    node: NodeId
    version: str

    @property
    def authority(self) -> str:
        """``address:port``, with brackets around an IPv6 address."""
        return with_port(self.address, self.port)


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
    """Those that serve on a port, on registered nodes; None for one whose address nobody says, or that is none.

    What a node says of itself ends up in configurations of proxies: only what is an address may.
    """
    for key, value in slices.items():
        node = nodes.get(key.node)
        if node is not None and value.state is SliceState.ACTIVE and value.port:
            address = value.address or node.address
            yield _Instance(address, value.port, key, value) if address and is_host(address) else None


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
