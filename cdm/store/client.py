"""nats-py's client, repaired where that is necessary, and with a fast path for the many messages of a watch.

This is the only file that touches nats-py's private names; that is why the library is pinned to one minor version. Each
override says what goes wrong upstream without it, and names the upstream issue where one is known.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from cdm.errors import AccessDenied
from cdm.store.access import Address
from cdm.store.gathering import Gathering
from cdm.store.library import PERMISSIONS_ERR, PING_PROTO, Msg, Srv, Subscription, nats
from cdm.store.parsing import MessageParser
from cdm.store.sockets import untaken
from cdm.store.tasks import ended
from cdm.store.wire import told_in

Deliver = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply, payload and header block of a message as they came."""

_VIOLATION = r"(?i)Permissions Violation for (Publish|Subscription) to \"([^\"]*)\""
BURST = 0.002
"""Seconds between two writes below which what is to be sent is gathered."""
AT_ONCE = 16 * 1024
"""Bytes that are written at once, at most."""
SILENCE = 0.9
"""Part of the time between pings in which nothing was heard, after which one is sent: the last answer took a moment."""


async def end_attempt(client: nats.aio.client.Client) -> None:
    """End the client's attempt to connect again, where it makes one; it is about to be closed.

    Upstream closes the transport under an attempt that may go on all the same: it then stumbles over a TLS handshake
    that came to nothing, connects a client that was closed, or tries for ever to.
    """
    attempt = client._reconnection_task
    if attempt is not None and attempt is not asyncio.current_task():
        await ended(attempt)


def _place(server: Srv) -> str:
    """Host and port, as servers tell them of each other."""
    return server.uri.netloc.rpartition("@")[2]


