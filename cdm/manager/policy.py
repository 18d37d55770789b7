"""The times that decisions depend on."""

from __future__ import annotations

from msgspec import Struct

from cdm.manager.group import SlicePut
from cdm.model.slice import Kind

LONGEST_DEADLINE = 86_400.0
"""Most seconds that are believed of a state in transition that says how long it may take."""


class Policy(Struct, frozen=True):
    """Times that decisions depend on, all in seconds."""

    command_timeout: float = 60.0
    """How long a node may take to answer a command."""
    transition_timeout: float = 120.0
    """How long a slice may stay in a state of transition that does not say its own deadline."""
    retry_base: float = 1.0
    """Wait before the first retry of a failed slice; doubled with each further failure."""
    retry_limit: float = 300.0
    """Longest wait between retries; fatal failures wait this long at once."""
    settle: float = 3.0
    """How long after the first node's registration the leader of a new cluster waits before it places anything."""

    def deadline(self, put: SlicePut) -> float | None:
        """When the slice is stuck, in seconds on the clock of ``put.at``; None for states at rest."""
        kind, told = put.value.state.kind, put.value.deadline
        if kind is Kind.REST:
            return None
        if kind is Kind.COMMAND:
            return put.at + self.command_timeout
        return put.at + (self.transition_timeout if told is None else min(max(told, 0.0), LONGEST_DEADLINE))

    def retry_at(self, put: SlicePut) -> float:
        """When a FAILED slice is to be tried again (capped exponential backoff on the failures before this one)."""
        if put.value.fatal:
            return put.at + self.retry_limit
        exponent = max(0, min(put.value.failures or 0, 32))
        return put.at + min(self.retry_base * 2.0**exponent, self.retry_limit)
