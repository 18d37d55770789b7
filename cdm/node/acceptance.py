"""Whether the bucket of nodes accepts heartbeats."""

from __future__ import annotations

from collections.abc import Callable

from cdm import clock
from cdm.log import Log

log = Log("cdm.registration")


class Acceptance:
    """Whether the bucket accepts heartbeats. Where it does not, others cannot be heard either.

    Args:
        patience: seconds without an accepted heartbeat after which it counts as accepting none.
        on_change: told when that changes.
    """

    def __init__(self, patience: float, on_change: Callable[[bool], None] | None) -> None:
        self._patience = patience
        self._on_change = on_change
        self._accepting = True
        self._last = clock.now()

    def __bool__(self) -> bool:
        return self._accepting

    def confirm(self) -> None:
        """A heartbeat was accepted."""
        self._last = clock.now()
        self._set(accepting=True)

    def judge(self) -> None:
        """A heartbeat was not accepted, or nobody knows."""
        if self._accepting and clock.now() - self._last >= self._patience:
            log.warning("heartbeats are not being accepted; evictions paused")
            self._set(accepting=False)

    def _set(self, *, accepting: bool) -> None:
        if accepting is not self._accepting:
            self._accepting = accepting
            if self._on_change:
                self._on_change(accepting)
