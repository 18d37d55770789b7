"""Bounds what clients can take: how many connections there are, and how long a request may take to come in."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0
"""Seconds within which a new connection has to send its first request's line and headers."""


class Bounded(H11Protocol):
    """A connection of a client, one of so many at most."""

    most = 0

    @classmethod
    def of(cls, most: int) -> type[Bounded]:
        """The class of connections of which there are so many at most; what is above is closed at once."""
        return type(cls.__name__, (cls,), {"most": most})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take it, or close it."""
        super().connection_made(transport)
        self._impatient: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._impatient = self.loop.call_later(PATIENCE, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._impatient is not None:
            self._impatient.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        begun: object = self.cycle
        if begun is None:
            self.transport.abort()
