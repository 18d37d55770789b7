"""Orders on their way to the server, batch by batch."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from cdm import clock
from cdm.dispatch.messages import FenceRenewal, Message, WriteFailed, Written
from cdm.errors import AccessDenied, Conflict, StoreBusy, Uncertain, Unreachable
from cdm.leader.actions import TakeOver
from cdm.leader.batching import Cutter
from cdm.leader.election import Election
from cdm.leader.records import NO_FENCE, Records, Taken, Tenure, Timing, Vacant
from cdm.leader.status_writer import StatusWriter
from cdm.leader.writer import DROPPED, REFUSED, STORED, UNKNOWN, CommandWriter
from cdm.manager.outbox import Order, Outbox
from cdm.manager.plan import Command
from cdm.model.artifact import Artifact
from cdm.model.keys import FENCE, LEASE, SLICES, STATUS, SliceKey, encode
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status
from cdm.store.backpressure import Backpressure
from cdm.store.batch import MAX_BATCH, Batch, Write
from cdm.store.bucket import Bucket
from cdm.wakeup import Wakeup
from tests.harness.servers import NatsServer
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.unit.support import n

pytestmark = pytest.mark.anyio

LOAD = SliceState.LOAD
BIG, SMALL = Artifact("g", "big", "1"), Artifact("g", "small", "1")


class Desk:
    """A leader's writer with nobody around it. Made by `desk`."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.said: list[Message] = []
        self.fenced = False
        self.election = Election(n(1), "me", Timing(ttl=600.0), lambda: 0.5)  # nobody renews it
        self.backpressure = Backpressure()
        self._ready = Wakeup()
        self.outbox = Outbox(self._on_orders, lambda: None)
        self.writer = CommandWriter(
            bucket, self.outbox, self._ready, self.backpressure, self.election, self._on_fenced, self.said.append
        )

    def _on_orders(self) -> None:
        self.backpressure.hold()
        self._ready.set()

    def _on_fenced(self) -> None:
        self.fenced = True

    async def lead(self) -> None:
        now = clock.now()
        self.election.connected(now)
        self.election.read(self.election.reading(), Records(Vacant(0), NO_FENCE), now)
        action = self.election.next(now)
        assert isinstance(action, TakeOver)
        revision = await self.bucket.batch([Write(encode(LEASE), b"{}"), Write(encode(FENCE), b'{"term":1}')])
        self.election.won(action, Taken(revision - 1, revision), now)

    @property
    def tenure(self) -> Tenure:
        """What it holds."""
        assert self.election.tenure is not None
        return self.election.tenure

    def order(self, artifact: Artifact, count: int) -> None:
        keys = (SliceKey(n(1), artifact, ordinal) for ordinal in range(count))
        self.outbox.order(Order(artifact, 1, [Command(key, SliceState.LOAD, "missing") for key in keys]))

    async def limit(self, **limits: int) -> None:
        config: dict[str, Any] = (await self.bucket.connection.api(f"STREAM.INFO.{self.bucket.stream}"))["config"]
        await self.bucket.connection.api(f"STREAM.UPDATE.{self.bucket.stream}", {**config, **limits})

    def count(self, kind: type[Message]) -> int:
        """How many messages of a kind it said."""
        return sum(isinstance(said, kind) for said in self.said)

    async def room(self) -> int:
        """How many batches somebody else can open in the bucket; they are left open."""
        for number in range(100):
            head = {"Nats-Batch-Id": secrets.token_hex(11), "Nats-Batch-Sequence": "1"}
            if await self.bucket.connection.request(self.bucket.subject("n9.g/other/1"), b"{}", head):
                return number  # what is taken is answered with nothing
        raise AssertionError("the server takes any number of batches")

    async def stored(self) -> int:
        info = await self.bucket.connection.api(f"STREAM.INFO.{self.bucket.stream}")
        return int(info["state"]["messages"]) - 2  # lease and fence


@asynccontextmanager
async def desk(server: NatsServer) -> AsyncIterator[Desk]:
    async with connected(server) as connection, anyio.create_task_group() as tasks:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        found = Desk(bucket)
        await found.lead()
        tasks.start_soon(found.writer.run)
        yield found
        tasks.cancel_scope.cancel()