class Client(nats.aio.client.Client):
    """The client, mended where it must be, and with a short way for the many messages of a watch.

    A message of a direct subscription is handed over as it was read: no queue, no task, no headers taken apart that
    nobody asks for; what the receiver cannot take in time waits in the socket.

    Args:
        on_denied: told of a subject that the server refused: ``publish`` or ``subscription``, and the subject.
    """

    def __init__(self, on_denied: Callable[[str, str], None]) -> None:
        super().__init__()
        self._ps = MessageParser(self)
        self._direct: dict[int, Deliver] = {}
        self._unhurried: set[int] = set()
        """Numbers of the subscriptions whose messages can wait for a moment."""
        self._gathering = Gathering(asyncio.get_running_loop())
        self._answers = 0
        """Number of the subscription that answers come to."""
        self._written_at = float("-inf")
        """When something was last written at once."""
        self._heard_at = float("-inf")
        """When something was last read."""
        self.insist_on_tls = False
        self.check_credentials: Callable[[], object] = lambda: None
        """Raises `AccessDenied` where a file with credentials cannot be used."""
        self._on_denied = on_denied

    # What the client keeps to itself

    @property
    def server_info(self) -> dict[str, Any]:
        """What the server said of itself; upstream shows only its version."""
        return self._server_info

    @property
    def server_at_hand(self) -> str | None:
        """Address of the server that is connected to, or being tried; upstream shows it only when it is connected."""
        return self._current_server.uri.geturl() if self._current_server else None

    @property
    def own_address(self) -> str | None:
        """This side's address on the connection, as the system tells it; None: there is no connection of that kind."""
        transport = self._transport
        # A plain connection, or one with TLS, has a stream; a web socket has that of its HTTP client.
        carrier = getattr(transport, "_io_writer", None) or getattr(transport, "_ws", None)
        name = carrier.get_extra_info("sockname") if carrier is not None else None
        return name[0] if isinstance(name, tuple) and isinstance(name[0], str) else None

    def keep_order(self) -> None:
        """From now on go to the servers in the order in which they are.

        It was made at random, each client its own. Upstream shuffles it again at each loss, so that the server that was
        left may come first.
        """
        self.options["dont_randomize"] = True

    async def send_frames(self, frames: bytes) -> None:
        """Send commands that are already in the form of the wire; upstream can only build them one by one."""
        await self._send_command(frames)
        # Upstream they are written when the event loop has gone round, after all that is computed until then.
        if not (self.is_connected and self._write_pending()):
            await self._flush_pending()

    def send_soon(self, frames: bytes) -> None:
        """The same for what may get lost: without a connection it is."""
        if self.is_connected:
            self._pending.append(frames)
            self._pending_data_size += len(frames)
            if not self._write_at_once() and self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    async def ask(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> asyncio.Future[Msg]:
        """Send a request; the future is done when the answer comes. Whoever waits no longer has to cancel it."""
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        inbox = f"{bytes(self._resp_sub_prefix or b'').decode()}{(token := self._nuid.next().decode())}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._resp_map[token] = answer
        answer.add_done_callback(lambda _: self._resp_map.pop(token, None))
        self._gathering.read_on()
        try:
            await self.publish(subject, payload, reply=inbox, headers=headers)
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def subscribe_directly(self, subject: str, deliver: Deliver) -> Subscription:
        """Have each message handed over as it is read; see the class."""
        subscription = await self.subscribe(subject)
        self._direct[subscription._id] = deliver
        return subscription

    def can_wait(self, subscription: Subscription) -> None:
        """From now on messages of this direct subscription can wait; see `cdm.store.gathering`."""
        self._unhurried.add(subscription._id)

    def hurry(self) -> None:
        """For a moment nothing can."""
        self._gathering.hurry()

    async def end(self, subscription: Subscription) -> None:
        """Take a subscription back, of either kind."""
        self._direct.pop(subscription._id, None)
        self._unhurried.discard(subscription._id)
        await subscription.unsubscribe()

    async def tell(self, error: Exception) -> None:
        """Tell whoever made this client of an error."""
        await self._error_cb(error)

    # Mended, what is sent, and answered

    async def _init_request_sub(self) -> None:
        self._answers = self._sid + 1
        await super()._init_request_sub()

    def _write_at_once(self) -> bool:
        """Write what is to be sent, where that is little and nothing was written just now."""
        now = time.monotonic()
        if now < self._written_at + BURST or self._pending_data_size > AT_ONCE or not self._write_pending():
            return False
        self._written_at = now
        return True

    def _write_pending(self) -> bool:
        """Write what is to be sent, where nothing waits to be written before it."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or writer.transport.get_write_buffer_size():
            return False
        writer.writelines(self._pending)
        self._pending = []
        self._pending_data_size = 0
        return True

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # Upstream a task of its own writes everything: two turns of the event loop for each message.
        if not force_flush and self.is_connected and self._pending_data_size and self._write_at_once():
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return await super()._flush_pending(force_flush)

    @property
    def _unsent(self) -> int:
        """Bytes that wait to be written, or to be taken by the other side, as far as the system tells."""
        line: Any = self._transport
        writer = getattr(line, "_io_writer", None)
        if writer is None:
            return self._pending_data_size
        waiting = self._pending_data_size + int(writer.transport.get_write_buffer_size())
        bare = line._bare_io_writer
        if bare is not writer:  # with TLS what is encrypted waits in the transport below
            waiting += int(bare.transport.get_write_buffer_size())
        return waiting + untaken(bare.get_extra_info("socket"))

    # Mended, what the server says

    def heard(self) -> None:
        """Note that the server says something, from the parser."""
        # It shows that the connection is alive. Upstream only a pong does, which may wait behind megabytes of
        # messages: a connection that is well used is ended as stale.
        self._pings_outstanding = 0
        self._heard_at = time.monotonic()

    def taken(self, size: int) -> None:
        """Note that so much was read, and no part of a message is left, from the parser."""
        if self._unhurried and not self._resp_map and not self._pongs:
            # With TLS the line below: what is encrypted is gathered. A web socket has none.
            writer = getattr(self._transport, "_bare_io_writer", None)
            if writer is not None:
                self._gathering.after(writer.transport, size)

    async def take(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Take a message from the parser."""
        if sid == self._answers:
            # Upstream a queue and a task of its own are between an answer and whoever waits for it.
            token = subject[len(self._resp_sub_prefix or b"") :].decode("utf-8", "backslashreplace")
            if (waiting := self._resp_map.get(token)) is not None and not waiting.done():
                found = await self._process_headers(headers) if headers else None
                waiting.set_result(self._build_message(sid, subject, reply, payload, found))
            return
        if sid not in self._unhurried:
            self._gathering.urgent = True
        if (deliver := self._direct.get(sid)) is None:
            await self._process_msg(sid, subject, reply, payload, headers or None)  # type: ignore[arg-type]
            return
        try:
            deliver(subject, reply, payload, headers)
        except Exception as error:  # noqa: BLE001  # one message must not end the reading of all
            await self.tell(error)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # Upstream a subject that is not UTF-8, which the server allows, ends the reading for good.
        return Msg(
            _client=self,
            subject=subject.decode("utf-8", "backslashreplace"),
            reply=reply.decode("utf-8", "backslashreplace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # Upstream has the names of two headers among its types for JetStream: 60 data classes, which cdm does not
        # use, and which take a tenth of the time in which a command, or a node, starts.
        return told_in(headers) or None if headers else None

    async def _process_err(self, err_msg: str) -> None:
        # Upstream makes refused subjects lower case: issue 595. The parser has the line still as it came.
        line = bytes(self._ps.buf).partition(b"\r\n")[0].decode("utf-8", "replace")
        if denied := re.search(_VIOLATION, line):
            self._on_denied(denied[1].lower(), denied[2])
        elif PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
        else:
            # Upstream closes itself for good at any other error, as when credentials expire, which may be renewed by
            # then: issues 193 and 1019.
            error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
            await self.tell(error)
            await self._process_op_err(error)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Upstream sends user and password of an address to no other server that this one tells of, and takes an address
        # with a user for another server than the same without. (nats.go does as is done here: its
        # pull request 409.)
        known = {_place(server) for server in self._server_pool}
        urls = [url for url in info.get("connect_urls") or () if url not in known]
        await super()._process_info({**info, "connect_urls": urls}, initial_connection)
        current = self._current_server
        who, at, _ = current.uri.netloc.rpartition("@") if current else ("", "", "")
        for server in self._server_pool:
            if at and server.discovered and "@" not in server.uri.netloc:
                server.uri = Address(*server.uri._replace(netloc=f"{who}@{server.uri.netloc}"))

    # Mended, pings

    async def _ping_interval(self) -> None:
        # Upstream pings also a server that was heard just now, which wakes both for nothing. It also waits for a ping
        # to be written, without end where the server takes nothing more; and a cancellation that comes while it does
        # is lost, so that it goes on beside the next connection's.
        interval = self.options["ping_interval"]
        self.heard()
        pinged, unsent = self._heard_at, 0
        while self._ping_interval_task is asyncio.current_task():
            silent = time.monotonic() - max(self._heard_at, pinged)
            if silent < SILENCE * interval or not self.is_connected:
                await asyncio.sleep(interval - silent if silent < interval else interval)
            elif self._pings_outstanding and self._unsent < unsent:  # the line is slow, and the ping behind all that
                pinged, unsent = time.monotonic(), self._unsent
            elif self._pings_outstanding >= self.options["max_outstanding_pings"]:
                await self._process_op_err(nats.errors.StaleConnectionError())
                return
            else:
                self._pings_outstanding += 1
                pinged, unsent = time.monotonic(), self._unsent
                self._pongs.append(asyncio.get_running_loop().create_future())
                self.send_soon(PING_PROTO)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # Upstream a ping goes past what waits to be sent: `flush` after `subscribe` returns before the server knows.
        self._gathering.read_on()
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        self._gathering.urgent = True  # what came of what was sent before it is not far behind
        # Upstream a pong that nobody waits for any more ends the reading for good, as issue 624 told of the flusher.
        if self._pongs and self._pongs[0].done():
            del self._pongs[0]
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    # Mended, connecting and closing

    async def close(self) -> None:
        """Close the connection for good, whatever it is doing."""
        await end_attempt(self)
        self._gathering.read_on()  # with TLS both sides say good-bye
        await super().close()

    @staticmethod
    def _parse_server_uri(connect_url: str) -> Address:
        # Upstream sends user and password as they are written in the address, percent-encoded: issue 123 of
        # nats-architecture-and-design.
        return Address(*nats.aio.client.Client._parse_server_uri(connect_url))

    def _connect_command(self) -> bytes:
        # Upstream sends its secrets in the clear to a server that offers no TLS, also where TLS
        # was asked for.
        if self.insist_on_tls and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: the server offers no TLS, and nothing is sent to it without")
        try:
            # Upstream reads on for ever in a file with credentials that lacks its JWT: pull request 1020.
            self.check_credentials()
            return super()._connect_command()
        except Exception as error:  # noqa: BLE001  # upstream any but its own ends the attempts, and nobody is told
            # Files are read again each time: one that is just being renewed may be whole the next time.
            known = isinstance(error, (AccessDenied, nats.errors.Error))
            told = error if known else type(error).__name__  # the text might hold a secret
            raise nats.errors.Error(f"nats: {told}") from None

    async def _connect_to_server(self, s: Srv) -> None:
        # Upstream leaves the socket of an attempt open when the server accepts and then says nothing.
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        # Upstream goes on with half a message of the connection before.
        self._ps.reset()
        try:
            await super()._process_connect_init()
        except Exception as error:
            # Upstream waits for ever to be told that the connection is closed, and tries no server again, after a TLS
            # handshake that failed: issues 382 and 718.
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
                self._transport = None
            if isinstance(error, (OSError, TimeoutError, nats.errors.Error)):
                raise
            # Upstream any other ends the attempts: nonsense where a server's greeting should be, for example.
            raise nats.errors.Error(f"nats: no server answers there ({type(error).__name__})") from error

    async def _attempt_reconnect(self) -> None:
        # Upstream waits until a hung server has taken what is still to be sent: issue 671. An attempt that is cancelled
        # while it waits cancels with it whoever closes the client, and waits for the same.
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
            self._transport = None
        await super()._attempt_reconnect()
