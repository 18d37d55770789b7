"""A real HTTP server for tests, in threads of this process, that answers as it is told to: also badly."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Site:
    """What the server answers, and what it was asked. Made by `site`."""

    def __init__(self) -> None:
        self.port = 0
        self.pages: dict[str, Page] = {}
        """By path, without what follows a question mark."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Targets and headers, in order."""
        self.at_once = 0
        self.most_at_once = 0
        self.over = threading.Event()
        """Ends what hangs."""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it is, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def says(self, path: str, body: str | bytes = b"", status: int = 200, **headers: str) -> None:
        """Answer so from now on."""
        told = body.encode() if isinstance(body, str) else body
        self.pages[path] = lambda request: request.say(status, told, headers)

    def measures(self, value: Callable[[str], list[str]]) -> None:
        """Answer as the query API of Prometheus does: with the samples that the query has."""

        def answer(request: Request) -> None:
            asked = parse_qs(urlsplit(request.path).query)
            timeout = asked.get("timeout", ["1"])[0]
            if not re.fullmatch(r"[0-9.]+|[0-9]+(ms|[smhdwy])", timeout):
                problem = f'invalid parameter "timeout": cannot parse "{timeout}" to a valid duration'
                request.say(
                    400, json.dumps({"status": "error", "errorType": "bad_data", "error": problem}).encode(), {}
                )
                return
            samples = [{"metric": {}, "value": [time.time(), each]} for each in value(asked["query"][0])]
            told = {"status": "success", "data": {"resultType": "vector", "result": samples}}
            request.say(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

        self.pages["/api/v1/query"] = answer

    def begun(self, request: Request) -> None:
        """A request came."""
        with self._lock:
            self.asked.append((request.path, dict(request.headers)))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)

    def ended(self) -> None:
        """It is over."""
        with self._lock:
            self.at_once -= 1


class Request(BaseHTTPRequestHandler):
    """One request, being answered."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_PUT(self) -> None:
        """Answer it."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer it."""
        self.site.begun(self)
        try:
            page = self.site.pages.get(urlsplit(self.path).path)
            with suppress(ConnectionError):
                if page is None:
                    self.say(404, b"there is no such page", {})
                else:
                    page(self)
        finally:
            self.site.ended()

    def say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


Page = Callable[[Request], None]


class _Server(ThreadingHTTPServer):
    request_queue_size = 1_000
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


@contextmanager
def site(wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock) -> Iterator[Site]:
    """A server for the time of the ``with`` block.

    Args:
        wrap: what is made of its socket, for TLS.
    """
    made = Site()
    server = _Server(("127.0.0.1", 0), type("Asked", (Request,), {"site": made}))
    server.socket = wrap(server.socket)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def raw_site(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with each connection whatever ``answer`` does; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            answer(sock)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
