"""How a node is shown by ``nats micro``: which one it is, at which subjects it answers, and what it has done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cdm.model.keys import encode_node
from cdm.node.part import Ground, Part
from cdm.store.micro import EndpointTally, MicroService, ServiceIdentity
from cdm.version import VERSION

SERVICE = "cdm"
"""The name of all nodes of a cluster, behind the prefix where there is one."""


class ShownNode:
    """A node as a service.

    Args:
        ground: the node's.
        parts: tells the node's, which may be others at another time.
        asked: who asked whether the node is there.
        routed: how many messages were routed.
    """

    def __init__(
        self, ground: Ground, parts: Callable[[], Sequence[Part]], asked: EndpointTally, routed: Callable[[], int]
    ) -> None:
        settings = ground.settings
        identity = ServiceIdentity(
            ground.connection.bucket(SERVICE),
            encode_node(settings.node),
            VERSION,
            "a node of a cluster that cdm manages: cdm status",
            {
                "node": settings.node,
                "role": settings.role,
                "runtime": settings.runtime,
                "incarnation": ground.incarnation,
            },
        )
        self._parts = parts
        self._routed = routed
        about = "messages that were routed, most of them updates of buckets; nobody answers there"
        self._messages = EndpointTally("messages", ground.buckets["slices"].all_subjects, about=about)
        self._asked = asked
        self.run = MicroService(ground.connection, identity, self._counted, self._figures).run

    def _counted(self) -> Sequence[EndpointTally]:
        self._messages.requests = self._routed()
        return (self._asked, *(tally for part in self._parts() for tally in part.tallies), self._messages)

    def _figures(self) -> dict[str, object]:
        return {name: figure for part in self._parts() for name, figure in part.figures.items()}
