"""A server that takes renewals and refuses commands: a full stream."""

from __future__ import annotations

import json

import pytest

from cdm.store.bucket import Bucket
from tests.harness.nodes import nodes_on
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio


async def test_a_full_stream_is_told_and_small_orders_still_get_through(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        leader = await nodes.leader()
        bucket: Bucket = leader.node.buckets["slices"]
        info = await bucket.connection.api(f"STREAM.INFO.{bucket.stream}")
        limit = {"max_bytes": info["state"]["bytes"] + 4_000}
        await bucket.connection.api(f"STREAM.UPDATE.{bucket.stream}", {**info["config"], **limit})
        await user.put("blueprints", "g/big/1", 200)
        await user.put("blueprints", "g/small/1", 1)

        async def told() -> bool:
            found = (await user.contents("status")).get("g/big/1")
            return found is not None and "cannot be stored" in json.loads(found.data)["reason"]

        await eventually(told, 10)
        await eventually(lambda: _holds(user, "g/small/1", 1), 10)
        await bucket.connection.api(f"STREAM.UPDATE.{bucket.stream}", info["config"])
        await eventually(lambda: _holds(user, "g/big/1", 200), 10)
        assert leader.managing.election.tenure is not None


async def _holds(user: Raw, artifact: str, count: int) -> bool:
    found = await user.contents("slices")
    return sum(artifact in key for key in found) == count
