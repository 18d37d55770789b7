"""One service as whoever sends it requests sees it: its endpoints, or the last good ones. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from cdm.dispatch.messages import Message, ValuePut, ValueRejected
from cdm.manager.endpoints import Endpoint, endpoints, without_address
from cdm.manager.heard import HeardNodes
from cdm.model.artifact import NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, NodeKey, RolloutKey, SliceKey, StatusKey, encode_artifact, encode_service
from cdm.model.record import Rollout
from cdm.model.slice import SliceValue
from cdm.model.status import Condition, Status

REPLACED = (Condition.SUPERSEDED, Condition.REVERTED)
"""What a blueprint's status says where another version serves in its place."""


class Pool(Struct, frozen=True):
    """What a proxy is to send the requests for a service to."""

    endpoints: tuple[Endpoint, ...] = ()
    """Empty where nothing is wanted, and where there never was anything."""
    since: float | None = None
    """Since when there is none of these any more, in seconds on `cdm.clock`; None: they are there."""
    wanted: bool = False
    """Whether instances are wanted."""


class ServiceView:
    """What is known of one service, from the messages of watches: ``slices`` and ``nodes``, and for `pool` all others.

    Args:
        service: which service.
        heard: the nodes, where several views share what is known of them; they are told by whoever made it.
    """

    def __init__(self, service: Service, heard: HeardNodes | None = None) -> None:
        self._service = service
        self._path = f"{encode_service(service)}/"
        self._heard = heard or HeardNodes()
        self._slices: dict[SliceKey, SliceValue] = {}
        self._record: Rollout | None = None
        self._blueprints: dict[str, Blueprint | None] = {}
        """By the blueprint's key; None: it cannot be read, and what is in force is not known."""
        self._replaced: set[str] = set()
        """Keys of blueprints in whose place another version serves."""
        self._good: tuple[Endpoint, ...] = ()
        self._empty_since: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the service has a slice, or the record of a rollout, or a blueprint."""
        return bool(self._slices) or self._record is not None or bool(self._blueprints)

    @property
    def without_address(self) -> int:
        """How many instances serve where nobody says the address."""
        return without_address(self._slices, self._heard.nodes)

    @property
    def wanted(self) -> bool:
        """Whether any instance is wanted, as far as is known: where a blueprint cannot be read, some are."""
        return any(
            blueprint is None or blueprint.wants_any
            for key, blueprint in self._blueprints.items()
            if key not in self._replaced
        )

    def runs_on(self, node: NodeId) -> bool:
        """Whether it has slices there."""
        return any(key.node == node for key in self._slices)

    def endpoints(self) -> list[Endpoint]:
        """The endpoints, as far as is known."""
        return endpoints(self._slices, self._heard.nodes, self._record)

    def serving(self) -> list[Endpoint]:
        """All instances that serve, also those that a rollout sends nothing yet, or nothing any more."""
        return endpoints(self._slices, self._heard.nodes, None)

    def pool(self, now: float) -> Pool:
        """What proxies are to be told: the endpoints, or the last ones, unless no instance is wanted.

        Args:
            now: in seconds on `cdm.clock`.
        """
        wanted = self.wanted
        if found := tuple(self.endpoints()):
            self._good, self._empty_since = found, None
        elif not wanted:
            self._good, self._empty_since = (), None
        elif self._good and self._empty_since is None:
            self._empty_since = now
        return Pool(self._good, self._empty_since, wanted)

    def take(self, message: Message) -> bool:
        """Learn from a message about any bucket; returns whether the endpoints may be others, now or later."""
        match getattr(message, "key", None):
            case SliceKey() as key:
                return self._on_slice(key, message)
            case RolloutKey(service):
                return self._on_record(service, message)
            case NodeKey(node):
                return self._heard.take(node, message)
            case BlueprintKey(artifact):
                return artifact.service == self._service and self._on_blueprint(encode_artifact(artifact), message)
            case StatusKey(name):
                return name.startswith(self._path) and self._on_status(name, message)
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

    def _on_blueprint(self, key: str, message: Message) -> bool:
        match message:
            case ValuePut(value=Blueprint() as blueprint):
                self._blueprints[key] = blueprint
            case ValueRejected():
                self._blueprints.setdefault(key, None)  # the last valid one stays in force
            case _:
                self._blueprints.pop(key, None)
        return True

    def _on_status(self, key: str, message: Message) -> bool:
        value: Any = message.value if isinstance(message, ValuePut) else None
        replaced = isinstance(value, Status) and value.condition in REPLACED
        if replaced == (key in self._replaced):
            return False
        (self._replaced.add if replaced else self._replaced.discard)(key)
        return True

    def connected(self, now: float) -> None:
        """Nodes can be heard from now on."""
        self._heard.connected(now)

    def disconnected(self) -> None:
        """What is known stays as it is: silence means nothing until the connection is back."""
        self._heard.disconnected()

    def tick(self, now: float) -> None:
        """Forget the nodes that have not been heard for too long."""
        self._heard.tick(now)

    def wake_at(self) -> float | None:
        """When the next node may be gone, in seconds on `cdm.clock`; None: none that is known of."""
        return self._heard.wake_at()
