"""The link to a NATS server: sought, lost, found again, closed.

The client reconnects for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

from cdm import clock
from cdm.errors import Unreachable
from cdm.log import Lasting, Log, Ration
from cdm.store.access import Access, credentials_of, without_secrets
from cdm.store.client import Client
from cdm.store.library import nats
from cdm.store.permissions import Permissions
from cdm.store.phases import Closed, Down, LinkPhase, LinkUp, Opening
from cdm.store.tasks import ended, finish
from cdm.store.translating import translated
from cdm.store.trust import tls_of

log = Log("cdm.nats")

PING_INTERVAL = 2
"""Seconds of silence after which the server is pinged. As many more without a word end the connection: it hangs."""
RECONNECT_PAUSE = 0.2
"""Seconds between two attempts at the same server."""
CLOSE_TIMEOUT = 2.0
PROBLEM_INTERVAL = 5.0
"""Seconds between two log lines about problems with the connection, and to the second one while there is none."""


class Link:
    """A link that lasts until it is closed. Everything is called on the event loop.

    Args:
        access: where, and who one is there.
        timeout: seconds within which a server has to be found; None: it is sought until it is found.
    """

    def __init__(self, access: Access, timeout: float | None) -> None:
        self.access = access
        self._opening = Opening(access, timeout)
        self._phase: LinkPhase = self._opening
        self._permissions = Permissions(access)
        self._client = Client(self._on_denied)
        self._attempt: asyncio.Task[None] | None = None
        """Seeks the first connection, until there is one or `close` is called."""
        self._listeners: list[Callable[[bool], None]] = []
        self._left_to_do: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self._problem = "no answer"
        """The last one that the client told of."""
        self._problems = Ration(1, PROBLEM_INTERVAL)
        self._apart = Lasting(log, "connected to NATS", again=PROBLEM_INTERVAL)

    async def open(self, name: str) -> None:
        """Connect, and show this name to the server. `close` is to follow, also where this raises.

        Raises:
            Unreachable: no server answered in time.
            Untrusted: none of the servers that answered has a certificate to trust.
            AccessDenied: every server refused the credentials, or all that answered in time.
        """
        opening = self._opening
        attempt = self._attempt = asyncio.create_task(self._connect(name))
        try:
            async with asyncio.timeout(opening.timeout):
                await asyncio.wait((attempt, opening.hopeless), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise opening.too_late(self._problem) from None
        if opening.hopeless.done():
            raise opening.hopeless.result()
        await attempt
        self._apart.over(clock.now(), servers=self.access.shown)
        self._apart = Lasting(log, "connected to NATS again", again=PROBLEM_INTERVAL)
        self._client.keep_order()
        self._enter(self._now_up() if self._client.is_connected else Down())

    async def _connect(self, name: str) -> None:
        access = self.access
        self._client.insist_on_tls = access.encrypted
        self._client.check_credentials = partial(credentials_of, access)
        tls, credentials = tls_of(access), credentials_of(access)
        with translated():
            await self._client.connect(
                servers=list(access.servers),
                name=name,
                tls=tls,
                tls_handshake_first=access.tls_first,
                **credentials,
                inbox_prefix=access.inbox_prefix,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_PAUSE,  # type: ignore[arg-type]  # seconds; fractions are fine
                ping_interval=PING_INTERVAL,
                max_outstanding_pings=1,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )

    async def close(self) -> None:
        """Close the connection; never raises."""
        # Also when cancelled: a client left half open goes on answering for a process that has left.
        await finish(self._close(), CLOSE_TIMEOUT)

    async def _close(self) -> None:
        if self._left_to_do:
            await asyncio.wait(self._left_to_do, timeout=CLOSE_TIMEOUT / 2)
        self._enter(Closed())
        try:
            if self._attempt is not None:
                await ended(self._attempt)
            await self._client.close()
        except Exception as error:  # noqa: BLE001  # it may be half connected; there is nothing left to save
            log.debug("closing failed", error=str(error))

    def see_to(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; `close` gives it a little time to end. It must not raise."""
        task = asyncio.create_task(work)
        self._left_to_do.add(task)
        task.add_done_callback(self._left_to_do.discard)

    async def lost(self) -> NoReturn:
        """Wait until the connection is lost for good. Raises `Unreachable`: the client gave up, as it never should."""
        await self._lost.wait()
        raise Unreachable(f"the connection to NATS was closed: {self._problem}")

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Call the listener with True when the connection comes up, with False when it goes down."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[bool], None]) -> None:
        """Call the listener no more."""
        self._listeners.remove(listener)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection at this moment."""
        return isinstance(self._phase, LinkUp)

    @property
    def up_since(self) -> float | None:
        """When it was last (re)connected, in seconds on this node's clock; None while it is down."""
        return self._phase.since if isinstance(self._phase, LinkUp) else None

    @property
    def own_address(self) -> str | None:
        """This machine's address on the connection; None: there is no connection, or not one between addresses."""
        return self._client.own_address if self.is_up else None

    def _now_up(self) -> LinkUp:
        return LinkUp(clock.now(), asyncio.get_running_loop().create_future())

    def _enter(self, phase: LinkPhase) -> None:
        before = self._phase
        if isinstance(before, Closed) or type(before) is type(phase):
            return
        self._phase = phase
        if isinstance(before, LinkUp):
            self._permissions.reconnecting()
            before.over.set_result(None)
        if isinstance(before, LinkUp) or isinstance(phase, LinkUp):
            for listener in list(self._listeners):
                listener(self.is_up)

    async def _on_disconnected(self) -> None:
        if isinstance(self._phase, LinkUp):
            self._apart.goes_on(clock.now(), "connection to NATS lost; reconnecting", servers=self.access.shown)
            self._enter(Down())

    async def _on_reconnected(self) -> None:
        if isinstance(self._phase, Down):
            self._apart.over(clock.now(), servers=self.access.shown)
            self._enter(self._now_up())

    async def _on_closed(self) -> None:
        if not isinstance(self._phase, Closed):
            self._enter(Closed())
            self._lost.set()

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self._problem = text.removeprefix("nats: ")
        if isinstance(self._phase, Opening):
            server = self._client.server_at_hand
            shown = self.access.shown if server is None else without_secrets(server)
            told_of = self._client.discovered_servers
            named = {without_secrets(each.geturl()) for each in self._client.servers if each not in told_of}
            self._phase.failed(error, self._problem, shown, named)
            if self._phase.hopeless.done() or self._phase.timeout is not None:
                return
        if isinstance(error, nats.errors.SlowConsumerError):
            log.debug("slow consumer")  # the watch notices the gap and lists again
        elif isinstance(self._phase, LinkUp):
            if self._problems.take(clock.now()):
                log.warning("NATS reports a problem", servers=self.access.shown, problem=self._problem)
        elif not isinstance(self._phase, Closed):
            told = {"servers": self.access.shown, "problem": self._problem}
            self._apart.goes_on(clock.now(), "cannot connect to NATS; trying again", **told)

    def _on_denied(self, kind: str, subject: str) -> None:
        if not isinstance(self._phase, Closed):  # nobody waits for anything any more
            self._permissions.denied(kind, subject)

    async def leave_server(self) -> None:
        """Go to the next server, where there is one: this one may be cut off from its peers, with all clients."""
        if self.is_up and len(self._client.servers) > 1:
            log.warning("going to another server", servers=self.access.shown)
            await self._client.force_reconnect()

    def check_up(self) -> LinkUp:
        """The phase in which something can be sent. Raises `Unreachable` in any other."""
        if not isinstance(self._phase, LinkUp):
            raise Unreachable("not connected to NATS")
        return self._phase
