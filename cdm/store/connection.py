"""One connection to NATS, and what can be said over it.

What would be sent while it is disconnected is refused at once instead of being kept for later: a command that arrives
minutes late is worth less than one decided anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from cdm.errors import (
    AccessDenied,
    JetStreamAway,
    NoResponders,
    RequestRefused,
    StoreBusy,
    StoreError,
    Uncertain,
    Unsuitable,
)
from cdm.log import Log
from cdm.store.access import API, Access
from cdm.store.client import Deliver
from cdm.store.jetstream import checked, problem_with_version
from cdm.store.library import Msg, Subscription, nats
from cdm.store.link import Link
from cdm.store.phases import LinkUp
from cdm.store.tasks import dismiss
from cdm.store.translating import translated

__all__ = ["Access", "Connection", "connect"]

log = Log("cdm.nats")

REQUEST_TIMEOUT = 5.0
"""Seconds that an ordinary request may take."""
RETRY_AFTER = (0.5, 1.0, 1.5)
"""Seconds that `Connection.api_retried` waits for an answer to its first calls; for the last one it waits the rest."""

NO_ANSWER = "no answer in time"
NOBODY_LISTENS = "503"
"""The server's status instead of an answer."""

Handler = Callable[[Msg], Awaitable[None]]
T = TypeVar("T")


