"""Subscriptions that the server is known to have; one that it may not have is taken back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from cdm.errors import AccessDenied, StoreError
from cdm.log import Log
from cdm.store.connection import Connection
from cdm.store.library import Subscription

log = Log("cdm.nats")

PAUSE = 1.0
"""Seconds after which a subscription that failed is tried again."""

Subscribe = Callable[[], Awaitable[Subscription]]


async def subscribed(connection: Connection, subject: str, subscribe: Subscribe) -> Subscription:
    """Subscribe; when this returns, the server has it.

    Raises:
        AccessDenied: the server refused it.
        Unreachable: there is no connection.
        Uncertain: the server says nothing.
    """
    subscription = await subscribe()
    try:
        await connection.flush()
        connection.check_subscribed(subject)
    except BaseException:
        # It would be made again, or be refused, after each reconnect.
        with anyio.CancelScope(shield=True):
            await connection.unsubscribe(subscription)
        raise
    return subscription


async def subscribed_in_time(connection: Connection, subject: str, subscribe: Subscribe) -> Subscription:
    """The same, tried until the server answers. Raises `AccessDenied`."""
    while True:  # stamina was tried and left, see `cdm.store.objects`
        try:
            return await subscribed(connection, subject, subscribe)
        except AccessDenied:
            raise
        except StoreError as error:
            log.debug("not listening yet", subject=subject, reason=str(error))
        await anyio.sleep(PAUSE)
