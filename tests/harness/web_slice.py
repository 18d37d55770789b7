"""A web service to be released: it is pushed as it is, and uses nothing but the standard library.

Every GET is answered with one line of JSON: which artifact and slice answers, its variable ``LEVEL``, and its pid. Told
to stop, it answers whom it has accepted, and ends. The variable ``FAIL`` makes it a bad one:

- ``start``: it ends at once;
- ``hang``: it runs, and never listens;
- ``500``: it answers nothing but 500; ``500:3`` from three seconds on;
- ``crash:3``: it ends after so many seconds;
- ``if:/a/path``: it ends as soon as there is such a file.

``SLOW=0.2`` makes each answer take so long. ``LISTEN`` is the address that it listens on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
FAIL, _, DETAIL = os.environ.get("FAIL", "").partition(":")
AFTER = float(DETAIL or 0) if FAIL in ("500", "crash") else 0.0
SLOW = float(os.environ.get("SLOW", "0"))
LINE = json.dumps(
    {
        "artifact": os.environ.get("CDM_ARTIFACT", "?"),
        "slice": os.environ.get("CDM_SLICE", "?"),
        "level": os.environ.get("LEVEL", ""),
        "pid": os.getpid(),
    }
)
answering: set[asyncio.Task[None]] = set()
"""Answers under way."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, and hang up."""
    task = asyncio.current_task()
    assert task is not None
    answering.add(task)
    try:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(SLOW)
        bad = FAIL == "500" and time.monotonic() >= STARTED + AFTER
        status = "500 Out of order" if bad else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(LINE)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + LINE.encode())
        await writer.drain()
    except (OSError, EOFError):
        pass  # who asked has hung up, or only looked whether somebody listens
    finally:
        writer.close()
        answering.discard(task)


def end_where_it_is(path: Path) -> None:
    """End at once, if there is such a file."""
    if path.exists():
        os._exit(7)


async def serve() -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    if FAIL == "hang":
        await stopped.wait()
        return
    address = os.environ.get("LISTEN", "127.0.0.1")
    server = await asyncio.start_server(answer, address, int(os.environ["CDM_PORT"]), backlog=1000)
    if FAIL == "crash":
        asyncio.get_running_loop().call_later(AFTER, os._exit, 7)
    while FAIL == "if" and not stopped.is_set():
        end_where_it_is(Path(DETAIL))
        await asyncio.sleep(0.05)
    await stopped.wait()
    await asyncio.sleep(0.1)  # who was accepted as the signal came is among those who are answered
    server.close()
    while answering:
        await asyncio.wait(answering)


if __name__ == "__main__":
    if FAIL == "start":
        sys.exit("there is nothing to start")
    asyncio.run(serve())
