"""``cdm endpoints`` as its users meet it: real processes on a store that is filled by hand."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.cli.test_cli import run
from tests.harness.listing import listing
from tests.harness.processes import environment
from tests.harness.servers import FORGIVEN, NatsServer, raw_client, running_server
from tests.harness.waiting import bounded, eventually, in_time
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@pytest.fixture
async def user(server: NatsServer) -> AsyncIterator[Raw]:
    """Somebody who writes into a cluster with two nodes, each with an instance of acme:web."""
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        for number in (1, 2):
            await user.put("nodes", f"n{number}", {"address": f"10.0.0.{number}", "ttl": 2})
            await serve(user, f"n{number}.acme/web/{number}", 8000 + number)
        yield user


async def serve(user: Raw, name: str, port: int) -> None:
    await user.put("slices", name, {"state": "ACTIVE", "address": "10.0.0.9", "port": port})


async def endpoints(server: NatsServer, *arguments: str) -> str:
    done = await anyio.to_thread.run_sync(lambda: run("endpoints", *arguments, "--server", server.url))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.quick
async def test_the_list_is_shown_once(server: NatsServer, user: Raw) -> None:
    assert json.loads(await endpoints(server, "acme:web", "--json")) == {
        "service": "acme:web",
        "endpoints": [
            {"address": "10.0.0.9", "port": 8001, "weight": 50.0, "node": "n1", "version": "1"},
            {"address": "10.0.0.9", "port": 8002, "weight": 50.0, "node": "n2", "version": "2"},
        ],
    }
    head, first, second = (await endpoints(server, "acme:web")).splitlines()
    assert head.split() == ["address", "port", "weight", "node", "version"]
    assert first.split() == ["10.0.0.9", "8001", "50", "n1", "1"]
    assert second.split() == ["10.0.0.9", "8002", "50", "n2", "2"]


async def test_a_service_that_serves_nowhere_is_known(server: NatsServer, user: Raw) -> None:
    await user.put("blueprints", "acme/idle/1", 1)
    assert json.loads(await endpoints(server, "acme:idle", "--json"))["endpoints"] == []
    assert await endpoints(server, "acme:idle") == "no instance of acme:idle can be sent requests\n"


async def test_an_unknown_service_is_told_with_the_nearest_name(server: NatsServer, user: Raw) -> None:
    missed = await anyio.to_thread.run_sync(lambda: run("endpoints", "acme:wbe", "--server", server.url))
    assert missed.returncode == 1
    assert missed.stderr == "cdm: there is no service acme:wbe (did you mean acme:web?)\n"
    wrong = await anyio.to_thread.run_sync(lambda: run("endpoints", "acme:web:1", "--server", server.url))
    assert wrong.returncode == 2
    assert "write the service, acme:web" in wrong.stderr


async def test_instances_whose_address_nobody_says_are_left_out_with_a_remark(server: NatsServer, user: Raw) -> None:
    await user.put("nodes", "old", {"version": "0.9"})
    await user.put("slices", "old.acme/web/1", {"state": "ACTIVE", "port": 8003})
    shown = await anyio.to_thread.run_sync(lambda: run("endpoints", "acme:web", "--json", "--server", server.url))
    assert [each["port"] for each in json.loads(shown.stdout)["endpoints"]] == [8001, 8002]
    assert shown.stderr == (
        "cdm: an instance is left out: no node says at which address; those of an earlier cdm do not\n"
    )


@pytest.mark.quick
async def test_each_change_is_told_at_once_and_nothing_else(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with listing(server, "acme:web", tmp_path) as told:
        await told.comes_to(8001, 8002)
        await serve(user, "n1.acme/web/1/1", 8003)
        await told.comes_to(8001, 8002, 8003, promised=0.2)
        assert [each["weight"] for each in told.lists[-1]] == [33.3333] * 3

        count = len(told.lists)
        await serve(user, "n1.acme/other/1", 9000)
        await user.put("nodes", "n1", {"address": "10.0.0.1", "ttl": 2})
        await user.put("slices", "n2.acme/web/2", {"state": "UNLOAD", "after": 5})
        await told.comes_to(8001, 8003, promised=0.2)
        assert len(told.lists) == count + 1

        await user.put("slices", "_rollout.acme/web", rollout("1", "3", 100, 0))
        await serve(user, "n1.acme/web/1", 8005)
        await told.comes_to(8003, 8005, promised=0.2)  # what was written before is known, too
        await serve(user, "n2.acme/web/3", 8004)
        await user.put("slices", "_rollout.acme/web", rollout("1", "3", 0, 100))
        await told.comes_to(8004, promised=0.2)
        await user.delete("slices", "_rollout.acme/web")
        await told.comes_to(8003, 8004, 8005, promised=0.2)
        assert len(told.lists) == count + 4
        await told.stop()
        assert not [each for each in told.remarks.splitlines() if "NATS is " not in each]


def rollout(source: str, target: str, *weights: int) -> dict[str, object]:
    sides = ({"version": version, "revision": 1} for version in (source, target))
    return {
        **dict(zip(("from", "to"), sides, strict=True)),
        "phase": "rolling",
        "weights": dict(zip(("from", "to"), weights, strict=True)),
    }


async def test_what_is_not_there_yet_is_waited_for(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with listing(server, "acme:wbe", tmp_path) as told:
        assert told.lists == [[]]
        meant = "cdm: there is no service acme:wbe (did you mean acme:web?); waiting for it\n"
        await eventually(lambda: meant in told.remarks, what="it is told what may be meant")
        await serve(user, "n1.acme/wbe/1", 8003)
        await told.comes_to(8003, promised=0.2)


@asynccontextmanager
async def beating(user: Raw, *nodes: str, ttl: float = 2) -> AsyncIterator[None]:
    """Nodes whose heart beats for as long as the ``with`` block; ``ttl`` is what they say, their keys have 2 s."""

    async def beat() -> None:
        while True:
            for node in nodes:
                await user.stubborn("nodes", node, {"address": "10.0.0.1", "ttl": ttl}, {"Nats-TTL": "2s"})
            await anyio.sleep(0.3)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        yield
        tasks.cancel_scope.cancel()


async def expired(user: Raw) -> bool:
    return not await user.registrations()


async def test_the_list_stands_while_nats_is_away(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    """Registrations expire at once when the server is back, before any node could renew its own."""
    async with AsyncExitStack() as stack:
        async with beating(user, "n1", "n2", ttl=10):
            told = await stack.enter_async_context(listing(server, "acme:web", tmp_path))
            await told.comes_to(8001, 8002)
        server.kill()
        await eventually(lambda: "NATS is away; the last list stays in force" in told.remarks)
        await anyio.sleep(2.5)
        await server.restart()
        await eventually(lambda: "NATS is back" in told.remarks, 15)
        await eventually(partial(expired, user), what="the registrations expire")
        async with beating(user, "n1", ttl=10):
            await user.stubborn("slices", "n1.acme/web/1/1", {"state": "ACTIVE", "port": 8003})
            await told.comes_to(8001, 8002, 8003)
            await told.comes_to(8001, 8003)
        ports = [[each["port"] for each in entries] for entries in told.lists]
        assert list(map(sorted, ports)) == [[8001, 8002], [8001, 8002, 8003], [8001, 8003]], "nothing went meanwhile"
        said = [each for each in told.remarks.splitlines() if "NATS is" in each]
        assert said == ["cdm: NATS is away; the last list stays in force", "cdm: NATS is back"] * (len(said) // 2)


async def test_a_node_that_dies_is_out_when_it_has_not_been_heard_for_a_while(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    async with beating(user, "n2"), AsyncExitStack() as stack:
        async with beating(user, "n1"):
            told = await stack.enter_async_context(listing(server, "acme:web", tmp_path))
            await told.comes_to(8001, 8002)
        await told.comes_to(8002, promised=3)


async def test_a_node_that_leaves_is_out_at_once(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with listing(server, "acme:web", tmp_path) as told:
        await told.comes_to(8001, 8002)
        await user.delete("nodes", "n1")
        await told.comes_to(8002, promised=0.2)


async def test_it_costs_one_consumer_a_bucket_for_as_long_as_it_runs(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    async with listing(server, "acme:web", tmp_path) as told:
        await eventually(lambda: told.lists)

        async def one_each() -> bool:
            return [await user.consumers(bucket) for bucket in ("slices", "nodes", "blueprints")] == [1, 1, 0]

        await eventually(one_each, 20, "one consumer a bucket")
        await told.stop()

    async def gone() -> bool:
        return [await user.consumers(bucket) for bucket in ("slices", "nodes")] == [0, 0]

    await in_time(gone, 0.5, "its consumers are gone")


async def test_it_ends_with_whoever_reads_it(server: NatsServer, user: Raw) -> None:
    command = [sys.executable, "-m", "cdm", "endpoints", "acme:web", "--watch", "--json", "--server", server.url]
    reading, writing = os.pipe()
    process = await anyio.open_process(command, stdin=None, stdout=writing, stderr=None, env=environment())
    os.close(writing)
    try:
        assert await anyio.to_thread.run_sync(os.read, reading, 1)
        os.close(reading)
        with bounded():
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


async def test_for_people_each_list_is_a_table_with_its_time(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with listing(server, "acme:web", tmp_path, "--prefix", "") as told:
        await user.put("slices", "n2.acme/web/2", {"state": "UNLOAD"})
        await eventually(lambda: told.output.count("acme:web") == 2)
        await user.delete("slices", "n1.acme/web/1")
        await eventually(lambda: "no instance of acme:web can be sent requests" in told.output)
    first, second, third = re.split(r"^\d\d:\d\d:\d\d  ", told.output, flags=re.MULTILINE)[1:]
    assert [len(each.splitlines()) for each in (first, second, third)] == [4, 3, 1]
    assert second.splitlines()[-1].split() == ["10.0.0.9", "8001", "100", "n1", "1"]


async def test_whoever_may_read_slices_and_nodes_may_follow(tmp_path: Path) -> None:
    """As a router does, which needs nothing else."""
    may = {
        "publish": [
            "$JS.API.INFO",
            *(
                f"$JS.API.{call}"
                for bucket in ("slices", "nodes")
                for call in (
                    f"STREAM.INFO.KV_{bucket}",
                    f"CONSUMER.CREATE.KV_{bucket}.*.$KV.{bucket}.>",
                    f"CONSUMER.INFO.KV_{bucket}.*",
                    f"CONSUMER.DELETE.KV_{bucket}.*",
                )
            ),
            "$JS.FC.KV_slices.>",
            "$JS.FC.KV_nodes.>",
        ],
        "subscribe": "_INBOX_router.>",
    }
    config = tmp_path / "server.conf"
    users = [{"user": "all", "password": "x"}, {"user": "router", "password": "x", "permissions": may}]
    config.write_text(json.dumps({"authorization": {"users": users}}))
    async with running_server(arguments=["-c", str(config)]) as server:
        everybody = server.url.replace("nats://", "nats://all:x@")
        router = server.url.replace("nats://", "nats://router:x@")
        assert run("init", "--server", everybody).returncode == 0
        async with raw_client(everybody) as client:
            user = Raw(client)
            await user.put("nodes", "n1", {})
            for service in ("org.example/web", "acme/web"):
                await serve(user, f"n1.{service}/1", 8001)
            for service in ("org.example:web", "acme:web", "acme:none"):
                command = ("endpoints", service, "--json", "--server", router, "--inbox-prefix", "_INBOX_router")
                shown = await anyio.to_thread.run_sync(partial(run, *command))
                assert (shown.returncode, shown.stderr) == (0, "")
                assert len(json.loads(shown.stdout)["endpoints"]) == (service != "acme:none")
