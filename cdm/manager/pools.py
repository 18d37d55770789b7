"""What proxies are to be told of all services: each one's pool, kept as messages come in. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cdm.dispatch.messages import Message
from cdm.errors import InvalidKey
from cdm.manager.endpoints import Endpoint
from cdm.manager.heard import HeardNodes
from cdm.manager.service_view import Pool, ServiceView
from cdm.model.artifact import NodeId, Service
from cdm.model.keys import BlueprintKey, NodeKey, RolloutKey, SliceKey, StatusKey, decode_artifact
from cdm.model.node import Registration

FINEST = 100
"""The highest whole weight: the finest that all proxies know is 1 to 256."""


class Pools:
    """The pools of all services of which anything is known."""

    def __init__(self) -> None:
        self.changes = 0
        """Grows whenever a pool is another one than before, comes or goes."""
        self.revision = 0
        """Grows whenever anything may be another than before, also of what serves without being sent anything."""
        self._heard = HeardNodes()
        self._views: dict[Service, ServiceView] = {}
        self._pools: dict[Service, Pool] = {}
        self._due: dict[Service, None] = {}
        """Services whose pools may be others by now."""
        self._on_node: dict[NodeId, dict[Service, None]] = {}
        """The services of which a node had slices when it was last looked at, or got some since."""

    @property
    def pools(self) -> Mapping[Service, Pool]:
        """The pools as they were at the last `refresh`, by service in order."""
        return self._pools

    @property
    def nodes(self) -> Mapping[NodeId, Registration]:
        """What the nodes registered that count as there."""
        return self._heard.nodes

    def serving(self) -> Iterator[tuple[Service, Sequence[Endpoint]]]:
        """All instances that serve, by service in order."""
        for service in self._pools:
            yield service, self._views[service].serving()

    def take(self, message: Message) -> None:
        """Learn from a message of any bucket."""
        match getattr(message, "key", None):
            case SliceKey() as key:
                service = key.artifact.service
                self._on_node.setdefault(key.node, {})[service] = None
            case BlueprintKey(artifact):
                service = artifact.service
            case RolloutKey(known):
                service = known
            case StatusKey(name):
                try:
                    service = decode_artifact(name).service
                except InvalidKey:
                    return
            case NodeKey(node):
                if self._heard.take(node, message):
                    self._concerns(node)
                return
            case _:
                return
        view = self._views.get(service)
        if view is None:
            view = self._views[service] = ServiceView(service, self._heard)
        if view.take(message):
            self._due[service] = None

    def connected(self, now: float) -> None:
        """Nodes can be heard from now on."""
        self._heard.connected(now)

    def disconnected(self) -> None:
        """What is known stays as it is."""
        self._heard.disconnected()

    def wake_at(self) -> float | None:
        """When the next node may be gone, in seconds on `cdm.clock`; None: none that is known of."""
        return self._heard.wake_at()

    def refresh(self, now: float) -> None:
        """Have the pools be what follows from all that was taken; ``now`` in seconds on `cdm.clock`."""
        for node in self._heard.tick(now):
            self._concerns(node)
        if not self._due:
            return
        self.revision += 1
        before = dict(self._pools)
        for service in self._due:
            view = self._views[service]
            if view.is_known:
                self._pools[service] = view.pool(now)
            else:
                self._pools.pop(service, None)
                del self._views[service]
        self._due.clear()
        if self._pools != before:
            self._pools = dict(sorted(self._pools.items()))
            self.changes += 1

    def _concerns(self, node: NodeId) -> None:
        """The services that have slices on this node are due."""
        found = {each: None for each in self._on_node.get(node, ()) if self._runs_on(each, node)}
        self._due.update(found)
        if found:
            self._on_node[node] = found
        else:
            self._on_node.pop(node, None)

    def _runs_on(self, service: Service, node: NodeId) -> bool:
        view = self._views.get(service)
        return view is not None and view.runs_on(node)


def whole_weights(found: Sequence[Endpoint]) -> list[int]:
    """Weights as whole numbers from 1 to `FINEST`; where all get the same, 1 each."""
    most = max((each.weight for each in found), default=0.0)
    if all(each.weight == most for each in found):
        return [1] * len(found)
    return [max(round(each.weight / most * FINEST), 1) for each in found]
