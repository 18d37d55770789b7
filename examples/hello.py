"""A web service to try cdm with: every GET is answered with the slice's name and its pid."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = os.environ.get("GREETING", "hello")  # a variable that a blueprint can set
SLICE = os.environ.get("CDM_SLICE", "nowhere")  # cdm tells each slice which one it is
PORT = int(os.environ.get("CDM_PORT", "8080"))  # and, where the manifest asks for one, its port


class Hello(BaseHTTPRequestHandler):
    """Answers with one line."""

    def do_GET(self) -> None:
        """Greet."""
        body = f"{GREETING} from {SLICE}, pid {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Hello).serve_forever()
