"""Asks the demo's web service as a client would: where ``cdm endpoints`` says, one try each, on new connections."""

from __future__ import annotations

import random
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

import anyio
import anyio.to_thread

from cdm import clock
from cdm.errors import CdmError
from cdm.manager.service_view import ServiceView
from cdm.model.artifact import Service

RATE = 50.0
"""Requests a second."""
MOST_AT_ONCE = 20
"""Requests under way. A machine too busy for more is asked less often: a request that waits goes out to where it could
be sent a while ago."""
TIMEOUT = 10.0
"""Seconds without an answer after which a request has failed."""


class HttpReply(NamedTuple):
    """What a slice replied to a GET."""

    port: int
    slice: str
    pid: int

    @property
    def url(self) -> str:
        """Where the slice listens."""
        return f"http://127.0.0.1:{self.port}"


async def get(port: int, address: str = "127.0.0.1") -> HttpReply:
    """GET from a slice, once, on a new connection.

    Raises:
        CdmError: it does not reply, or not as the demo's web service does.
    """
    return await anyio.to_thread.run_sync(_get, port, address)


def _get(port: int, address: str) -> HttpReply:
    connection = HTTPConnection(address, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        line = response.read().decode()
        said, _, pid = line.partition(" from ")[2].rpartition(", pid ")
        if response.status == 200:
            return HttpReply(port, said, int(pid))
        raise CdmError(f"{address}:{port} replied {response.status}")
    except (OSError, HTTPException, ValueError) as error:
        raise CdmError(f"{address}:{port}: {error or type(error).__name__}") from None
    finally:
        connection.close()


class Caller:
    """Sends requests to a service all the time, and counts what comes of them.

    Args:
        service: which service.
    """

    def __init__(self, service: Service) -> None:
        self.view = ServiceView(service)
        """What is known of the service; to be told of every message about ``slices`` and ``nodes``."""
        self.answers: Counter[str] = Counter()
        """How many requests each version has answered."""
        self.failures: list[str] = []
        """What each failed request ran into."""
        self._under_way = 0
        self._begun = anyio.Event()
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()

    @property
    def asked(self) -> int:
        """How many requests are over."""
        return self.answers.total() + len(self.failures)

    async def run(self) -> None:
        """Ask from `begin` until `stop`, and wait for the last replies."""
        await self._begun.wait()
        self.view.connected(clock.now())
        async with anyio.create_task_group() as tasks:
            while not self._stopping.is_set():
                if self._under_way < MOST_AT_ONCE:
                    self._under_way += 1
                    tasks.start_soon(self._ask)
                with anyio.move_on_after(1 / RATE):
                    await self._stopping.wait()
        self._stopped.set()

    def begin(self) -> None:
        """There is somebody to ask now."""
        self._begun.set()

    async def stop(self) -> None:
        """Ask no more; returns when the last request is over."""
        self._stopping.set()
        await self._stopped.wait()

    async def _ask(self) -> None:
        try:
            version = await self._answer()
        except CdmError as error:
            self.failures.append(str(error))
        else:
            self.answers[version] += 1
        finally:
            self._under_way -= 1

    async def _answer(self) -> str:
        """Send one request; returns the version that answered, if it is the one that was asked."""
        self.view.tick(clock.now())
        if not (able := self.view.endpoints()):
            raise CdmError("there was nobody to ask")
        (to,) = random.choices(able, [each.weight for each in able])
        reply = await get(to.port, to.address)
        if not reply.slice.partition("#")[0].endswith(f":{to.version}"):
            raise CdmError(f"{reply.slice} replied where {to.version} was asked")
        return to.version
