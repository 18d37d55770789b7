"""``cdm endpoints`` as its users meet it: real processes on a store that is filled by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.cli.test_cli import run
from tests.harness.listing import listing
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio


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
    head, _line, first, second = (await endpoints(server, "acme:web")).splitlines()
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
    assert "group:name" in wrong.stderr


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

        await user.put("slices", "_rollout.acme/web", rollout("1", "3", 90, 10))
        await serve(user, "n2.acme/web/3", 8004)
        await told.comes_to(8001, 8003, 8004, promised=0.2)
        assert {each["port"]: each["weight"] for each in told.lists[-1]} == {8001: 45.0, 8003: 45.0, 8004: 10.0}
        await user.delete("slices", "_rollout.acme/web")
        await eventually(lambda: told.lists[-1][-1]["weight"] == 33.3333)
        await told.stop()
        assert told.remarks == ""


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
        assert told.remarks == "cdm: there is no service acme:wbe (did you mean acme:web?); waiting for it\n"
        await serve(user, "n1.acme/wbe/1", 8003)
        await told.comes_to(8003, promised=0.2)
