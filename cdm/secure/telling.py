"""Tells servers of accounts: each JWT goes to one server, which keeps it and tells the others of its cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cdm.errors import RequestRefused
from cdm.secure.jwts import CLAIMS_UPDATE
from cdm.store.access import Access
from cdm.store.connection import connect


async def tell(access: Access, tokens: Iterable[str]) -> int:
    """Tell of accounts; returns of how many.

    Args:
        access: who the user of the servers' own account is.
        tokens: the accounts' JWTs.

    Raises:
        RequestRefused: a server does not take one.
        StoreError: there is no connection, or no answer.
    """
    told = 0
    async with connect(access, name="cdm secure") as connection:
        for token in tokens:
            answer = json.loads(await connection.request(CLAIMS_UPDATE, token.encode()))
            if error := answer.get("error"):
                raise RequestRefused(f"the server refused an account: {error.get('description', error)}")
            told += 1
    return told