@pytest.mark.quick
def test_what_is_left_of_an_order_that_was_begun_waits_too() -> None:
    outbox, count = Outbox(lambda: None, lambda: None), 2 * MAX_BATCH + 7
    commands = [Command(SliceKey(n(1), BIG, ordinal), SliceState.LOAD, "because") for ordinal in range(count)]
    outbox.order(Order(BIG, 1, commands))
    cutter = Cutter(outbox)
    assert cutter.waiting == count
    cutter.cut(1, one_order=False)
    assert (outbox.queued, cutter.waiting) == (0, MAX_BATCH + 7)


@pytest.mark.quick
async def test_an_order_of_many_batches_is_stored_whole_and_in_order(server: NatsServer) -> None:
    async with desk(server) as each:
        each.order(BIG, 3 * MAX_BATCH + 7)
        each.order(SMALL, 5)
        assert each.writer.waiting == 3 * MAX_BATCH + 12
        await eventually(lambda: len(each.said) == 2, 10)
        assert not each.writer.waiting
        assert each.said == [
            Written(BIG, 1, each.election.tenure.fence_revision + 3 * MAX_BATCH + 12),  # type: ignore[union-attr]
            Written(SMALL, 1, each.election.tenure.fence_revision + 3 * MAX_BATCH + 12),  # type: ignore[union-attr]
        ]
        with bounded():
            await each.backpressure.released()


