"""A client as a router has them: it takes the addresses of a service from a command, and asks there all the time.

``python tests/harness/prober.py --rate 50 -- COMMAND…``: each line of the command's output is a JSON object whose
``endpoints`` are all that may be sent to from now on, each with ``address``, ``port``, ``weight``, ``node`` and
``version``. Requests go out at the rate, one try each, on a new connection each. It writes READY once there is somebody
to ask, from then on with each list and each request how many of both there were, and on SIGTERM, when the last ones are
answered, a summary as one line of JSON.

It is a process of its own, and takes nothing from cdm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class Endpoint(NamedTuple):
    """Somebody who may be asked."""

    address: str
    port: int
    weight: float
    node: str
    version: str

    def __str__(self) -> str:
        return f"{self.version} on {self.node} at {self.address}:{self.port}"


class Failed(Exception):
    """A request was not answered as it should be; says how."""


class Prober:
    """Asks, and keeps count.

    Args:
        rate: requests a second.
        timeout: seconds after which a request has failed.
    """

    def __init__(self, rate: float, timeout: float) -> None:
        self.stopped = asyncio.Event()
        self._rate = rate
        self._timeout = timeout
        self._endpoints: list[Endpoint] = []
        self._known = asyncio.Event()
        self._requests = 0
        self._lists = 0
        self._slowest = 0.0
        self._answers: Counter[str] = Counter()
        self._first: dict[str, float] = {}
        self._failures: list[dict[str, Any]] = []

    async def follow(self, command: Sequence[str]) -> None:
        """Take the addresses from the command's output, line by line."""
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**22)
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._hear(line)
            if not self.stopped.is_set():
                self._fail("the list", f"it ended with exit code {await process.wait()}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _hear(self, line: bytes) -> None:
        try:
            told = json.loads(line)["endpoints"]
            self._endpoints = [
                Endpoint(each["address"], each["port"], each["weight"], each["node"], each["version"]) for each in told
            ]
        except (ValueError, LookupError, TypeError) as error:
            self._fail("the list", f"{error!r} in {line.decode(errors='replace').strip()}")
            return
        self._lists += 1
        if self._endpoints and not self._known.is_set():
            self._known.set()
            print("READY", flush=True)
        self._tell()

    def _tell(self) -> None:
        if self._known.is_set():
            print(self._lists, self._requests, flush=True)

    async def ask(self) -> None:
        """Send requests at the rate, from the moment on that there is somebody to ask, until it is told to stop."""
        await self._known.wait()
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self.stopped.is_set():
            task = asyncio.create_task(self._one())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            # What a busy machine did not let it send is left out: no bursts.
            due = max(due + 1 / self._rate, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        if under_way:
            await asyncio.wait(under_way)

    async def _one(self) -> None:
        self._requests += 1
        self._tell()
        able = [each for each in self._endpoints if each.weight > 0]
        if not able:
            self._fail("nobody", "there is no endpoint to ask")
            return
        (to,) = random.choices(able, [each.weight for each in able])
        began = time.monotonic()
        try:
            await asyncio.wait_for(self._request(to), self._timeout)
        except TimeoutError:
            self._fail(str(to), f"no answer within {self._timeout:g} s", began)
        except (OSError, EOFError, Failed) as error:
            self._fail(str(to), f"{type(error).__name__}: {error}", began)
        else:
            self._answers[to.version] += 1
            self._first.setdefault(to.version, time.time())
            self._slowest = max(self._slowest, time.monotonic() - began)

    async def _request(self, to: Endpoint) -> None:
        reader, writer = await asyncio.open_connection(to.address, to.port)
        try:
            writer.write(f"GET / HTTP/1.1\r\nHost: {to.address}\r\nConnection: close\r\n\r\n".encode())
            answer = (await reader.read(-1)).decode(errors="replace")
        finally:
            writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        if " 200 " not in head.partition("\r\n")[0]:
            raise Failed(head.partition("\r\n")[0] or "an empty answer")
        try:
            artifact = json.loads(body)["artifact"]
        except (ValueError, LookupError):
            raise Failed(f"half an answer: {body!r}") from None
        if not str(artifact).endswith(f":{to.version}"):
            raise Failed(f"{artifact} answered")

    def _fail(self, to: str, reason: str, began: float | None = None) -> None:
        after = 0.0 if began is None else time.monotonic() - began
        self._failures.append({"time": time.time(), "to": to, "reason": reason, "after": round(after, 3)})

    @property
    def summary(self) -> dict[str, Any]:
        """What came of it."""
        return {
            "requests": self._requests,
            "answers": dict(self._answers),
            "first": self._first,
            "slowest": round(self._slowest, 3),
            "lists": self._lists,
            "failures": self._failures,
        }


async def probe(command: Sequence[str], rate: float, timeout: float) -> dict[str, Any]:
    """Ask until SIGTERM."""
    prober = Prober(rate, timeout)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, prober.stopped.set)
    following = asyncio.create_task(prober.follow(command))
    asking = asyncio.create_task(prober.ask())
    await prober.stopped.wait()
    if prober._known.is_set():
        await asking
    following.cancel()
    await asyncio.wait([following])
    return prober.summary


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds after which a request has failed")
    parser.add_argument("command", nargs="+", help="what tells the addresses")
    chosen = parser.parse_args()
    json.dump(asyncio.run(probe(chosen.command, chosen.rate, chosen.timeout)), sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
