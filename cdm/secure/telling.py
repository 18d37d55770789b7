"""Tells servers of accounts: each JWT goes to one server, which keeps it and tells the others of its cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence

import anyio

from cdm import clock
from cdm.errors import AccessDenied, RequestRefused
from cdm.secure.jwts import CLAIMS_UPDATE
from cdm.store.access import Access
from cdm.store.connection import connect

PATIENCE = 10.0
"""Seconds that all servers of a cluster may take to hear of what one was told."""


async def tell(access: Access, tokens: Sequence[str], *, patient: bool = False) -> int:
    """Tell of accounts; returns of how many.

    Args:
        access: who the user of the servers' own account is.
        tokens: the accounts' JWTs.
        patient: whether a server may not know this user yet.

    Raises:
        RequestRefused: a server does not take one.
        StoreError: there is no connection, or no answer.
    """
    until = clock.now() + PATIENCE
    while True:
        try:
            return await _tell(access, tokens)
        except AccessDenied:
            if not patient or clock.now() > until:
                raise
        await anyio.sleep(0.5)


async def _tell(access: Access, tokens: Sequence[str]) -> int:
    told = 0
    async with connect(access, name="cdm secure") as connection:
        for token in tokens:
            answer = json.loads(await connection.request(CLAIMS_UPDATE, token.encode()))
            if error := answer.get("error"):
                raise RequestRefused(f"the server refused an account: {error.get('description', error)}")
            told += 1
    return told
