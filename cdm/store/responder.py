"""Answering on a core subject for as long as one lives: silence there is how others learn of a death at once."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from cdm.store.connection import Connection


class Identity(Struct, frozen=True):
    """What is answered: which process this is."""

    node: str = ""
    incarnation: str = ""


class Voice:
    """A subscription that answers every request with this process's identity. Made by `raised`."""

    def __init__(self, connection: Connection, subscription: Subscription) -> None:
        self._connection = connection
        self._subscription = subscription

    @classmethod
    async def raised(cls, connection: Connection, subject: str, identity: Identity) -> Voice:
        """Begin to answer; when this returns, the server knows.

        Raises:
            AccessDenied: it does not want to hear of it.
        """
        answer = msgspec.json.encode(identity)

        async def say(message: Msg) -> None:
            if connection.may_answer(message.reply):
                await connection.publish(message.reply, answer)

        voice = cls(connection, await connection.subscribe(subject, say))
        try:
            await connection.flush()
            connection.check_subscribed(subject)
        except BaseException:
            await voice.drop()
            raise
        return voice

    async def drop(self) -> None:
        """Be silent from now on; never raises."""
        await self._connection.unsubscribe(self._subscription)
