"""Long answers in pieces: of a client that reads slowly, or not at all, no more than a piece lies in memory."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 64 * 1024
"""Bytes that are handed over at a time; the next ones once these are mostly gone."""


class Whole(Response):
    """An answer whose bytes are shared by all who get it."""

    def __init__(self, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=dict(headers), media_type=kind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        view = memoryview(bytes(self.body))
        for start in range(0, max(len(view), 1), PIECE):
            end = start + PIECE
            await send({"type": "http.response.body", "body": bytes(view[start:end]), "more_body": end < len(view)})
