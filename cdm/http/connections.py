"""Bounds what clients can take: how many connections there are, and how long one may hold its own up."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0
"""Seconds within which the line and the headers of a connection's first request have to come in, and those of each next
one once the time for which an idle connection is kept is over."""
READING_PATIENCE = 60.0
"""Seconds for which a client may take nothing of what waits to be sent to it."""


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
        self._asking: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._asking = self.loop.call_later(PATIENCE, self._has_asked)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        for each in (self._asking, self._reading):
            if each is not None:
                each.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        if self._asking is not None:
            self._asking.cancel()
        self._asking = self.loop.call_later(self.timeout_keep_alive + PATIENCE, self._has_asked)

    def pause_writing(self) -> None:
        """The client reads too slowly for what waits."""
        super().pause_writing()
        self._reading = self.loop.call_later(READING_PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def _has_asked(self) -> None:
        cycle: object = self.cycle
        if cycle is None or self.cycle.response_complete:
            self.transport.abort()
