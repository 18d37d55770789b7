"""nats-py's client, mended where it must be, and with a short way for the many messages of a watch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import nats.aio.client
import nats.errors
from nats.aio.client import PING_PROTO, Srv
from nats.aio.msg import Msg
from nats.errors import ProtocolError
from nats.protocol.parser import PERMISSIONS_ERR, Parser

from cdm.errors import AccessDenied
from cdm.store.access import Address

Deliver = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply, payload and header block of a message as they came."""

_VIOLATION = re.compile(r"Permissions Violation for (Publish|Subscription) to \"([^\"]*)\"", re.IGNORECASE)
_END = b"\r\n"


def _place(server: Srv) -> str:
    """Host and port, as servers tell them of each other."""
    return server.uri.netloc.rpartition("@")[2]


class _Parser(Parser):
    """Takes the messages out of what was read; everything else is left to the client's own parser.

    That one lets a subject end at any white space that Python knows. The server does not: a vertical tab in one stored
    key would end every connection that watches it, again and again. It also takes each message out of a buffer of its
    own; one pass over all that was read takes half the time.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._client = client

    def reset(self) -> None:
        """Forget what was begun: there is another connection."""
        super().reset()
        self._wanted = 0
        """Length at which what is in the buffer can be whole."""

    async def parse(self, data: bytes = b"") -> None:
        """Hand over every message that is complete, and keep the rest.

        Raises:
            ProtocolError: this is not what a server says, or it could not be taken. The client reconnects; any other
                error would end its reading, and nobody would be told.
            OSError: the connection is lost.
        """
        try:
            await self._parse(data)
        except (ProtocolError, OSError):
            raise
        except Exception as error:
            await self._client.tell(error)
            raise ProtocolError from error

    async def _parse(self, data: bytes) -> None:
        self.buf.extend(data)
        if len(self.buf) < self._wanted:
            return
        data, start = bytes(self.buf), 0
        self.buf.clear()
        self._wanted = 0
        while (end := data.find(_END, start)) >= 0:
            words = data[start:end].split(b" ")
            head = end + 2
            try:
                if words[0] == b"MSG":
                    _, subject, sid, *reply, size = words
                    body = head
                elif words[0] == b"HMSG":
                    _, subject, sid, *reply, header_size, size = words
                    body = head + int(header_size)
                else:
                    await super().parse(data[start:head])
                    start = head
                    continue
                number, end = int(sid), head + int(size)
            except ValueError:
                raise ProtocolError from None
            if len(data) < end + 2:
                self._wanted = end + 2 - start
                break
            await self._client.take(number, subject, reply[0] if reply else b"", data[body:end], data[head:body])
            start = end + 2
        self.buf.extend(data[start:])


class Client(nats.aio.client.Client):
    """The client, mended where it must be, and with a short way for the many messages of a watch.

    What it would do: tell of a refused subject in lower case only. Send user and password of an address as they are
    written there, percent-encoded, and those of one address to no other server of the cluster. Send its secrets in the
    clear to a server that offers no TLS. End its reading for good where a subject is not UTF-8, or a pong comes that
    nobody waits for any more. Close itself for good where the server ends the connection with an error, as when
    credentials expire, which may be renewed by then. Leave open the socket of an attempt at a server that accepts and
    then says nothing. Wait for ever to be told that the connection is closed, and try no server again, after a TLS
    handshake that failed; likewise wait for a hung server to take what is still to be sent. Go on with half a message
    of the connection before. A pong may wait behind megabytes of messages: these show as well that the connection is
    alive. A ping must not overtake what was sent before it.

    Its parser is another one (`_Parser`). And a message of a direct subscription is handed over as it was read: no
    queue, no task, no headers taken apart that nobody asks for; what the receiver cannot take in time waits in the
    socket.
    """

    def __init__(self, on_denied: Callable[[str, str], None]) -> None:
        super().__init__()
        self._ps = _Parser(self)
        self.direct: dict[int, Deliver] = {}
        self.insist_on_tls = False
        self.check_credentials: Callable[[], object] = lambda: None
        """Raises `AccessDenied` where the client's own reader of credentials files would read on in one for ever."""
        self._on_denied = on_denied

    @staticmethod
    def _parse_server_uri(connect_url: str) -> Address:
        return Address(*nats.aio.client.Client._parse_server_uri(connect_url))  # noqa: SLF001  # the very method

    async def _process_err(self, err_msg: str) -> None:
        # What was handed over is in lower case; the parser has the line still as it came.
        line = bytes(self._ps.buf).partition(b"\r\n")[0].decode("utf-8", "replace")
        if denied := _VIOLATION.search(line):
            self._on_denied(denied[1].lower(), denied[2])
        elif PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
        else:
            error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
            await self.tell(error)
            await self._process_op_err(error)

    async def tell(self, error: Exception) -> None:
        """Tell whoever made this client of an error."""
        await self._error_cb(error)

    def _connect_command(self) -> bytes:
        if self.insist_on_tls and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: the server offers no TLS, and nothing is sent to it without")
        try:
            self.check_credentials()
            return super()._connect_command()
        except Exception as error:  # noqa: BLE001  # any but its own would end its attempts, and nobody would be told
            # Files are read again each time: one that is just being renewed may be whole the next time.
            known = isinstance(error, (AccessDenied, nats.errors.Error))
            told = error if known else type(error).__name__  # the text might hold a secret
            raise nats.errors.Error(f"nats: {told}") from None

    async def take(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Take a message from the parser."""
        self._pings_outstanding = 0
        deliver = self.direct.get(sid)
        if deliver is None:
            await self._process_msg(sid, subject, reply, payload, headers or None)  # type: ignore[arg-type]
        else:
            try:
                deliver(subject, reply, payload, headers)
            except Exception as error:  # noqa: BLE001  # one message must not end the reading of all
                await self.tell(error)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # Its own goes past what waits to be sent: `flush` after `subscribe` would return before the server knows.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # who sent the ping waits no more
            del self._pongs[0]
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        known = {_place(server) for server in self._server_pool}
        urls = [url for url in info.get("connect_urls") or () if url not in known]
        await super()._process_info({**info, "connect_urls": urls}, initial_connection)
        current = self._current_server
        who, at, _ = current.uri.netloc.rpartition("@") if current else ("", "", "")
        for server in self._server_pool:
            if at and server.discovered and "@" not in server.uri.netloc:
                server.uri = Address(*server.uri._replace(netloc=f"{who}@{server.uri.netloc}"))

    async def _attempt_reconnect(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        await super()._attempt_reconnect()

    async def send_frames(self, frames: bytes) -> None:
        """Send commands that are already in the form of the wire."""
        await self._send_command(frames)
        await self._flush_pending()

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        self._ps.reset()
        try:
            await super()._process_connect_init()
        except Exception as error:
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
                self._transport = None
            if isinstance(error, (OSError, TimeoutError, nats.errors.Error)):
                raise
            # Any other would end the attempts: nonsense where a server's greeting should be, for example.
            raise nats.errors.Error(f"nats: no server answers there ({type(error).__name__})") from error

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode("utf-8", "backslashreplace"),
            reply=reply.decode("utf-8", "backslashreplace"),
            data=data,
            headers=headers,
            _sid=sid,
        )
