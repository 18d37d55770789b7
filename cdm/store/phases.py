"""The phases of a connection.

::

    Opening ──> LinkUp <──> Down
       │         │        │
       └─────────┴────────┴──> Closed

A connection is `Opening` until it is up for the first time. Then it goes `Down` whenever it is lost, and `LinkUp` again
when the client has found a server. `Closed` is the end: its owner closed it, or the client gave up.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Collection

from msgspec import Struct

from cdm.errors import AccessDenied, StoreError, Unreachable
from cdm.log import Log
from cdm.store.access import Access
from cdm.store.trust import untrusted

log = Log("cdm.nats")


class Opening:
    """The first connection is being sought.

    Args:
        access: where, and who one is there.
        timeout: seconds for which it is sought, and whoever waits hears of problems with the error; None: for ever.
    """

    def __init__(self, access: Access, timeout: float | None) -> None:
        self._access = access
        self.timeout = timeout
        self.hopeless: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        """Why it is of no use to go on."""
        self._hopeless_at: dict[str, StoreError] = {}
        """By server: it refused the credentials, or its certificate was not trusted."""

    def failed(self, error: Exception, problem: str, server: str, named: Collection[str]) -> None:
        """An attempt at a server failed.

        Args:
            error: as the client tells it.
            problem: the same in words.
            server: its address, without secrets.
            named: those of all servers that are to be tried, written likewise; others may have told of more.
        """
        # A timeout refuses nothing: who stood still for some seconds told its credentials too late.
        if re.search("authorization|authentication(?! timeout)", problem, re.IGNORECASE):
            if self.timeout is None and server not in self._hopeless_at and len(named) > 1:
                log.warning("a NATS server refused the credentials", server=server, problem=problem)
            self._hopeless_at[server] = self._refused(server, problem)
        elif isinstance(error, ssl.SSLCertVerificationError) and self.timeout is not None:
            self._hopeless_at[server] = untrusted(server, error)
        else:
            return
        # Another server may know the credentials already, as they reach one after another, or have a certificate to
        # trust: only when there is none left it is of no use to go on.
        if self._hopeless_at.keys() >= set(named):
            self._give_up(self._hopeless_at[server])

    def too_late(self, problem: str) -> StoreError:
        """What to say when the time is over; ``problem`` is the last one."""
        return next(
            reversed(self._hopeless_at.values()),
            Unreachable(
                f"no NATS server answered at {self._access.shown} within {self.timeout or 0:g} s ({problem}); "
                "is it running, and is the address right? (--server, NATS_URL)"
            ),
        )

    def _refused(self, server: str, problem: str) -> AccessDenied:
        """What to say of a server that refused the credentials, and of those that did before it."""
        before = (each for each, error in self._hopeless_at.items() if isinstance(error, AccessDenied))
        return AccessDenied(
            f"{', '.join(dict.fromkeys((*before, server)))} refused the credentials ({problem}; {self._access.who}); "
            "see --context, --creds, --nkey, --user"
        )

    def _give_up(self, error: StoreError) -> None:
        if not self.hopeless.done():
            self.hopeless.set_result(error)


class LinkUp(Struct, frozen=True, eq=False):
    """There is a connection."""

    since: float
    """When it was made, in seconds on this node's clock."""
    over: asyncio.Future[None]
    """Done when it is lost or closed."""


class Down:
    """The connection was lost; the client looks for another."""


class Closed:
    """There will be no connection any more."""


LinkPhase = Opening | LinkUp | Down | Closed
