"""What all versions of a service write: a reader for each version, and their lines in one order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm.cli.known import all_artifacts, nearest
from cdm.cli.router import keys_of
from cdm.cli.wording import natural
from cdm.dispatch.messages import Message, ValuePut
from cdm.errors import OutputMissing, OutputUnknown, innermost
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.keys import SLICES, SliceKey
from cdm.output.client import Reader
from cdm.output.merging import Merging
from cdm.output.source import Registered, Shown
from cdm.output.wire import LogRequest
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

MOST_VERSIONS = 16
"""Most versions that are asked for at the same time: a node has only so many sessions for all who ask."""


class ServiceReader:
    """Asks for the output of a service's versions.

    Args:
        connection: to NATS.
        request: what is asked for of each version.
        only: the one node to ask; None: all of them.
        write: called with lines in the order that they are to be shown in.
        remark: called with what the user is to know besides.
    """

    def __init__(
        self,
        connection: Connection,
        request: LogRequest,
        only: NodeId | None,
        write: Callable[[list[Shown]], Awaitable[None]],
        remark: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._request = request
        self._only = only
        self._write = write
        self._tell = remark
        self._told: set[str] = set()
        self._complete = True
        self._found = False
        """Whether any version has output."""
        self._unknown = ""
        """Why it is not known whether a version has some; empty: it is known of all."""

    async def run(self, service: Service, hosts: Sequence[Registered]) -> bool:
        """Hand on what there is; returns whether nothing was missing.

        Raises:
            StoreError: which versions there are cannot be read; it may be in an exception group.
            OutputMissing, OutputUnknown, AccessDenied: as in `Reader.run`.
        """
        if self._request.follow:
            await self._follow(service, hosts)
            return self._complete
        known = await all_artifacts(self._connection)
        versions = sorted((each for each in known if each.service == service), key=lambda each: natural(each.version))
        if not versions:
            meant = nearest(str(service), {each.service for each in known})
            raise OutputMissing(f"nothing is known of service {service}{meant}")
        if left_out := versions[:-MOST_VERSIONS]:
            self._remark(f"note: left out are {len(left_out)} older versions, up to {left_out[-1].version}")
        merging = Merging(len(versions[-MOST_VERSIONS:]), self._write)
        async with anyio.create_task_group() as tasks:
            for number, version in enumerate(versions[-MOST_VERSIONS:]):
                tasks.start_soon(self._read_once, version, hosts, merging, number)
            await merging.run()
        if not self._found and self._unknown:
            raise OutputUnknown(f"no output of any version of {service} was found: {self._unknown}")
        if not self._found:
            raise OutputMissing(f"there is no output of any version of {service}")
        return self._complete

    async def _read_once(self, version: Artifact, hosts: Sequence[Registered], merging: Merging, number: int) -> None:
        try:
            complete = await self._reader(version, merging.of(number)).run(hosts)
            self._complete &= complete  # as it is by now
            self._found = True
        except* OutputUnknown as errors:
            self._complete = False
            self._unknown = str(innermost(errors))
        except* OutputMissing:
            pass  # another version may have some
        finally:
            merging.over(number)

    async def _follow(self, service: Service, hosts: Sequence[Registered]) -> None:
        """Follow each version from when there is a slice of it."""
        fresh: list[Artifact] = []
        known: set[Artifact] = set()
        news, writing = Wakeup(), anyio.Lock()

        def on_message(message: Message) -> None:
            key = message.key if isinstance(message, ValuePut) else None
            if isinstance(key, SliceKey) and key.artifact.service == service and key.artifact not in known:
                known.add(key.artifact)
                fresh.append(key.artifact)
                news.set()

        def on_live(live: bool) -> None:
            if live and not known:
                self._remark(f"note: there is no slice of {service} yet; waiting")

        async def write(lines: list[Shown]) -> None:
            async with writing:
                await self._write(lines)

        watch = Watch(Bucket(self._connection, SLICES), on_message, keys=keys_of(service), on_live=on_live)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            while True:
                await news.wait()
                while fresh:
                    tasks.start_soon(self._reader(fresh.pop(), write).run, hosts)

    def _reader(self, version: Artifact, write: Callable[[list[Shown]], Awaitable[None]]) -> Reader:
        request = replace(self._request, artifact=str(version))
        return Reader(self._connection, request, self._only, write, self._remark, _nothing)

    def _remark(self, text: str) -> None:
        """Every reader tells of every node: once is enough."""
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


async def _nothing() -> str:
    return ""
