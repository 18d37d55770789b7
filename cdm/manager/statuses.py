"""What was told of each blueprint, and what is yet to be stored of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cdm.log import Log
from cdm.manager.cluster import Cluster
from cdm.manager.outbox import Outbox
from cdm.model.status import Condition, Status

log = Log("cdm.manager")

TROUBLE = frozenset({Condition.DEGRADED, Condition.UNSCHEDULABLE, Condition.INVALID, Condition.REVERTED})
"""Conditions that somebody should look at."""


class Statuses:
    """Asks for statuses to be written, each only where it says something else than is stored.

    Args:
        cluster: has the mirror of ``status``.
        outbox: takes them.
        level: at which level to log one more line.
    """

    def __init__(self, cluster: Cluster, outbox: Outbox, level: Callable[[], str]) -> None:
        self._cluster = cluster
        self._outbox = outbox
        self._level = level
        self._asked: dict[str, Status | None] = {}
        """Statuses asked to be written that the mirror does not show yet, by blueprint key."""
        self._overdue: set[str] = set()
        """Those of them that were asked for before the latest round."""

    @property
    def pending(self) -> bool:
        """Whether the mirror has yet to show what was asked for."""
        return bool(self._asked)

    def shown(self, name: str, status: Status | None) -> bool:
        """The mirror shows the status, or shows it no more; returns whether that was asked for."""
        if name not in self._asked:
            return False
        if self._asked[name] == status:
            del self._asked[name]
        return True

    def begin_round(self) -> None:
        """One that the mirror has not shown for a whole round was written over before it could."""
        for name in self._overdue:
            self._asked.pop(name, None)
        self._overdue = set(self._asked)

    def forget(self, names: Iterable[str]) -> None:
        """Remove the statuses of these blueprints."""
        for name in names:
            self.tell(name, None)

    def tell(self, name: str, status: Status | None) -> None:
        """Have a blueprint's status written; None: removed."""
        known = self._asked[name] if name in self._asked else self._cluster.statuses.get(name)
        if (status is None and known is None) or (status is not None and status.same_as(known)):
            return
        self._asked[name] = status
        if status is not None and status.condition is not (known.condition if known else None):
            level = self._level()
            if level == "info" and status.condition in TROUBLE:
                level = "warning"
            say = getattr(log, level)
            say("status", blueprint=name, condition=str(status.condition), reason=status.reason or None)
        self._outbox.status(name, status)
