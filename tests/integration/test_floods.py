"""A node that opens atomic batches all the time holds nobody up: commands, take-overs and statuses go on."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from cdm.dispatch.messages import Written
from cdm.model.keys import FENCE, SLICES
from cdm.store.batch import Write
from cdm.store.bucket import Bucket
from tests.harness.flooding import flood, floodable
from tests.harness.judging import assert_terms_grow
from tests.harness.nodes import nodes_on
from tests.harness.servers import FORGIVEN, running_cluster
from tests.harness.store import connected
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import Raw, artifact_of, raw
from tests.integration.test_writer import BIG, SMALL, desk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def placed(user: Raw, artifact: str, instances: int) -> None:
    """A blueprint that is put now has all its commands within the second that is promised."""
    await user.put("blueprints", artifact, instances)

    async def there() -> bool:
        return sum(artifact_of(key) == artifact for key in await user.slices()) == instances

    await in_time(there, 1, f"{artifact} has its commands")


async def test_commands_go_one_by_one_in_order_and_in_batches_again_afterwards(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, desk(server) as each, raw(server) as user:
        async with flood(server):
            each.order(BIG, 50)
            each.order(SMALL, 5)
            await eventually(lambda: len(each.said) == 2, 10)
            assert [type(said) for said in each.said] == [Written, Written]
            found = sorted((await user.contents("slices")).values(), key=lambda record: record.sequence)
            commands = [record for record in found if record.key.startswith("n1.")]
            ordinals = [int(record.key.rpartition("/")[2]) for record in commands if record.key.count("/") == 3]
            assert len(commands) == 55
            assert ordinals == [*range(1, 50), *range(1, 5)]
            assert not any("Nats-Batch-Id" in record.headers for record in commands)

        async def in_a_batch() -> bool:
            each.order(BIG, 3)
            await eventually(lambda: len(each.said) > 2, 10)
            await anyio.sleep(0.2)
            records = await user.contents("slices")
            return any("Nats-Batch-Id" in record.headers for key, record in records.items() if key.startswith("n1."))

        await eventually(in_a_batch, 20, "the server takes batches again, and gets them")


async def test_a_deposed_leader_is_fenced_in_a_flood_too(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, desk(server) as each, flood(server):
        each.order(BIG, 5)
        await eventually(lambda: len(each.said) == 1, 10)
        stored = await each.stored()
        await each.bucket.put(FENCE, b'{"term":2}')
        each.order(SMALL, 5)
        await eventually(lambda: each.fenced, 10)
        assert await each.stored() == stored


async def test_new_commands_are_stored_within_a_second_in_a_flood(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        async with flood(server):
            for number in range(5):
                await placed(user, f"org.example/one/1.0.{number}", 4)
                await eventually(lambda number=number: user.status(f"org.example/one/1.0.{number}"), 10)  # type: ignore[misc]
        await placed(user, "org.example/two/1.0.0", 4)
        nodes.unharmed()


async def test_a_dead_leader_is_replaced_in_a_flood(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=20.0, node_ttl=20.0) as nodes:
            await nodes.start("n1", "n2", "n3")
            term = (await nodes.leader()).active
            async with flood(server):
                for _ in range(2):
                    first = await nodes.leader()
                    await anyio.sleep(1.1)  # followers get to know the term; before that they do not judge it
                    await first.crash()
                    second = await nodes.leader(above=term, promised=2)
                    term = second.active
                    await placed(user, f"org.example/one/1.0.{term}", 3)
            assert_terms_grow(await user.recorded())
            nodes.unharmed()


async def test_three_servers_are_flooded() -> None:
    """There a second guarded write in flight is refused, and a command is acknowledged when two servers have it."""
    async with running_cluster() as servers, raw(servers) as user, nodes_on(servers[0], replicas=3) as nodes:
        await nodes.start("n1", "n2", "n3")
        first = await nodes.leader(within=30)
        term = first.active
        async with flood(servers[0]):
            await placed(user, "org.example/one/1.0.0", 20)
            await first.crash()
            await nodes.leader(above=term)
            await placed(user, "org.example/one/1.0.1", 20)


async def test_a_leader_that_stops_hands_over_in_a_flood(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=10.0, node_ttl=10.0) as nodes:
            await nodes.start("n1", "n2")
            first = await nodes.leader()
            term = first.active
            async with flood(server):
                await first.stop()
                await nodes.leader(above=term, promised=2)
                await placed(user, "org.example/one/1.0.0", 1)
            assert_terms_grow(await user.recorded())


async def test_what_is_written_all_at_once_is_written_one_by_one_in_a_flood(tmp_path: Path) -> None:
    async with floodable(tmp_path) as server, connected(server) as connection:
        bucket = Bucket(connection, SLICES)
        await bucket.ensure(create=True)
        async with flood(server):
            await bucket.write_all([Write(f"n2.g/a/{number}", b"{}") for number in range(10)])
            assert len(await bucket.subjects(bucket.subject("n2.>"))) == 10
