"""Asks over HTTP, as a proxy or a browser does."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import anyio.to_thread

from tests.harness.waiting import patience


class WebAnswer(NamedTuple):
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(at: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> WebAnswer:
    """GET a path of a server, or POST a document."""
    connection = http.client.HTTPConnection(at, timeout=patience())
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, data, dict(headers or {}))
        answer = connection.getresponse()
        return WebAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


async def asked(at: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> WebAnswer:
    """The same, in a thread."""
    return await anyio.to_thread.run_sync(ask, at, path, body, headers)