async def test_what_was_made_ready_behind_a_refused_batch_is_not_sent(server: NatsServer) -> None:
    """Its orders are decided anew: what came of them later would be a surprise."""
    async with desk(server) as each:
        await each.limit(max_msgs=2 + MAX_BATCH + MAX_BATCH // 2)
        each.order(BIG, 2 * MAX_BATCH + MAX_BATCH // 2)
        each.order(SMALL, MAX_BATCH // 2)  # in one batch with the end of the big one
        await eventually(lambda: len(each.said) == 2, 10)
        assert [(type(said), said.artifact) for said in each.said] == [(WriteFailed, BIG), (WriteFailed, SMALL)]  # type: ignore[attr-defined]
        await each.limit(max_msgs=-1)
        with bounded():
            await each.backpressure.released()
        assert await each.stored() == MAX_BATCH
        each.order(SMALL, 5)
        await eventually(lambda: len(each.said) == 3, 10)
        assert isinstance(each.said[-1], Written)
        assert await each.stored() == MAX_BATCH + 5
        assert each.writer.outcomes == {(LOAD, STORED): MAX_BATCH + 5, (LOAD, REFUSED): MAX_BATCH}


async def test_the_server_has_the_next_batch_but_for_its_last_message_before_it_answers(server: NatsServer) -> None:
    async with desk(server) as each:
        stage, commit = each.bucket.stage, each.bucket.commit
        done: list[tuple[str, str]] = []

        async def staged(batch: Batch) -> None:
            await stage(batch)
            done.append(("staged", batch.last.name))

        async def committed(batch: Batch, *more: Any, **options: Any) -> int:
            done.append(("committed", batch.last.name))
            revision = await commit(batch, *more, **options)
            done.append(("stored", batch.last.name))
            return revision

        each.bucket.stage, each.bucket.commit = staged, committed  # type: ignore[method-assign]
        each.order(BIG, 3 * MAX_BATCH)
        await eventually(lambda: len(each.said) == 1, 10)
        first, second, third = (f"n1.g/big/1/{number * MAX_BATCH - 1}" for number in (1, 2, 3))
        assert done == [
            ("staged", first),
            ("committed", first),
            ("staged", second),
            ("stored", first),
            ("committed", second),
            ("staged", third),
            ("stored", second),
            ("committed", third),
            ("stored", third),
        ]
        assert await each.stored() == 3 * MAX_BATCH


@pytest.mark.parametrize("lost", ["nothing was sent", "the server forgot it", "the one before had to be sent again"])
async def test_what_was_sent_ahead_and_is_lost_is_stored_all_the_same(server: NatsServer, lost: str) -> None:
    async with desk(server) as each:
        stage, commit = each.bucket.stage, each.bucket.commit
        staged: list[Batch] = []
        commits: list[Batch] = []

        async def lose(batch: Batch) -> None:
            staged.append(batch)
            if len(staged) == 2 and lost == "nothing was sent":
                raise Unreachable("not connected to NATS")
            if len(staged) != 2 or lost != "the server forgot it":
                await stage(batch)

        async def busy(batch: Batch, timeout: float | None = None, meanwhile: Any = None) -> int:
            commits.append(batch)
            if len(commits) == 1 and lost == "the one before had to be sent again":
                await meanwhile()
                raise StoreBusy("no time")
            return await commit(batch, timeout, meanwhile)

        each.bucket.stage, each.bucket.commit = lose, busy  # type: ignore[method-assign]
        each.order(BIG, 3 * MAX_BATCH)
        await eventually(lambda: len(each.said) == 1, 60)
        assert each.said == [Written(BIG, 1, each.tenure.fence_revision + 3 * MAX_BATCH)]
        assert await each.stored() == 3 * MAX_BATCH
        assert each.writer.outcomes == {(LOAD, STORED): 3 * MAX_BATCH}
        assert len(commits) <= 4, "whole, and not one message after the other"


@pytest.mark.parametrize("outcome", ["refused", "refused, and others stored in between", "unknown"])
async def test_what_is_sent_ahead_and_dropped_leaves_others_room_for_their_batches(
    server: NatsServer, outcome: str
) -> None:
    """The server keeps fifty open, each for ten seconds: no more than one at a time is such a one."""
    async with desk(server) as each:
        commit = each.bucket.commit

        async def lose(batch: Batch, timeout: float | None = None, meanwhile: Any = None) -> int:
            await commit(batch, timeout, meanwhile)
            raise Uncertain("no answer in time")

        if outcome == "unknown":
            each.bucket.commit = lose  # type: ignore[method-assign]
        else:
            await each.limit(max_msgs=2 + 10)
        for number in range(1, 6):
            each.order(BIG, 3 * MAX_BATCH)
            await eventually(lambda number=number: each.count(WriteFailed) == number, 10)  # type: ignore[misc]
            if "between" in outcome:
                each.order(SMALL, 5)
                await eventually(lambda number=number: each.count(Written) == number, 10)  # type: ignore[misc]
        assert await each.room() >= 49


async def test_what_was_made_ready_in_a_term_that_is_over_is_not_sent(server: NatsServer) -> None:
    async with desk(server) as each:
        commit = each.bucket.commit

        async def overtaken(batch: Batch, timeout: float | None = None, meanwhile: Any = None) -> int:
            """The term is over when the first one is stored, and before anybody hears of it."""
            revision = await commit(batch, timeout, meanwhile)
            await each.bucket.put(FENCE, b'{"term":2}')
            return revision

        each.bucket.commit = overtaken  # type: ignore[method-assign]
        each.order(BIG, 5 * MAX_BATCH)
        await eventually(lambda: each.fenced, 10)
        each.election.stepped_down()
        stored = await each.stored()
        assert stored % MAX_BATCH == 0
        await anyio.sleep(0.3)
        assert await each.stored() == stored
        assert not any(isinstance(said, Written) for said in each.said)
        assert each.writer.outcomes[LOAD, DROPPED] >= MAX_BATCH
        assert (each.election.won_terms, each.election.lost_terms) == (1, 1)


async def test_after_an_unknown_outcome_the_fence_keeps_out_what_was_under_way(server: NatsServer) -> None:
    async with desk(server) as each:
        commit = each.bucket.commit
        held: list[Batch] = []

        async def hold_back(batch: Batch, timeout: float | None = None, meanwhile: Any = None) -> int:
            if not held:
                held.append(batch)
                each.order(SMALL, 5)
                raise Uncertain("no answer in time")
            return await commit(batch, timeout, meanwhile)

        each.bucket.commit = hold_back  # type: ignore[method-assign]
        before = each.tenure.fence_revision
        each.order(BIG, 3)
        await eventually(lambda: len(each.said) == 4, 10)
        after = each.tenure.fence_revision
        assert after > before
        assert each.said == [
            FenceRenewal(1, None),
            FenceRenewal(1, after),
            WriteFailed(BIG, 1, after, "no answer in time"),
            WriteFailed(SMALL, 1, after, "no answer in time"),
        ]
        with pytest.raises(Conflict):
            await commit(held[0])
        assert await each.stored() == 0
        stored = await each.bucket.read(FENCE)
        assert stored is not None
        assert msgspec.json.decode(stored.payload or b"") == {"term": 1, "leader": "n1", "incarnation": "me"}
        each.order(BIG, 3)
        await eventually(lambda: len(each.said) == 5, 10)
        assert isinstance(each.said[-1], Written)
        assert each.writer.outcomes == {(LOAD, UNKNOWN): 3, (LOAD, STORED): 3}


async def test_a_fence_whose_answers_are_lost_is_written_until_one_is_answered(server: NatsServer) -> None:
    async with desk(server) as each:
        commit, put = each.bucket.commit, each.bucket.put
        lost: list[str] = []

        async def lose(*arguments: Any, **options: Any) -> int:
            revision = await (commit if isinstance(arguments[0], Batch) else put)(*arguments, **options)
            if len(lost) < 4:
                lost.append(type(arguments[0]).__name__)
                raise Uncertain("no answer in time")
            return revision

        each.bucket.commit = each.bucket.put = lose  # type: ignore[method-assign]
        each.order(BIG, 3)
        await eventually(lambda: len(each.said) == 3, 10)
        # The first try was stored: the second one is refused, and finds it.
        assert lost == ["Batch", "FenceKey"]
        assert each.said[1] == FenceRenewal(1, each.tenure.fence_revision)
        assert await each.stored() == 3
        each.election.valid(clock.now())


async def test_a_missing_permission_to_write_commands_is_no_tight_loop(server: NatsServer) -> None:
    async with desk(server) as each:
        tries: list[float] = []

        async def deny(*_: Any, **__: Any) -> int:
            tries.append(clock.now())
            raise AccessDenied("permission denied")

        each.bucket.commit = deny  # type: ignore[method-assign]
        for number in range(1, 4):
            each.order(BIG, 3)
            await eventually(lambda number=number: len(each.said) == 3 * number, 10)  # type: ignore[misc]
        assert tries[-1] - tries[0] > 0.4
        assert await each.stored() == 0


async def test_a_leader_whose_fence_is_anothers_when_it_writes_it_anew_is_fenced(server: NatsServer) -> None:
    async with desk(server) as each:

        async def lose(*_: Any, **__: Any) -> int:
            await each.bucket.put(FENCE, b'{"term":2,"leader":"n2","incarnation":"it"}')
            raise Uncertain("no answer in time")

        each.bucket.commit = lose  # type: ignore[method-assign]
        each.order(BIG, 3)
        await eventually(lambda: each.fenced, 10)
        assert not each.election.valid(clock.now())
        each.election.stepped_down()
        with bounded():
            await each.writer.drained()
        assert not any(isinstance(said, Written) for said in each.said)


@pytest.mark.parametrize("ends", [True, False])
async def test_statuses_let_commands_go_first_but_not_for_ever(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr("cdm.leader.status_writer.PATIENCE", 600.0 if ends else 0.5)
    async with desk(server) as each, anyio.create_task_group() as tasks:
        bucket, ready, commands = Bucket(each.bucket.connection, STATUS), Wakeup(), Backpressure()
        commands.hold()
        await bucket.ensure(create=True)
        outbox = Outbox(lambda: None, ready.set)
        tasks.start_soon(StatusWriter(bucket, outbox, ready, each.election, commands).run)
        state = await bucket.state()
        outbox.status("g/a/1", Status(Condition.PROGRESSING))
        await anyio.sleep(0.2)
        outbox.status("g/a/1", Status(Condition.READY))
        if ends:
            await anyio.sleep(0.3)
            assert (await bucket.state()).last == state.last
            commands.release()

        async def written() -> bool:
            return (await bucket.state()).last > state.last

        await eventually(written, 5)
        tasks.cancel_scope.cancel()
