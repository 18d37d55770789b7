"""What a node waits for, for however long, it tells when it begins, then seldom, and when it is over."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cdm.errors import JetStreamAway
from cdm.model.node import EXTERNAL
from cdm.node import buckets
from tests.harness.processes import Process, started_node
from tests.harness.servers import FORGIVEN, NatsServer, free_port, running_server
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

TRIES = 12
"""So many the node makes in a few seconds: in which it tells once that it waits, or twice."""


def _lines(node: Process, event: str) -> list[dict[str, Any]]:
    """What the node logged of this, the line that it is writing left out."""
    found = [json.loads(line) for line in node.log.splitlines(keepends=True) if line.endswith("}\n")]
    return [each for each in found if each["event"] == event]


def _node(server: NatsServer, folder: Path, *options: str) -> Process:
    known = ("--id", "n1", "--server", server.url, "--runtime", EXTERNAL)
    return started_node("n1", folder / "log", *known, "--log-level", "debug", "--log-format", "json", *options)


async def _waits(node: Process, event: str, first: str | None = None) -> None:
    """It tries again and again, and hardly tells of it; the first line may be one of its own."""
    await eventually(lambda: len(_lines(node, event)) >= TRIES, 20, f"{event}, many times")
    node.unharmed()
    told = [each for name in filter(None, (first, event)) for each in _lines(node, name) if each["level"] != "debug"]
    assert 1 <= len(told) <= TRIES / 3, told
    # Where the server itself stood still it begins to wait once more, and says that as an info.
    begun = [each for each in told if "seconds" not in each and each["level"] == "warning"]
    assert "seconds" not in told[0]
    assert len(begun) <= 1, "each but the first says for how long"


async def _is_over(node: Process, event: str) -> None:
    *_, end = await eventually(lambda: _lines(node, event), 20, event)
    assert (end["level"], end["seconds"] > 0) == ("info", True)


async def test_a_node_that_waits_for_jetstream_tells_so_once(tmp_path: Path) -> None:
    """Of a domain whose server begins without it, and is told later to have it."""
    configuration = tmp_path / "server.conf"

    def have(*, enabled: bool) -> None:
        jetstream = {"enabled": enabled, "store_dir": str(tmp_path / "store"), "domain": "east"}
        configuration.write_text(json.dumps({"server_name": "east", "jetstream": jetstream}), encoding="utf-8")

    have(enabled=False)
    server = NatsServer(tmp_path / "server", jetstream=False, arguments=["-c", str(configuration)])
    server.folder.mkdir()
    try:
        await server.start()
        node = _node(server, tmp_path, "--js-domain", "east")
        try:
            await _waits(node, "waiting for JetStream")
            have(enabled=True)
            os.kill(server.pid, signal.SIGHUP)
            await _is_over(node, "JetStream is ready")
            await eventually(lambda: _lines(node, "node is up"), 20, "it is up")
        finally:
            node.kill()
    finally:
        server.kill()


async def test_a_node_waits_for_jetstream_of_which_its_server_has_none_itself(tmp_path: Path) -> None:
    """Its peers have it, and come up later."""
    routes = [free_port() for _ in range(3)]
    urls = ",".join(f"nats://127.0.0.1:{route}" for route in routes)
    servers = []
    for number, route in enumerate(routes):
        own = tmp_path / f"s{number}"
        own.mkdir()
        cluster = ["--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{route}", "--routes", urls]
        servers.append(NatsServer(own, jetstream=number > 0, arguments=["-n", own.name, *cluster]))
    try:
        await servers[0].start()
        node = _node(servers[0], tmp_path)
        try:
            (first, *_) = await eventually(lambda: _lines(node, "waiting for JetStream"), 20, "it waits")
            assert (first["level"], "has no JetStream" in first["reason"]) == ("warning", True)
            for server in servers[1:]:
                await server.start()
            await eventually(lambda: _lines(node, "node is up"), 40, "it is up")
            assert _lines(node, "JetStream is ready")
        finally:
            node.kill()
    finally:
        for server in servers:
            server.kill()


async def test_a_node_waits_for_the_jetstream_of_its_account(tmp_path: Path) -> None:
    """A server that is about to end says that the account has none, too, before it closes connections."""
    configuration = tmp_path / "server.conf"

    def have(**jetstream: str) -> None:
        account = {"users": [{"user": "me", "password": "mine"}], **jetstream}
        told = {"accounts": {"A": account}, "jetstream": {"store_dir": str(tmp_path / "store")}}
        configuration.write_text(json.dumps(told), encoding="utf-8")

    have()
    async with running_server(jetstream=False, arguments=["-c", str(configuration)]) as server:
        node = _node(server, tmp_path, "--user", "me", "--password", "mine")
        try:
            (first, *_) = await eventually(lambda: _lines(node, "waiting for JetStream"), 20, "it waits")
            assert (first["level"], "JetStream not enabled for account" in first["reason"]) == ("warning", True)
            have(jetstream="enabled")
            os.kill(server.pid, signal.SIGHUP)
            await eventually(lambda: _lines(node, "node is up"), 20, "it is up")
        finally:
            node.kill()


async def test_a_node_does_not_wait_for_jetstream_for_ever_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be how the server is set up."""
    monkeypatch.setattr(buckets, "BUCKET_PATIENCE", 1.0)
    async with running_server(jetstream=False) as plain, connected(plain) as connection:
        with pytest.raises(JetStreamAway, match="has no JetStream"), bounded():
            await buckets.patiently(connection.check_server, "the server")


async def test_a_node_whose_server_is_away_tells_so_once(server: NatsServer, tmp_path: Path) -> None:
    node = _node(server, tmp_path)
    try:
        await eventually(lambda: _lines(node, "node is up"), 20, "it is up")
        server.kill()
        await _waits(node, "cannot connect to NATS; trying again", first="connection to NATS lost; reconnecting")
        await server.start()
        await _is_over(node, "connected to NATS again")
    finally:
        node.kill()


async def test_a_node_that_begins_without_a_server_tells_so_once(server: NatsServer, tmp_path: Path) -> None:
    server.kill()
    node = _node(server, tmp_path)
    try:
        await _waits(node, "cannot connect to NATS; trying again")
        await server.start()
        await _is_over(node, "connected to NATS")
        await eventually(lambda: _lines(node, "node is up"), 20, "it is up")
    finally:
        node.kill()
