"""Serves HTTP beside whatever else this process does: it follows the buckets, and answers from what it knows."""

from __future__ import annotations

import logging
import resource
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import anyio
import uvicorn

from cdm.dispatch.messages import Message
from cdm.errors import StoreError, innermost
from cdm.http.address import BACKLOG, shown
from cdm.http.admission import Admission
from cdm.http.app import application, sections
from cdm.http.connections import Bounded
from cdm.http.desk import Desk
from cdm.log import Log
from cdm.model.node import HttpAt
from cdm.node.node import Node
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.watch import Watch

log = Log("cdm.http")

GRACE = 1
"""Seconds that requests under way have to end when the process stops."""
KEEP_ALIVE = 75
"""Seconds that a connection without a request is kept."""
MOST_CONNECTIONS = 8_192
LONGEST_HEAD = 64 * 1024
"""Most bytes of a request's line and headers together."""

NOT_ALLOWED = "this node may not read all of it; `cdm serve` can, with the credentials of a reader"
"""What whoever asks is told; what is missing, and whose credentials these are, only the log says."""


class HttpServer:
    """HTTP on some sockets. `run` it; once there is a connection to NATS, `follow` or `follow_node`.

    Args:
        sockets: they listen.
        admission: who is answered; None: whoever asks.
    """

    def __init__(self, sockets: Sequence[socket.socket], admission: Admission | None = None) -> None:
        self.desk = Desk()
        self._sockets = list(sockets)
        self._admission = admission or Admission()
        self._sections = sections(self.desk)
        self._takers = [taker for part in self._sections for taker in part.takers]

    @property
    def urls(self) -> str:
        """Where it is served."""
        return shown(self._sockets, secure=self._admission.certificate is not None)

    @property
    def at(self) -> HttpAt:
        """The same as a node registers it."""
        address, port = self._sockets[0].getsockname()[:2]
        anywhere = ip_address(address.partition("%")[0]).is_unspecified
        return HttpAt(port, None if anywhere else address, self._admission.certificate is not None)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            for work in (work for part in self._sections for work in part.work):
                tasks.start_soon(_guarded, work)
            log.info("serving HTTP", at=self.urls)
            await self._serve()

    async def run_beside(self) -> None:
        """The same beside a node, which goes on whatever happens here."""
        try:
            await self.run()
        except Exception as error:  # whatever it is
            log.exception("HTTP is not served any more; the node goes on", reason=repr(error))

    async def follow(self, connection: Connection) -> None:
        """Follow the buckets until cancelled.

        Raises:
            AccessDenied: a permission is missing.
        """
        sight, self.desk.connection = self.desk.sight, connection
        self.desk.watches = {
            name: Watch(bucket, self._take, on_live=partial(self._on_live, name))
            for name, bucket in buckets(connection).items()
        }
        try:
            async with anyio.create_task_group() as tasks:
                for watch in self.desk.watches.values():
                    tasks.start_soon(watch.run)
        finally:
            for name in self.desk.watches:
                sight.heard(name, live=False)

    async def follow_node(self, node: Node) -> None:
        """Follow the buckets over this node's connection, which goes on whatever happens here."""
        self.desk.node = node
        try:
            await self.follow(node.connection)
        except* StoreError as errors:
            self.desk.sight.problem = NOT_ALLOWED
            log.warning(f"HTTP cannot tell of the cluster: {NOT_ALLOWED}", reason=str(innermost(errors)))
        except* Exception as errors:  # whatever it is
            self.desk.sight.problem = "following the buckets failed"
            log.exception("HTTP does not tell of changes any more; the node goes on", reason=repr(errors))

    def _take(self, message: Message) -> None:
        for take in (self.desk.sight.take, *self._takers):
            try:
                take(message)
            except Exception as error:  # whatever it is: the watch would end
                log.exception("a message could not be taken in", reason=repr(error))

    def _on_live(self, name: str, live: bool) -> None:
        self.desk.sight.heard(name, live=live, late=0.0 if live else self.desk.watches[name].lag.seconds)

    async def _serve(self) -> None:
        _quieten()
        authority = self._admission.authority
        server = _Server(
            uvicorn.Config(
                application(self._sections, self._admission),
                ssl_certfile=self._admission.certificate,
                ssl_keyfile=self._admission.key,
                ssl_ca_certs=None if authority is None else str(authority),
                ssl_cert_reqs=ssl.CERT_NONE if authority is None else ssl.CERT_REQUIRED,
                loop="none",
                http=Bounded.of(_most_connections()),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
                h11_max_incomplete_event_size=LONGEST_HEAD,
            )
        )
        try:
            await server.serve(sockets=self._sockets)
        finally:
            self.desk.sight.close()
            if server.started:
                with anyio.CancelScope(shield=True):
                    await server.shutdown(sockets=self._sockets)
            for each in self._sockets:
                each.close()


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _guarded(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    try:
        await work()
    except Exception as error:  # whatever it is
        log.exception("a part of HTTP ended", reason=repr(error))


def _quieten() -> None:
    """What uvicorn logs is about its own affairs; a request that fails is logged by the application."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


def _most_connections() -> int:
    """As many as leave half of the files that this process may open to everything else."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(files // 2, MOST_CONNECTIONS)
