"""A small web service, the slice of ``cdm demo`` and of the README: it tells which slice it is, and its pid.

It is pushed as it is: nodes run it alone, without the package around it.
"""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    """Answers every GET with one line."""

    def do_GET(self) -> None:
        """Say who answers."""
        greeting = os.environ.get("GREETING", "hello")
        line = f"{greeting} from {os.environ.get('CDM_SLICE')}, pid {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(line)))
        self.end_headers()
        self.wfile.write(line)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["CDM_PORT"])), Answer).serve_forever()
