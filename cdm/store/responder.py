"""Answering requests on a core subject for as long as a process lives.

When the process dies the server tells whoever asks at once that nobody responds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.model.problems import UNREADABLE
from cdm.store.connection import Connection
from cdm.store.library import Subscription
from cdm.store.listening import subscribed
from cdm.store.micro import EndpointTally


class Identity(Struct, frozen=True, omit_defaults=True):
    """The answer: which process this is."""

    node: str = ""
    incarnation: str = ""
    tells: bool = False
    """Of a leader: whether NATS tells when its connection ends (`cdm.store.beacon`)."""


def identity_of(raw: bytes) -> Identity:
    """Which process a registration or an answer is of; empty where it does not say."""
    try:
        return msgspec.json.decode(raw, type=Identity)
    except UNREADABLE:
        return Identity()


class Responder:
    """A subscription that answers every request with this process's identity. Made by `start`.

    It leaves a request alone that consists of its own incarnation: so a process asks whether another one answers.
    """

    def __init__(self, connection: Connection, subscription: Subscription) -> None:
        self._connection = connection
        self._subscription = subscription

    @classmethod
    async def start(
        cls,
        connection: Connection,
        subject: str,
        identity: Identity,
        tally: EndpointTally | None = None,
        tells: Callable[[], bool] = lambda: False,
    ) -> Responder:
        """Begin to answer; when this returns, the server has the subscription. What was asked is counted in ``tally``;
        ``tells`` is asked each time.

        Errors are those of `subscribed`.
        """
        answers = {tells: msgspec.json.encode(replace(identity, tells=tells)) for tells in (False, True)}
        own = identity.incarnation.encode()

        # A leader is asked ten times a second: it answers without a queue and a task for it.
        def respond(_subject: bytes, reply: bytes, asked: bytes, _block: bytes) -> None:
            to = reply.decode("utf-8", "backslashreplace")
            if connection.may_answer(to) and asked != own:
                with tally.timed() if tally else nullcontext():
                    connection.answer(to, answers[tells()])

        subscribe = partial(connection.subscribe_directly, subject, respond)
        return cls(connection, await subscribed(connection, subject, subscribe))

    def can_wait(self) -> None:
        """Whoever asks can wait for a moment (`cdm.store.gathering`)."""
        self._connection.can_wait(self._subscription)

    async def stop(self) -> None:
        """Answer no more; never raises."""
        await self._connection.unsubscribe(self._subscription)
