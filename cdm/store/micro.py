"""Answers about a process as a NATS micro service does, so that ``nats micro`` lists it, and shows what it has done.

The client library has such services too, and they are not used. They answer at whatever subject a request names:
whoever may ask could have a node write a key, or a command, in its own name. And they keep nine subscriptions, each
with a task of its own, where three do. What is on the wire is theirs: ``$SRV.PING``, ``INFO`` and ``STATS``, of all
services, of those of one name, or of one process. At rest nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import msgspec
from msgspec import Struct

from cdm.errors import AccessDenied, StoreError
from cdm.log import Log
from cdm.store.connection import Connection
from cdm.store.library import Msg
from cdm.store.listening import subscribed_in_time

log = Log("cdm.nats")

_ROOT = "$SRV"
_TYPE = "io.nats.micro.v1.{}_response"


class EndpointTally:
    """What is told of one subject at which a process answers: how often it was asked, how long that took, what failed.

    Args:
        name: the endpoint's.
        subject: where it is asked.
        queue: those who share the requests; empty: nobody does.
        about: for people; empty: nothing.
    """

    def __init__(self, name: str, subject: str, queue: str = "", about: str = "") -> None:
        self.name = name
        self.subject = subject
        self.queue = queue
        self.about = about
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.nanoseconds = 0
        """Spent on all requests."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """One request is dealt with in the ``with`` block."""
        self.requests += 1
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self.nanoseconds += time.perf_counter_ns() - began

    def failed(self, reason: str) -> None:
        """One of them failed."""
        self.errors += 1
        self.last_error = reason


class ServiceIdentity(Struct, frozen=True):
    """Which service this is. Name and id are subject tokens, the version a semantic one."""

    name: str
    id: str
    version: str
    description: str
    metadata: dict[str, str]


class MicroService:
    """Answers for one process.

    Args:
        connection: the process's.
        identity: which service it is.
        tallies: tells of all its endpoints, as they are now.
        data: tells more of the process as it is now, beside the first endpoint.
    """

    def __init__(
        self,
        connection: Connection,
        identity: ServiceIdentity,
        tallies: Callable[[], Sequence[EndpointTally]],
        data: Callable[[], Mapping[str, object]],
    ) -> None:
        self._connection = connection
        self._identity = identity
        self._tallies = tallies
        self._data = data
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._answers = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}

    async def run(self) -> None:
        """Begin to answer; where this user may not, nobody is told of the process."""
        name, own = self._identity.name, self._identity.id
        for subject in (f"{_ROOT}.*", f"{_ROOT}.*.{name}", f"{_ROOT}.*.{name}.{own}"):
            subscribe = partial(self._connection.subscribe, subject, self._on_message)
            try:
                await subscribed_in_time(self._connection, subject, subscribe)
            except AccessDenied:
                log.debug("nats micro does not show this process: it may not subscribe there", subject=subject)
                return

    async def _on_message(self, message: Msg) -> None:
        answer = self._answers.get(message.subject.split(".")[1])
        if answer is not None and self._connection.may_answer(message.reply):
            with suppress(StoreError):
                await self._connection.publish(message.reply, msgspec.json.encode(answer()))

    def _ping(self) -> dict[str, object]:
        who = self._identity
        known = {"name": who.name, "id": who.id, "version": who.version, "metadata": who.metadata}
        return {"type": _TYPE.format("ping"), **known}

    def _info(self) -> dict[str, object]:
        return {
            **self._ping(),
            "type": _TYPE.format("info"),
            "description": self._identity.description,
            "endpoints": [
                {**_endpoint(each), "metadata": {"about": each.about} if each.about else {}} for each in self._tallies()
            ],
        }

    def _stats(self) -> dict[str, object]:
        tallies = self._tallies()
        return {
            **self._ping(),
            "type": _TYPE.format("stats"),
            "started": self._started,
            "endpoints": [
                {
                    **_endpoint(each),
                    "num_requests": each.requests,
                    "num_errors": each.errors,
                    "last_error": each.last_error,
                    "processing_time": each.nanoseconds,
                    "average_processing_time": each.nanoseconds // each.requests if each.requests else 0,
                    **({"data": dict(self._data())} if each is tallies[0] else {}),
                }
                for each in tallies
            ],
        }


def _endpoint(tally: EndpointTally) -> dict[str, object]:
    return {"name": tally.name, "subject": tally.subject, "queue_group": tally.queue}
