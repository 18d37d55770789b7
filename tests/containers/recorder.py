"""Records what the buckets' streams store, message by message.

It hears of every stored message through the streams' republishing: the server that leads a stream says there, as it
stores a message, what it stored, under which number and after which. A consumer would miss what is written over at
once, for a bucket keeps one value a key. One connection to each server goes on hearing when a server is lost.

It takes nothing from cdm, as the auditor does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime

import nats.errors
from nats.aio.msg import Msg

from tests.containers.auditor import Entry, History
from tests.harness.servers import raw_client
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, Rejection

BUCKETS = ("slices", "nodes", "blueprints")


class Recorder:
    """Keeps what was stored. Made by `recording`."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], Entry] = {}
        self.contradictions: list[str] = []
        """Numbers under which two servers stored different things."""

    async def hear(self, message: Msg) -> None:
        """Take one republished message."""
        headers = dict(message.headers or {})
        _, bucket, key = message.subject.split(".", 2)
        entry = Entry(
            bucket,
            key,
            int(headers["Nats-Sequence"]),
            _seconds(headers["Nats-Time-Stamp"]),
            int(headers["Nats-Last-Sequence"]),
            message.data,
            headers,
        )
        known = self._found.setdefault((bucket, entry.sequence), entry)
        if (known.key, known.data) != (entry.key, entry.data):
            self.contradictions.append(f"{known} and {entry}")

    def entries(self, bucket: str) -> list[Entry]:
        """What one bucket stored, in its order."""
        return sorted((e for e in self._found.values() if e.bucket == bucket), key=lambda entry: entry.sequence)

    @property
    def history(self) -> History:
        """All that was recorded."""
        return History({bucket: self.entries(bucket) for bucket in BUCKETS})

    async def complete(self, user: Raw) -> History:
        """All up to now; fails where something was not heard."""

        async def all_heard() -> bool:
            for bucket in BUCKETS:
                try:
                    last = (await user.api(f"STREAM.INFO.KV_{bucket}"))["state"]["last_seq"]
                except (Rejection, nats.errors.Error):
                    return False
                if (bucket, last) not in self._found:
                    return False
            return True

        await eventually(all_heard, 15, "all that is stored is recorded")
        return self.history


@asynccontextmanager
async def recording(user: Raw, urls: Iterable[str]) -> AsyncIterator[Recorder]:
    """Record what is stored in the buckets, which must be there and be empty, from now on."""
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        for url in urls:
            client = await stack.enter_async_context(raw_client(url))
            await client.subscribe("audit.>", cb=recorder.hear)
            await client.flush()
        for bucket in BUCKETS:
            info = await user.api(f"STREAM.INFO.KV_{bucket}")
            assert info["state"]["messages"] == 0, f"{bucket} was written before it was recorded"
            again = {"src": f"$KV.{bucket}.>", "dest": f"audit.{bucket}.>"}
            await user.api(f"STREAM.UPDATE.KV_{bucket}", {**info["config"], "republish": again})
        yield recorder


def _seconds(timestamp: str) -> float:
    head, _, fraction = timestamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}+00:00").timestamp() + float(f"0.{fraction or 0}")
