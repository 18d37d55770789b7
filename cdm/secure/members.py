"""Who there is in NATS, and how accounts, inboxes, subjects and streams are called."""

from __future__ import annotations

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.event import EVENTS
from cdm.model.keys import LAYOUTS, encode_node

HUB = "CDM"
"""The account of the buckets."""
OPERATORS = "OPERATOR"
"""The account of those who use the cluster."""
READERS = "READERS"
"""The account of those who only read."""
COPIES = "COPIES"
"""The account of the copies that operators and readers read; it has no users."""
ARTIFACTS = "artifacts"
"""The object store."""


class Members(Struct, frozen=True):
    """Who there is.

    Args:
        nodes: nodes that only run slices.
        managers: nodes that manage, and may run slices, too.
        prefix: of the names of subjects and buckets.
        readers: users that only read, e.g. routers; named like nodes.
    """

    nodes: tuple[NodeId, ...]
    managers: tuple[NodeId, ...]
    prefix: str = ""
    readers: tuple[NodeId, ...] = ()

    def core(self, *tokens: str) -> str:
        """A core subject."""
        return ".".join((self.prefix, *tokens) if self.prefix else tokens)

    def bucket(self, name: str) -> str:
        """A bucket's full name."""
        return f"{self.prefix}_{name}" if self.prefix else name

    def key(self, bucket: str, keys: str) -> str:
        """The subject of keys."""
        return f"$KV.{self.bucket(bucket)}.{keys}"

    def api(self, call: str, *names: str, rest: str = "") -> tuple[str, ...]:
        """A call of JetStream's API for the streams of these buckets."""
        return tuple(f"$JS.API.{call}.{self.stream(name)}{rest}" for name in names)

    def stream(self, name: str) -> str:
        """The stream of a bucket, or of events."""
        if name == EVENTS:
            return self.bucket(name)
        return f"{'OBJ' if name == ARTIFACTS else 'KV'}_{self.bucket(name)}"


BUCKETS = tuple(layout.name for layout in LAYOUTS)


def account_of(node: NodeId) -> str:
    """The account of a node that only runs slices."""
    return f"NODE_{encode_node(node)}"


def inbox_of(user: str) -> str:
    """The inbox prefix of a user: nobody hears another's answers."""
    return f"_INBOX_{user}"
