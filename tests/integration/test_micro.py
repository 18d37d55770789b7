"""A node answers as a NATS micro service: it tells what it is and has done, and cannot be made to do anything."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from nats.aio.client import Client

from tests.harness.nodes import nodes_on
from tests.harness.servers import NatsServer, raw_client
from tests.harness.waiting import eventually, patience
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.quick]


async def told(client: Client, subject: str, count: int) -> list[dict[str, Any]]:
    """What services answer, of whom so many should; and who does within half a second after that."""
    inbox = client.new_inbox()
    found: list[dict[str, Any]] = []
    subscription = await client.subscribe(inbox)
    await client.publish(subject, reply=inbox)
    with suppress(TimeoutError):
        # Nothing where there is no service.
        while data := (await subscription.next_msg(patience() if len(found) < count else 0.5)).data:
            found.append(json.loads(data))
    await subscription.unsubscribe()
    return found


async def test_nodes_are_shown_with_what_they_have_done(server: NatsServer) -> None:
    async with raw(server) as user, raw_client(server.url) as client, nodes_on(server) as running:
        await running.start("n1", "n.2")
        leader = (await running.leader()).settings.node

        async def both() -> bool:
            return {(each["name"], each["id"]) for each in await told(client, "$SRV.PING", 0)} == {
                ("cdm", "n1"),
                ("cdm", "n=2E2"),
            }

        await eventually(both)
        await client.request("cdm.node.n1", timeout=patience())
        (info,) = await told(client, "$SRV.INFO.cdm.n1", 1)
        assert (info["type"], info["metadata"]["node"]) == ("io.nats.micro.v1.info_response", "n1")
        asked = {each["name"]: each["subject"] for each in info["endpoints"]}
        assert asked == {"node": "cdm.node.n1", "watch": "cdm.watch.*", "messages": "$KV.slices.>"}
        stats = {each["id"]: each for each in await told(client, "$SRV.STATS.cdm", 2)}
        assert stats["n1"]["started"].endswith("Z")
        node, watch, messages = stats["n1"]["endpoints"]
        assert (node["num_requests"], node["num_errors"], watch["num_requests"]) == (1, 0, 0)
        assert 0 < node["average_processing_time"] == node["processing_time"]
        assert messages["num_requests"] > 0
        leading = {each["id"]: each["endpoints"][0]["data"]["leads"] for each in stats.values()}
        assert leading == {"n1": leader == "n1", "n=2E2": leader != "n1"}

        before = await user.contents("slices")
        for reply in ("$KV.slices.n1.g/a/1", "cdm.node.n1"):
            await client.publish("$SRV.PING", reply=reply)
        assert await told(client, "$SRV.NONSENSE", 0) == []
        assert len(await told(client, "$SRV.PING.cdm", 2)) == 2
        assert set(await user.contents("slices")) == {*before}
        running.unharmed()


async def test_clusters_on_one_server_have_names_of_their_own(server: NatsServer) -> None:
    async with raw_client(server.url) as client, nodes_on(server, prefix="P") as running:
        await running.start("n1")

        async def there() -> bool:
            return [each["id"] for each in await told(client, "$SRV.PING.P_cdm", 0)] == ["n1"]

        await eventually(there)
        assert await told(client, "$SRV.PING.cdm", 0) == []
