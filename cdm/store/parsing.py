"""What a NATS server sends, taken apart."""

from __future__ import annotations

from typing import Protocol

from cdm.store.library import Parser, ProtocolError

_END = b"\r\n"


class Receiving(Protocol):
    """The client that messages are for."""

    def heard(self) -> None:
        """Something was read, be it a part of a message."""

    def taken(self, size: int) -> None:
        """So many bytes were read, and no part of a message is left."""

    async def take(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Take a message of this subscription."""

    async def tell(self, error: Exception) -> None:
        """What was sent could not be taken."""


class MessageParser(Parser):
    """Takes the messages out of what was read; everything else is left to the client's own parser.

    Upstream a subject ends at any white space that Python knows. The server disagrees: a vertical tab in one stored key
    would end every connection that watches it, again and again. Upstream also takes each message out of a buffer of its
    own; one pass over all that was read takes half the time.
    """

    def __init__(self, client: Receiving) -> None:
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
        self._client.heard()
        try:
            await self._parse(data)
        except (ProtocolError, OSError):
            raise
        except Exception as error:
            await self._client.tell(error)
            raise ProtocolError from error
        if not self.buf:
            self._client.taken(len(data))

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
