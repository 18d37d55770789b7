"""How a node's process ends says what becomes of its slices: in error, superseded, or told to leave at any time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cdm.model.manifest import Line, Manifest, Readiness
from cdm.node.serving import Running
from cdm.runtimes.process.runtime import ORPHAN_BOUND
from tests.harness.proc import left_keepers
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, agent_alone
from tests.harness.waiting import bounded, eventually, in_time
from tests.integration.test_outliving import TTL, kept, start, up

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n{SLEEP}"


def broken() -> NoReturn:
    raise RuntimeError("an error of ours")


@pytest.mark.quick
async def test_an_error_leaves_slices_to_the_next_process_and_a_lost_id_ends_them(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent_alone(server, tmp_path, node_ttl=TTL) as (ground, hand, nodes):
        one = await ground.push("one", SLEEP, PLAIN)
        await hand.up(hand.key(one))
        await hand.up(hand.key(one, 1), overrides={"stop_after": 2 * TTL})
        before = ground.living
        first = nodes.all["n1"]
        assert first.node._vitals().stop_needs == 2 * PLAIN.stop_grace, "first the one, then the other"
        monkeypatch.setattr(first.node.presence, "_vitals", broken)
        first.node.presence.beat_at_once()
        with bounded():
            await first.ended.wait()
        assert isinstance(first.error, RuntimeError)
        assert ground.living == before
        await nodes.start("n1", role=first.settings.role, runtime="process", folder=first.settings.folder, keep=True)
        second = nodes.all["n1"]
        await eventually(lambda: not second.node.part(Running).agent.runtime.found, what="it goes on")
        assert second.node._vitals().stop_needs == 0, "they are not stopped with it"
        assert ground.living == before

        async def other(message: Any) -> None:
            await ground.user.client.publish(message.reply, b'{"node":"n1","incarnation":"other"}')

        taken = await ground.user.client.subscribe("cdm.node.n1", cb=other)
        await ground.user.put("nodes", "n1", {"incarnation": "other", "ttl": TTL})
        second.node.presence.beat_at_once()
        with bounded():
            await second.ended.wait()
        assert "NodeIdTaken" in repr(second.error)
        assert not ground.living
        await taken.unsubscribe()
        del nodes.all["n1"]


async def test_a_node_that_is_told_to_leave_while_it_waits_for_nats_stops_what_was_left(
    server: NatsServer, tmp_path: Path
) -> None:
    """One that keeps what runs leaves it as it is; and so it is where nobody tells it anything."""
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        one = await ground.push("one", SLEEP, PLAIN)
        await hand.up(hand.key(one))
        await hand.up(hand.key(one, 1), overrides={"stop_after": 2 * TTL})
        before = ground.living
        running.all["n1"].crash()
        server.pause()
        try:
            for on_stop, left in (("keep", before), ("leave", {})):
                waits = start(running, tmp_path, on_stop=on_stop)
                await eventually(lambda: "NATS" in waits.log or "connect" in waits.log, 30, "it waits")  # noqa: B023
                assert ground.living == before
                waits.send(signal.SIGTERM)
                assert await waits.ends(30) == 0
                assert ground.living == left
            assert not left_keepers(tmp_path)
        finally:
            server.resume()


async def test_a_node_that_is_killed_while_it_leaves_takes_all_along(server: NatsServer, tmp_path: Path) -> None:
    """What has a long grace, too; it has that where nobody kills the node."""
    async with kept(server, tmp_path) as (ground, hand, running):
        node = start(running, tmp_path)
        deaf = Manifest(readiness=Readiness(check=Line("deaf")), stop_grace=600)
        await hand.up(hand.key(await ground.push("deaf", DEAF, deaf)))
        node.send(signal.SIGTERM)

        async def gone() -> bool:
            return not await ground.user.registrations()

        await eventually(gone, 30, "it has left")
        assert len(ground.living) == 1
        node.crash()
        await ground.nothing_left(ORPHAN_BOUND)
        await in_time(lambda: not left_keepers(tmp_path), ORPHAN_BOUND, "nor is there a keeper")


async def test_a_second_signal_ends_a_node_that_keeps_its_slices_and_not_these(
    server: NatsServer, tmp_path: Path
) -> None:
    async with kept(server, tmp_path) as (ground, hand, running):
        node = start(running, tmp_path, on_stop="keep")
        key = hand.key(await ground.push("one", SLEEP, PLAIN))
        await hand.up(key)
        before = ground.living
        node.send(signal.SIGTERM)
        node.send(signal.SIGTERM)
        assert await node.ends(30) == 0
        assert ground.living == before
        again = start(running, tmp_path)
        await eventually(lambda: "goes on since" in again.log, 30, "it goes on")
        await hand.unload(key)


async def test_another_node_in_the_same_folder_ends_what_was_left(server: NatsServer, tmp_path: Path) -> None:
    async with kept(server, tmp_path) as (ground, hand, running):
        await up(start(running, tmp_path))
        await hand.up(hand.key(await ground.push("one", SLEEP, PLAIN)))
        running.all["n1"].crash()
        options = ("--role", "agent", "--runtime", "process", "--folder", str(tmp_path / "n1"))
        other = running.start("n2", *options)
        await up(other)
        await ground.nothing_left(5)
        other.unharmed()
