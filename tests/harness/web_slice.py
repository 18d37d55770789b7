"""A web service to be released: it is pushed as it is, and uses nothing but the standard library.

Every GET is answered with one line of JSON: which artifact and slice answers, its variable ``LEVEL``, and its pid. Told
to stop, it answers whom it has accepted, and ends. The variable ``FAIL`` makes it a bad one:

- ``start``: it ends at once;
- ``hang``: it runs, and never listens;
- ``500``: it answers nothing but 500; ``500:3`` from three seconds on;
- ``crash:3``: it ends after so many seconds.

``SLOW=0.2`` makes each answer take so long.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

STARTED = time.monotonic()
FAIL, _, _AFTER = os.environ.get("FAIL", "").partition(":")
AFTER = float(_AFTER or 0)
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


async def serve() -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    if FAIL == "hang":
        await stopped.wait()
        return
    server = await asyncio.start_server(answer, "127.0.0.1", int(os.environ["CDM_PORT"]), backlog=1000)
    if FAIL == "crash":
        asyncio.get_running_loop().call_later(AFTER, os._exit, 7)
    await stopped.wait()
    server.close()
    if answering:
        await asyncio.wait(answering)


if __name__ == "__main__":
    if FAIL == "start":
        sys.exit("there is nothing to start")
    asyncio.run(serve())
