"""What an account of NATS is, as far as cdm needs one: users, and what goes in and out."""

from __future__ import annotations

from msgspec import Struct

SUBSCRIPTIONS = 200
"""Subscriptions that a connection of a node or an operator may have; cdm needs a dozen."""


class Grant(Struct, frozen=True):
    """Subjects that may be used, and what for."""

    why: str
    subjects: tuple[str, ...]


class User(Struct, frozen=True):
    """Somebody who connects."""

    name: str
    why: str
    """What this user is for, in whole sentences."""
    publish: tuple[Grant, ...]
    subscribe: tuple[str, ...]
    responses: str = ""
    """Why this user may answer where it is asked, up to `MOST_RESPONSES` times within `RESPONSE_SECONDS`; empty: it
    may not."""


class Import(Struct, frozen=True):
    """What an account takes from another one.

    A service: messages to this subject go to the other account, and the answers come back to whoever sent them. A
    stream: what is published there on the subject is heard here. No other subject of that account is within reach.
    """

    account: str
    subject: str
    stream: bool = False
    to: str = ""
    """Where it is found here; empty: under the same subject."""


class Export(Struct, frozen=True):
    """What an account gives to others."""

    accounts: tuple[str, ...]
    subject: str
    stream: bool = False
    many: bool = False
    """Of a service: it answers more than once."""


class AccountLimits(Struct, frozen=True):
    """The most that the connections of an account may do."""

    connections: int
    payload: int
    """Bytes of a message."""
    subscriptions: int = SUBSCRIPTIONS
    """Of each connection."""


class Account(Struct, frozen=True):
    """One account: its users hear nothing of others, and reach nothing of theirs, but what is imported."""

    name: str
    why: str
    users: tuple[User, ...]
    exports: tuple[Export, ...] = ()
    imports: tuple[Import, ...] = ()
    limits: AccountLimits | None = None
    consumers: int | None = None
    """Consumers that there may be at a time; None: the account has no JetStream of its own."""


MOST_RESPONSES = 32
RESPONSE_SECONDS = 10
