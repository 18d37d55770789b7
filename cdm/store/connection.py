"""One connection to NATS, and where the client's errors become cdm's.

The client reconnects for ever. What it would have sent while it is disconnected is refused at once instead of being
kept for later: a command that arrives minutes late is worth less than one decided anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import nats
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from cdm import clock
from cdm.errors import (
    AccessDenied,
    BucketMissing,
    Conflict,
    NoResponders,
    RequestRefused,
    StoreBusy,
    StoreError,
    Uncertain,
    Unreachable,
    Unsuitable,
    Untrusted,
)
from cdm.log import Log
from cdm.store.access import Access, credentials_of, tls_of, without_secrets
from cdm.store.client import Client, Deliver

__all__ = ["Access", "Connection", "checked", "connect", "error_of", "no_message"]

log = Log("cdm.nats")

MINIMUM_SERVER = (2, 12, 0)
REQUEST_TIMEOUT = 5.0
"""Seconds that an ordinary request may take."""
PATIENCE = (0.5, 1.0, 1.5)
"""Seconds after which a call is made again, once, twice and three times; the last time the rest is waited for."""
PING_INTERVAL = 1
"""Seconds between pings; two without an answer end the connection, so that a hung server is left."""
RECONNECT_PAUSE = 0.2
"""Seconds between two attempts at the same server."""
CLOSE_PATIENCE = 2.0
RETRY_LOG_INTERVAL = 5.0
COMPLAINT_INTERVAL = 30.0
"""Seconds between two lines about the same missing permission."""
COMPLAINTS = 100
"""How many missing permissions are remembered for that."""

_CONFLICT = 10071
_AGAIN = 10164
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_NO_REPLICAS = 10074
_JETSTREAM_OFF = (10039, 10076)
_UNAVAILABLE = (10008, 10009)

Handler = Callable[[Msg], Awaitable[None]]
T = TypeVar("T")


class Connection:
    """A connection that lasts until it is closed. Made by `connect`."""

    def __init__(self, access: Access, prefix: str = "") -> None:
        self.access = access
        self.prefix = prefix
        self.up_since: float | None = None
        """When it was last (re)connected, in seconds on this node's clock; None while it is down."""
        self._client = Client(self._on_denied)
        self._asking: dict[asyncio.Future[None], Collection[str]] = {}
        """Those who wait for what they sent: what to tell of a refusal, and the subjects."""
        self._denied: dict[str, AccessDenied] = {}
        """Subscriptions that the server refused since it was last connected to, by subject."""
        self._complained: dict[str, float] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self._opened = False
        self._limited = False
        """Whether the first connection is sought for a limited time: who waits hears of problems with the error."""
        self._closing = False
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._down: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._logged_at = float("-inf")
        self._last_problem = "no answer"
        self._untrusted: dict[str, Untrusted] = {}
        """By server: its certificate was not trusted in that time."""

    # Names

    def subject(self, *tokens: str | int) -> str:
        """A core subject, under the prefix where there is one."""
        return ".".join(map(str, (self.prefix, *tokens) if self.prefix else tokens))

    def bucket(self, name: str) -> str:
        """A bucket's full name."""
        return f"{self.prefix}_{name}" if self.prefix else name

    # Life

    async def open(self, name: str, timeout: float | None) -> None:
        """Connect; ``timeout`` in seconds, None to go on trying.

        Raises:
            Unreachable: no server answered in time.
            Untrusted: none of the servers that answered has a certificate to trust.
            AccessDenied: a server refused the credentials.
        """
        self._limited = timeout is not None
        attempt = asyncio.ensure_future(self._connect(name))
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait((attempt, self._fatal), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            for untrusted in self._untrusted.values():
                raise untrusted from None
            raise Unreachable(
                f"no NATS server answered at {self.access.shown} within {timeout:g} s ({self._last_problem}); "
                "is it running, and is the address right? (--server, NATS_URL)"
            ) from None
        finally:
            if not attempt.done():
                attempt.cancel()
        if self._fatal.done():
            await self._fatal
        await attempt
        self._opened, self._limited = True, False
        # The order was made at random, each client its own. Shuffled again, the server that was left may come first.
        self._client.options["dont_randomize"] = True
        self._set_up(True)

    async def _connect(self, name: str) -> None:
        access = self.access
        self._client.insist_on_tls = access.encrypted
        self._client.check_credentials = partial(credentials_of, access)
        tls, credentials = tls_of(access), credentials_of(access)
        with _translated():
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
                max_outstanding_pings=2,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )

    async def close(self) -> None:
        """Close the connection; never raises."""
        self._closing = True
        # Also when cancelled: a client left half open goes on answering for a process that has left.
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_PATIENCE):
            try:
                await self._client.close()
            except Exception as error:  # noqa: BLE001  # it may be half connected; there is nothing left to save
                log.debug("closing failed", error=str(error))

    async def lost(self) -> None:
        """Wait until the connection is lost for good. Raises `Unreachable`: the client gave up, as it never should."""
        await self._lost

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Call the listener with True when the connection comes up, with False when it goes down."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[bool], None]) -> None:
        """Call the listener no more."""
        self._listeners.remove(listener)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection at this moment."""
        return self.up_since is not None

    def _set_up(self, up: bool) -> None:
        if up == self.is_up:
            return
        self.up_since = clock.now() if up else None
        if up:
            self._down = asyncio.get_running_loop().create_future()
        else:
            self._denied.clear()  # before they are made anew, which the server may refuse again
            if not self._down.done():
                self._down.set_result(None)
        for listener in list(self._listeners):
            listener(up)

    async def _on_disconnected(self) -> None:
        if self.is_up and not self._closing:
            log.warning("connection to NATS lost; reconnecting", servers=self.access.shown)
        self._set_up(False)

    async def _on_reconnected(self) -> None:
        log.info("connected to NATS again", servers=self.access.shown)
        self._set_up(True)

    async def _on_closed(self) -> None:
        self._set_up(False)
        if not self._closing and not self._lost.done():
            self._lost.set_exception(Unreachable(f"the connection to NATS was closed: {self._last_problem}"))

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self._last_problem = text.removeprefix("nats: ")
        refused = re.search("authorization|authentication", text, re.IGNORECASE)
        if refused and not self._opened and not self._fatal.done():
            self._fatal.set_exception(
                AccessDenied(
                    f"{self.access.shown} refused the credentials ({self._last_problem}; {self.access.who}); "
                    "see --context, --creds, --nkey, --user"
                )
            )
        if isinstance(error, ssl.SSLCertVerificationError) and self._limited:
            self._distrust(error)
        if self._fatal.done() or self._limited:
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            log.debug("slow consumer")  # the watch notices the gap and lists again
        elif clock.now() - self._logged_at >= RETRY_LOG_INTERVAL and not self._closing:
            self._logged_at = clock.now()
            what = "NATS reports a problem" if self.is_up else "cannot connect to NATS; trying again"
            log.warning(what, servers=self.access.shown, problem=self._last_problem)

    def _distrust(self, error: ssl.SSLCertVerificationError) -> None:
        """Another server may be good: only where there is none left it is of no use to go on."""
        current = self._client._current_server  # noqa: SLF001  # the client tells it of a connection that is up
        server = without_secrets(current.uri.geturl()) if current else self.access.shown
        self._untrusted[server] = Untrusted(
            f"the certificate of {server} is not trusted ({error.verify_message.rstrip('.')}); "
            "is its CA in --tlsca (NATS_CA), and is it for this address? (--server, NATS_URL)"
        )
        if len(self._untrusted) == len(self.access.servers) and not self._fatal.done():
            self._fatal.set_exception(self._untrusted[server])

    async def leave_server(self) -> None:
        """Go to the next server, where there is one: this one may be cut off from its peers, with all clients."""
        if self.is_up and len(self._client._server_pool) > 1:  # noqa: SLF001
            log.warning("going to another server", servers=self.access.shown)
            await self._client.force_reconnect()

    def _on_denied(self, kind: str, subject: str) -> None:
        """The server refused a subject. It does not say which message that was about: those that wait for it know."""
        what = "publish" if kind == "publish" else "subscribe"
        way = "grant it to this user, see nats/secure.conf"
        if what == "subscribe" and self._is_inbox(subject):
            way = f"choose another --inbox-prefix, or {way}"
        error = AccessDenied(f'permission denied: {what} "{subject}" ({self.access.who}); {way}')
        if what == "subscribe":
            self._denied[subject] = error  # who subscribed asks, see `check_subscribed`
        told = False
        for refused, about in self._asking.items():
            if not refused.done() and (subject in about if what == "publish" else self._is_inbox(subject)):
                refused.set_exception(error)
                told = True
        if what == "publish" and not told:
            self.complain(error)

    def complain(self, error: AccessDenied) -> None:
        """Log that a permission is missing, but not every time: such a state may last."""
        text, now = str(error), clock.now()
        if now >= self._complained.get(text, float("-inf")) + COMPLAINT_INTERVAL:
            self._complained = {text: now, **dict(list(self._complained.items())[:COMPLAINTS])}
            log.error(text)

    def _is_inbox(self, subject: str) -> bool:
        return subject.startswith(self.access.inbox_prefix + ".")

    # What the server is

    @property
    def _info(self) -> dict[str, Any]:
        return self._client._server_info  # noqa: SLF001  # the client shows only the version of it

    @property
    def max_payload(self) -> int:
        """Longest message that the server takes, in bytes."""
        return self._client.max_payload

    async def check_server(self) -> None:
        """Ask whether the server can do what the protocol needs.

        Raises:
            Unsuitable: says in one line why not.
            StoreBusy: JetStream is not ready; a cluster needs most of its servers.
            Uncertain: JetStream does not answer.
        """
        info = self._info
        version = str(info.get("version", "0"))
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
        if numbers < MINIMUM_SERVER:
            wanted = ".".join(map(str, MINIMUM_SERVER))
            raise Unsuitable(
                f"nats-server {version} at {self.access.shown} is too old; cdm needs {wanted} or later "
                "(atomic batches, per-message TTL)"
            )
        if not info.get("jetstream"):
            # A server without JetStream may be a leaf or a cluster member whose peers have it: the API tells.
            log.debug("the server itself runs no JetStream")
        try:
            await self.api("INFO")
        except NoResponders:
            raise Unsuitable(
                f"nats-server {version} at {self.access.shown} has no JetStream; start it with -js, "
                "or enable JetStream for this account"
            ) from None
        except (StoreBusy, Uncertain) as error:
            raise type(error)(f"JetStream at {self.access.shown} is not ready: {error}") from None

    # Talk

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send a message. Raises `Unreachable` while disconnected."""
        if self.up_since is None:
            raise Unreachable("not connected to NATS")
        with _translated():
            await self._client.publish(subject, payload, reply=reply, headers=headers)

    @asynccontextmanager
    async def accepted(self, subjects: Collection[str]) -> AsyncIterator[None]:
        """Publish to these subjects in the ``with`` block; at its end wait until the server has taken it all.

        Raises:
            AccessDenied: it takes no message at one of them.
            Unreachable: there is no connection.
            Uncertain: the server says nothing.
        """
        with self._refusal(subjects) as refused:
            yield
            await self.flush()  # it tells of refusals before this is over
            if refused.done():
                refused.result()

    @contextmanager
    def _refusal(self, subjects: Collection[str]) -> Iterator[asyncio.Future[None]]:
        """What fails as soon as the server takes no message at one of the subjects, or delivers no answers."""
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking[refused] = subjects
        try:
            yield refused
        finally:
            del self._asking[refused]
            if not refused.cancel():
                refused.exception()  # who left for another reason did not look

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout: float | None = None
    ) -> bytes:
        """Send a message and wait for the answer; see `ask`."""
        return (await self.ask(subject, payload, headers, timeout))[0]

    async def ask(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout: float | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Send a message and wait for the answer; returns its payload and headers.

        Raises:
            Unreachable: there is no connection; nothing was sent.
            NoResponders: nobody listens there.
            Uncertain: no answer within ``timeout`` seconds, or before the connection was lost.
            AccessDenied: the server takes no message there, or delivers no answers.
        """
        if self.up_since is None:
            raise Unreachable("not connected to NATS")
        for inbox, error in self._denied.items():
            if self._is_inbox(inbox):
                raise error
        if len(payload) > self.max_payload:
            raise RequestRefused(f"{len(payload):,} bytes are too long: NATS takes {self.max_payload:,}")
        with self._refusal((subject,)) as refused:
            request = self._client.request(
                subject, payload, timeout=REQUEST_TIMEOUT if timeout is None else timeout, headers=headers
            )
            answer = await self._while_up(request, refused)
            return answer.data, answer.headers or {}

    async def _while_up(self, talk: Coroutine[Any, Any, T], refused: asyncio.Future[None] | None = None) -> T:
        """The result of a talk with the server, which ends when it is refused or the connection is lost.

        The client would wait for the time-out, but an answer can only come on this connection.
        """
        task = asyncio.ensure_future(talk)
        try:
            await asyncio.wait(
                [each for each in (task, refused, self._down) if each is not None],
                return_when=asyncio.FIRST_COMPLETED,
            )
            if refused is not None and refused.done():
                refused.result()
            if not task.done():
                raise Uncertain("the connection was lost before the answer came")
            with _translated():
                return task.result()
        finally:
            task.cancel()

    async def api(self, call: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """Call the JetStream API, e.g. ``STREAM.INFO.KV_slices``, and return its decoded answer.

        Raises:
            StoreError: the error of the answer, or that there was none.
        """
        answer = await self.request(f"$JS.API.{call}", json.dumps(body).encode() if body else b"", timeout=timeout)
        return checked(answer)

    async def insist(self, call: str, body: Mapping[str, Any] | None = None) -> Any:
        """The same, for a call that may be made twice: it is made again while nobody answers.

        Servers that have lost the leader of a stream, and are about to elect another, drop what they are asked.

        Raises:
            StoreError: the error of the answer, or that there was none within `REQUEST_TIMEOUT` seconds.
        """
        for patience in PATIENCE:
            with suppress(Uncertain):
                return await self.api(call, body, patience)
        return await self.api(call, body, REQUEST_TIMEOUT - sum(PATIENCE))

    async def send_frames(self, frames: bytes) -> None:
        """Send messages that are already in the form of the wire. Raises `Unreachable` while disconnected."""
        if self.up_since is None:
            raise Unreachable("not connected to NATS")
        with _translated():
            await self._client.send_frames(frames)

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call the handler for each message."""
        with _translated():
            return await self._client.subscribe(subject, cb=handler)

    async def subscribe_directly(self, subject: str, deliver: Deliver) -> Subscription:
        """Hand each message over as it is read. ``deliver`` must not raise."""
        with _translated():
            subscription = await self._client.subscribe(subject)
        self._client.direct[subscription._id] = deliver  # noqa: SLF001  # the number that messages come with
        return subscription

    def check_subscribed(self, subject: str) -> None:
        """Raise `AccessDenied` where the server refused the subscription; it tells before the next `flush` is over."""
        if subject in self._denied:
            raise self._denied[subject]

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; never raises."""
        self._client.direct.pop(subscription._id, None)  # noqa: SLF001
        try:
            await subscription.unsubscribe()
        except (nats.errors.Error, OSError) as error:
            log.debug("unsubscribing failed", error=str(error))

    async def flush(self) -> None:
        """Wait until the server has seen everything sent so far.

        Raises:
            Unreachable: there is no connection.
            Uncertain: the server says nothing, or the connection was lost.
        """
        if self.up_since is None:
            raise Unreachable("not connected to NATS")
        await self._while_up(self._client.flush(timeout=int(REQUEST_TIMEOUT)))

    def may_answer(self, reply: str) -> bool:
        """Whether there is a subject to answer to, and one where nobody obeys.

        Whoever may ask must not have this node write a key or a command in its own name.
        """
        return bool(reply) and not reply.startswith(("$", self.subject("cdm", "")))

    def new_inbox(self) -> str:
        """A subject of one's own."""
        return self._client.new_inbox()


@asynccontextmanager
async def connect(
    access: Access, *, name: str, prefix: str = "", timeout: float | None = 5.0
) -> AsyncIterator[Connection]:
    """Connect for the time of the ``with`` block; see `Connection.open`."""
    connection = Connection(access, prefix)
    try:
        await connection.open(name, timeout)
        yield connection
    finally:
        await connection.close()


def checked(answer: bytes) -> Any:
    """Decode a JetStream answer; raises the `StoreError` that its error means."""
    try:
        body = json.loads(answer)
    except ValueError:
        raise RequestRefused(f"the server's answer is not JSON: {answer[:80]!r}") from None
    error = body.get("error")
    if not error:
        return body
    code, text = int(error.get("err_code", 0)), str(error.get("description", error))
    raise error_of(code, text)


def error_of(code: int, text: str) -> StoreError:
    """The error that a JetStream error code means."""
    if code == _CONFLICT:
        return Conflict(text)
    if code == _AGAIN or code in _UNAVAILABLE:
        return StoreBusy(text)
    if code == _NO_STREAM:
        return BucketMissing(text)
    if code == _NO_REPLICAS:
        return Unsuitable(f"the NATS server cannot keep so many replicas; see --replicas ({text})")
    if code in _JETSTREAM_OFF:
        return Unsuitable(f"JetStream: {text}")
    return RequestRefused(text, code)


def no_message(error: RequestRefused) -> bool:
    """Whether a refusal says that there is no such message."""
    return error.code == _NO_MESSAGE


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except nats.errors.NoRespondersError:
        raise NoResponders("nobody listens there") from None
    except (nats.errors.TimeoutError, TimeoutError):
        raise Uncertain("no answer in time") from None
    except nats.errors.AuthorizationError as error:
        raise AccessDenied(str(error)) from None
    except (nats.errors.Error, OSError) as error:
        raise Unreachable(str(error) or type(error).__name__) from error
