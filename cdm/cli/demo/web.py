"""A small web service that says which slice it is, and its pid: what ``cdm demo`` and the README run.

The file is pushed as it is: nodes run it without the package around it.
"""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HelloHandler(BaseHTTPRequestHandler):
    """Replies to every GET with one line."""

    def do_GET(self) -> None:
        """Say which slice this is."""
        greeting = os.environ.get("GREETING", "hello")
        line = f"{greeting} from {os.environ.get('CDM_SLICE')}, pid {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(line)))
        self.end_headers()
        self.wfile.write(line)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["CDM_PORT"])), HelloHandler).serve_forever()