class Connection(Link):
    """A `Link`, and what is said over it. `connect` makes it for those who do not open and close it themselves.

    Args:
        access: where, and who one is there.
        prefix: of the names of subjects and buckets.
        timeout: seconds within which a server has to be found; None: it is sought until it is found.
    """

    def __init__(self, access: Access, prefix: str, timeout: float | None) -> None:
        super().__init__(access, timeout)
        self.prefix = prefix

    # Names

    def subject(self, *tokens: str | int) -> str:
        """A core subject, under the prefix where there is one."""
        return ".".join(map(str, (self.prefix, *tokens) if self.prefix else tokens))

    def bucket(self, name: str) -> str:
        """A bucket's full name."""
        return f"{self.prefix}_{name}" if self.prefix else name

    def api_subject(self, call: str) -> str:
        """Where JetStream is called, e.g. ``STREAM.INFO.KV_slices``."""
        return f"{self.access.api}.{call}"

    @property
    def key_prefix(self) -> str:
        """What a key's subject is put behind when it is written: clients of KV buckets do so beyond a domain."""
        return "" if self.access.api == API else f"{self.access.api}."

    # What the server is

    @property
    def max_payload(self) -> int:
        """Longest message that the server takes, in bytes."""
        return self._client.max_payload

    @property
    def server_version(self) -> str:
        """The server's version, as it says."""
        return str(self._client.server_info.get("version", "0"))

    @property
    def server_name(self) -> str:
        """The server's name, as it says."""
        return str(self._client.server_info.get("server_name", ""))

    @property
    def known_servers(self) -> int:
        """How many servers that clients may go to this one knows, itself included."""
        return max(len(self._client.server_info.get("connect_urls") or ()), 1)

    async def check_server(self) -> None:
        """Ask whether the server can do what the protocol needs.

        Raises:
            Unsuitable: says in one line why not.
            JetStreamAway: likewise, of what may be so for a moment only.
            StoreBusy: JetStream is not ready, as a cluster needs most of its servers; or another domain is away.
            Uncertain: JetStream does not answer.
        """
        version = self.server_version
        if problem := problem_with_version(version):
            raise Unsuitable(f"nats-server {version} at {self.access.shown} {problem}")
        # A server that runs no JetStream itself may be a leaf, or a cluster member whose peers run it: the API tells.
        try:
            await self.api("INFO")
        except NoResponders:
            if self.access.api != API:
                raise StoreBusy(
                    f"nobody answers at {self.access.api} of nats-server {version} at {self.access.shown}: is the "
                    "domain (--js-domain, the context's) or API prefix right, and is it connected?"
                ) from None
            raise JetStreamAway(
                f"nats-server {version} at {self.access.shown} has no JetStream; start it with -js, "
                "or enable JetStream for this account (one that `cdm secure` added: have the server reload twice, or "
                "--push)"
            ) from None
        except (StoreBusy, Uncertain) as error:
            raise type(error)(f"JetStream at {self.access.shown} is not ready: {error}") from None

    async def consumers_unlimited(self) -> bool:
        """Whether the account says nothing of how many consumers a stream may have; errors as of `api`."""
        account = await self.api("INFO")
        tiers = (account, *(account.get("tiers") or {}).values())
        return all((each.get("limits") or {}).get("max_consumers", -1) <= 0 for each in tiers)

    # Talk

    async def publish(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send a message. Raises `Unreachable` while disconnected."""
        self.check_up()
        with translated():
            await self._client.publish(subject, payload, reply=reply, headers=headers)

    @asynccontextmanager
    async def accepted(self, subjects: Collection[str]) -> AsyncIterator[None]:
        """Publish to these subjects in the ``with`` block; at its end wait until the server has taken it all.

        Raises:
            AccessDenied: it takes no message at one of them.
            Unreachable: there is no connection.
            Uncertain: the server says nothing.
        """
        with self._permissions.refusal(subjects) as refusal:
            yield
            await self.flush()  # it tells of refusals before this is over
            if refusal.done():
                refusal.result()

    @contextmanager
    def refusals(self, subjects: Collection[str]) -> Iterator[None]:
        """In the ``with`` block an error raises `AccessDenied` where one of these subjects was refused before it."""
        with self._permissions.refusal(subjects) as refusal:
            try:
                yield
            except StoreError:
                if refusal.done():
                    refusal.result()
                raise

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> bytes:
        """Send a message and wait for the answer; see `ask`."""
        return (await self.ask(subject, payload, headers, timeout, meanwhile))[0]

    async def ask(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Send a message and wait for the answer; returns its payload and headers.

        Args:
            subject: where to.
            payload: what.
            headers: with these.
            timeout: seconds to wait for the answer, once ``meanwhile`` is over.
            meanwhile: called when the message is on its way.

        Raises:
            Unreachable: there is no connection; nothing was sent.
            NoResponders: nobody listens there.
            Uncertain: no answer within ``timeout`` seconds, or before the connection was lost.
            AccessDenied: the server takes no message there, or delivers no answers.
            RequestRefused: the message is too long, or its subject is not valid; nothing was sent.
        """
        up = self.check_up()
        self._permissions.check_inbox()
        if len(payload) > self.max_payload:
            raise RequestRefused(f"{len(payload):,} bytes are too long: NATS takes {self.max_payload:,}")
        with self._permissions.refusal((subject,)) as refusal, translated():
            answer = await self._client.ask(subject, payload, headers)
            try:
                if meanwhile is not None:
                    await meanwhile()
                await asyncio.wait(
                    (answer, up.over, refusal),
                    timeout=REQUEST_TIMEOUT if timeout is None else timeout,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if refusal.done():
                    refusal.result()
                if not answer.done():
                    raise Uncertain("the connection was lost before the answer came" if up.over.done() else NO_ANSWER)
                found = answer.result()
            finally:
                answer.cancel()
        told = found.headers or {}
        if told.get("Status") == NOBODY_LISTENS:
            raise NoResponders("nobody listens there")
        return found.data, told

    async def api(self, call: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """Call the JetStream API, e.g. ``STREAM.INFO.KV_slices``, and return its decoded answer.

        Raises:
            StoreError: the error of the answer, or that there was none.
        """
        payload = json.dumps(body).encode() if body else b""
        answer = await self.request(self.api_subject(call), payload, timeout=timeout)
        return checked(answer)

    async def api_retried(self, call: str, body: Mapping[str, Any] | None = None, patience: float = 1.0) -> Any:
        """The same, for a call that may be made twice: it is made again while nobody answers.

        Servers that have lost the leader of a stream, and are about to elect another, drop what they are asked.

        Args:
            call: as of `api`.
            body: as of `api`.
            patience: by how much longer than usual each answer is waited for, where many wait for theirs: a factor.

        Raises:
            StoreError: the error of the answer, or that there was none within ``patience * REQUEST_TIMEOUT`` seconds.
        """
        for timeout in RETRY_AFTER:
            with suppress(Uncertain):
                return await self.api(call, body, timeout * patience)
        return await self.api(call, body, (REQUEST_TIMEOUT - sum(RETRY_AFTER)) * patience)

    def answer(self, to: str, payload: bytes) -> None:
        """Answer a request, unless there is no connection."""
        self._client.send_soon(b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(payload), payload))

    async def send_frames(self, frames: bytes) -> None:
        """Send messages that are already in the form of the wire. Raises `Unreachable` while disconnected."""
        self.check_up()
        with translated():
            await self._client.send_frames(frames)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """Call the handler for each message; of those who subscribe in the same queue one hears each."""
        with translated():
            return await self._client.subscribe(subject, queue=queue, cb=handler)

    async def subscribe_directly(self, subject: str, deliver: Deliver) -> Subscription:
        """Hand each message over as it is read. ``deliver`` must not raise."""
        with translated():
            return await self._client.subscribe_directly(subject, deliver)

    def can_wait(self, subscription: Subscription) -> None:
        """From now on messages of a direct subscription can wait for a moment, and whatever comes then waits with them.

        See `cdm.store.gathering`.
        """
        self._client.can_wait(subscription)

    def hurry(self) -> None:
        """For a moment nothing can: something is about to come that is waited for."""
        self._client.hurry()

    def check_subscribed(self, subject: str) -> None:
        """Raise `AccessDenied` where the server refused the subscription; it tells before the next `flush` is over."""
        self._permissions.check_subscribed(subject)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; never raises."""
        try:
            await self._client.end(subscription)
        except (nats.errors.Error, OSError) as error:
            log.debug("unsubscribing failed", error=str(error))

    async def flush(self) -> None:
        """Wait until the server has seen everything sent so far.

        Raises:
            Unreachable: there is no connection.
            Uncertain: the server says nothing, or the connection was lost.
        """
        await self._while_up(self.check_up(), self._client.flush(timeout=int(REQUEST_TIMEOUT)))

    def complain(self, error: AccessDenied) -> None:
        """Log that a permission is missing, but not every time: it may be missing for long."""
        self._permissions.complain(error)

    def may_answer(self, reply: str) -> bool:
        """Whether there is a subject to answer to, and one that carries no commands.

        Whoever may ask must not have this node write a key or a command in its own name.
        """
        return bool(reply) and not reply.startswith(("$", self.subject("cdm", "")))

    def new_inbox(self) -> str:
        """A subject of one's own."""
        return self._client.new_inbox()

    async def _while_up(self, up: LinkUp, talk: Coroutine[Any, Any, T]) -> T:
        """The result of a talk with the server, which ends when the connection is lost.

        The client would wait for the time-out, but an answer can only come on this connection.
        """
        task = asyncio.create_task(talk)
        try:
            await asyncio.wait((task, up.over), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Uncertain("the connection was lost before the answer came")
            with translated():
                return task.result()
        finally:
            dismiss(task)


@asynccontextmanager
async def connect(
    access: Access, *, name: str, prefix: str = "", timeout: float | None = 5.0
) -> AsyncIterator[Connection]:
    """Connect for the time of the ``with`` block; ``timeout`` in seconds, None to go on trying.

    Raises:
        StoreError: see `Connection.open`.
    """
    connection = Connection(access, prefix, timeout)
    try:
        await connection.open(name)
        yield connection
    finally:
        await connection.close()
