"""What the manager wants to have written, until the writers take it: the only seam between deciding and writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct

from cdm.manager.plan import Command
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.check import CheckRun
from cdm.model.keys import SliceKey
from cdm.model.last_valid import LastValid
from cdm.model.node import Seen
from cdm.model.record import Rollout
from cdm.model.status import Status

LOGGED_KEYS = 20
"""Most slices that a line in the log names; it counts them all."""
HIGH_WATER = 20_000
"""Queued commands above which no further decisions are made, so that a slow store slows the manager down."""


class Order(Struct, frozen=True):
    """All commands of one decision on one artifact, or on the versions of services; they are acknowledged together."""

    artifact: Artifact
    term: int
    commands: Sequence[Command]
    also: Sequence[Artifact] = ()
    """Other artifacts that it is about."""
    records: Mapping[Service, Rollout | None] = {}
    """Records of rollouts, in the same batch as the first of the commands, and before them. None deletes."""
    copies: Mapping[Artifact, LastValid | None] = {}
    """Copies of blueprints, together with the records. None deletes."""

    @property
    def size(self) -> int:
        """How many messages it takes."""
        return len(self.commands) + len(self.records) + len(self.copies)


class Outbox:
    """Orders and statuses waiting to be written.

    Args:
        on_orders: called when there are orders.
        on_statuses: called when there are statuses.
        on_seen: called when there is something to remember of nodes.
        on_checks: called when other checks are to be made than before.
    """

    def __init__(
        self,
        on_orders: Callable[[], None],
        on_statuses: Callable[[], None],
        on_seen: Callable[[], None] = lambda: None,
        on_checks: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_orders = on_orders
        self._on_statuses = on_statuses
        self._on_seen = on_seen
        self._on_checks = on_checks
        self.orders: deque[Order] = deque()
        self.statuses: dict[str, Status | None] = {}
        """By blueprint key; None deletes. A later one replaces an earlier one that is still waiting."""
        self.seen: dict[NodeId, Seen] = {}
        """What is to be remembered of nodes; a later one replaces an earlier one that is still waiting."""
        self.checks: dict[Service, CheckRun] = {}
        """The checks that are made, again and again, for as long as they are here; what comes of them is routed."""
        self.queued = 0
        """How many commands the orders hold."""

    @property
    def full(self) -> bool:
        """Whether enough commands wait to be written for now."""
        return self.queued >= HIGH_WATER

    def order(self, order: Order) -> None:
        """Queue an order."""
        self.orders.append(order)
        self.queued += order.size
        self._on_orders()

    def take_order(self) -> Order | None:
        """The next order, or None where there is none."""
        if not self.orders:
            return None
        order = self.orders.popleft()
        self.queued -= order.size
        return order

    def status(self, name: str, status: Status | None) -> None:
        """Queue a status."""
        self.statuses[name] = status
        self._on_statuses()

    def take_statuses(self, limit: int) -> dict[str, Status | None]:
        """Up to ``limit`` statuses, the oldest first."""
        oldest = dict(islice(self.statuses.items(), limit))
        for name in oldest:
            del self.statuses[name]
        return oldest

    def remember(self, node: NodeId, seen: Seen) -> None:
        """Queue what is to be remembered of a node."""
        self.seen[node] = seen
        self._on_seen()

    def take_seen(self, limit: int) -> dict[NodeId, Seen]:
        """What is to be remembered of up to ``limit`` nodes, the oldest first."""
        oldest = dict(islice(self.seen.items(), limit))
        for node in oldest:
            del self.seen[node]
        return oldest

    def check(self, service: Service, run: CheckRun | None) -> None:
        """Have these checks made for a service from now on, instead of those before; None: no more."""
        before = self.checks.pop(service, None)
        if run is not None:
            self.checks[service] = run
        if before is not None if run is None else not run.asks_as(before):
            self._on_checks()

    def clear(self) -> None:
        """Drop everything: the leadership that wanted it is over."""
        self.orders.clear()
        self.statuses.clear()
        self.seen.clear()
        self.queued = 0
        self.checks.clear()
        self._on_checks()


def log_order(order: Order, say: Callable[..., Any]) -> None:
    """Log what an order is about, like commands together."""
    for service, record in order.records.items():
        phase = str(record.phase) if record is not None else "over"
        reason = (record.reason or None) if record is not None else None
        target = record.target.version if record is not None else None
        say("rollout", service=str(service), phase=phase, to=target, step=record and record.step, reason=reason)
    alike: dict[tuple[Artifact, str, str], list[SliceKey]] = {}
    for command in order.commands:
        alike.setdefault((command.key.artifact, command.state or "delete", command.reason), []).append(command.key)
    for (artifact, state, reason), keys in alike.items():
        shown = [str(key).removeprefix("slices/") for key in keys[:LOGGED_KEYS]]
        say(state, artifact=str(artifact), count=len(keys), reason=reason, slices=shown)
