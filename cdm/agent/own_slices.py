"""The slice keys of a node whose agent is another program, and a log of those that cannot be read."""

from __future__ import annotations

from cdm.dispatch.messages import (
    Connected,
    Disconnected,
    KeyRejected,
    RejectedKeyRemoved,
    ValuePut,
    ValueRejected,
    ValueRemove,
    about,
    about_rejected,
)
from cdm.dispatch.router import receiver
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceValue

log = Log("cdm.slices")

SENT = (*about(SliceKey), *about_rejected(SliceKey), Connected, Disconnected)
"""Every message about a node's own slices."""


class OwnSlices:
    """The slices of this node, as their keys are.

    Args:
        node: this node; other nodes' slices are passed over.
    """

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self.slices: dict[SliceKey, SliceValue] = {}
        self.complete = False
        """Whether all keys are known at present: they are not until the first listing, and without NATS."""

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A command came, or the agent reported a state."""
        if put.key.node == self._node:
            self.slices[put.key] = put.value
            log.debug("slice", slice=str(put.key), state=str(put.value.state), reason=put.value.reason)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """What ran under this key must stop."""
        if self.slices.pop(remove.key, None) is not None:
            log.debug("slice is gone", slice=str(remove.key))

    @receiver
    def on_connection(self, change: Connected | Disconnected) -> None:
        """The mirror is complete, or may fall behind from now on."""
        self.complete = isinstance(change, Connected)


class Unreadable:
    """Logs what cannot be read under a node's slice keys. What was known before stays in force."""

    @receiver
    def on_slice_rejected(self, rejected: ValueRejected[SliceKey, SliceValue]) -> None:
        """A value cannot be read, so nobody can tell what the slice should do."""
        log.warning("unreadable slice", slice=str(rejected.key), reason=rejected.reason)

    @receiver
    def on_key_rejected(self, rejected: KeyRejected[SliceKey]) -> None:
        """A key does not parse: it is reported and left alone."""
        log.warning("unreadable key is left alone", bucket="slices", key=rejected.name, reason=rejected.reason)

    @receiver
    def on_rejected_key_removed(self, removed: RejectedKeyRemoved[SliceKey]) -> None:
        """The key was never used, so there is nothing to undo."""
        log.info("unreadable key is gone", bucket="slices", key=removed.name)
