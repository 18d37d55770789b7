"""What operators want of nodes: cordoned, drained, until when, and why. Pure: time comes with the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from msgspec import Struct

from cdm.dispatch.messages import IntentChanged, Message, ValuePut, ValueRejected, ValueRemove
from cdm.dispatch.router import receiver
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import IntentKey
from cdm.model.node import NO_INTENT, UNREADABLE_INTENT, Intent, Schedule

log = Log("cdm.topology")


class Intended(Struct, frozen=True):
    """What an operator wants of a node, and since when."""

    intent: Intent
    at: float
    """When it was stored, in seconds on this node's clock."""

    @property
    def due(self) -> float:
        """When a drain is to be over, on this node's clock; inf: no time is said, or it is none."""
        return self.at + self.intent.due if self.intent.schedule is Schedule.DRAIN else inf


NOT_INTENDED = Intended(NO_INTENT, -inf)
"""Where nobody wants anything."""


class Intents:
    """Follows the intents in the ``nodes`` bucket.

    Args:
        emit: takes the messages that it sends.
    """

    def __init__(self, emit: Callable[[Message], None]) -> None:
        self._emit = emit
        self._intents: dict[NodeId, Intended] = {}

    def intended(self, node: NodeId) -> Intended:
        """What the operator wants of the node."""
        return self._intents.get(node, NOT_INTENDED)

    @property
    def intents(self) -> Mapping[NodeId, Intended]:
        """What operators want of nodes, but for those of which they want nothing."""
        return self._intents

    @receiver
    def on_intent(self, put: ValuePut[IntentKey, Intent]) -> None:
        """An operator cordoned or drained a node, or made it schedulable again."""
        self._intend(put.key.node, put.value, put.at)

    @receiver
    def on_intent_removed(self, remove: ValueRemove[IntentKey, Intent]) -> None:
        """An operator made a node schedulable again."""
        self._intend(remove.key.node, NO_INTENT, remove.at)

    @receiver
    def on_intent_rejected(self, rejected: ValueRejected[IntentKey, Intent]) -> None:
        """What an operator wants cannot be read: nothing new is placed on the node until it can."""
        log.warning("unreadable intent counts as cordon", key=str(rejected.key), reason=rejected.reason)
        self._intend(rejected.key.node, UNREADABLE_INTENT, rejected.at)

    def _intend(self, node: NodeId, intent: Intent, at: float) -> None:
        known = self._intents.get(node, NOT_INTENDED)
        if intent.schedule is Schedule.NORMAL:
            self._intents.pop(node, None)
        else:
            self._intents[node] = Intended(intent, at)
        if known.intent == intent and (intent.due == inf or known.at == at):
            return
        told = {"deadline": intent.deadline, "force": intent.force or None, "reason": intent.reason or None}
        log.info("node intent changed", node=node, schedule=str(intent.schedule), **told)
        if intent.unknown:
            log.warning("unknown fields of an intent have no effect", node=node, fields=intent.unknown)
        self._emit(IntentChanged(node, intent))
