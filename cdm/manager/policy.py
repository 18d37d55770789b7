"""The times that decisions depend on."""

from __future__ import annotations

from msgspec import Struct

from cdm.manager.cluster import SlicePut
from cdm.model.slice import Kind


class Policy(Struct, frozen=True):
    """Times that decisions depend on, all in seconds."""

    command_timeout: float = 60.0
    """How long a node may take to answer a command."""
    transition_timeout: float = 120.0
    """How long a slice may stay in a state of transition."""
    retry_base: float = 1.0
    """Wait before the first retry of a failed slice; doubled with each further failure."""
    retry_limit: float = 300.0
    """Longest wait between retries; fatal failures wait this long at once."""

    def deadline(self, put: SlicePut) -> float | None:
        """When the slice is stuck, in seconds on the clock of ``put.at``; None for states at rest."""
        kind = put.value.state.kind
        if kind is Kind.REST:
            return None
        return put.at + (self.command_timeout if kind is Kind.COMMAND else self.transition_timeout)

    def retry_at(self, put: SlicePut) -> float:
        """When a FAILED slice is to be tried again (capped exponential backoff on the failures before this one)."""
        if put.value.fatal:
            return put.at + self.retry_limit
        exponent = max(0, min(put.value.failures or 0, 32))
        return put.at + min(self.retry_base * 2.0**exponent, self.retry_limit)
