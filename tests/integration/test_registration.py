"""A node's entry in ``nodes``, on a real server."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cdm import clock
from cdm.cli.gathering import Gathered, report
from cdm.errors import NodeIdTaken
from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, NodeKey
from cdm.model.node import FEATURES, Registration, Role
from cdm.node.machine import LOAD_STEP, Machine, detected, usual_labels
from cdm.node.registration import ASK_TIMEOUT, Presence
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.snapshot import snapshot
from cdm.store.watch import Watch
from tests.harness import waiting
from tests.harness.agents import agents
from tests.harness.nodes import Nodes, Running, nodes_on
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import connected
from tests.harness.waiting import SLACK, bounded, eventually, in_time
from tests.harness.wire import ANSWER, Raw, patiently, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

TTL = 2.0
"""Of registrations, in seconds, where a test waits for their end."""


def presence(
    connection: Connection,
    incarnation: str,
    ttl: float = waiting.TTL,
    node: str = "n1",
    on_succession: Callable[[float], None] = lambda _: None,
) -> Presence:
    registration = Registration(labels={"zone": "a"}, capacity=4, incarnation=incarnation, ttl=ttl)
    return Presence(Bucket(connection, NODES), NodeId(node), registration, on_succession=on_succession)


async def registration(user: Raw, node: str = "n1") -> dict[str, Any]:
    record = (await user.registrations()).get(node)
    return record.value if record else {}


async def revision(user: Raw, node: str = "n1") -> int:
    record = (await user.registrations()).get(node)
    return record.sequence if record else 0


async def test_it_says_what_slices_may_reserve_and_how_busy_the_machine_is(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", machine=Machine(4.0, 2**30), reserved=Machine(0.5, None))
        value = await registration(user)
        assert (value["cpu"], value["memory"]) == (3.5, 2**30)


async def test_another_load_is_told_with_the_next_heartbeat(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        loads = [0.25]
        bucket = Bucket(connection, NODES)
        await bucket.ensure(create=True)
        one = Presence(bucket, NodeId("n1"), Registration(incarnation="a", ttl=6.0), load=lambda: loads[-1])
        await one.register()
        assert (await registration(user))["load"] == 0.25
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            loads.append(0.5)
            await eventually(partial(_tells, user, load=0.5))
            tasks.cancel_scope.cancel()


@pytest.mark.quick
async def test_it_says_what_the_node_is(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", labels={"zone": "a"}, capacity=7, runtime="external", node_ttl=7.0)
        value = await registration(user)
        assert value["labels"] == {**usual_labels(), "zone": "a"}
        assert (value["cpu"], value["memory"]) == detected()
        assert value["load"] % LOAD_STEP == 0
        assert value["capacity"] == 7
        assert value["ttl"] == 7.0
        assert value["incarnation"] == nodes.all["n1"].node.incarnation
        assert value["address"] == "127.0.0.1", "its own on the connection"
        assert value["features"] == [*FEATURES]
        await nodes.all["n1"].stop()
        assert not await registration(user)


@pytest.mark.parametrize("role", Role)
async def test_every_node_tells_what_it_can_do_and_where_its_slices_are_reached(server: NatsServer, role: Role) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        await nodes.start("n2", role=role, address="n2.example.org")
        value = await registration(user, "n2")
        assert (value["address"], value["features"]) == ("n2.example.org", [*FEATURES])


async def test_another_address_is_told_with_the_next_heartbeat(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        addresses = ["10.0.0.1"]
        bucket = Bucket(connection, NODES)
        await bucket.ensure(create=True)
        one = Presence(bucket, NodeId("n1"), Registration(incarnation="a", ttl=6.0), address=lambda: addresses[-1])
        await one.register()
        assert (await registration(user))["address"] == "10.0.0.1"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            addresses.append("10.0.0.2")
            await eventually(partial(_tells, user, address="10.0.0.2"))
            await one.take_no_more()
            assert await _tells(user, address="10.0.0.2", capacity=0)
            tasks.cancel_scope.cancel()
        await one.leave()


async def _tells(user: Raw, **fields: Any) -> bool:
    return fields.items() <= (await registration(user)).items()


async def test_an_odd_name_is_one_token(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("db-1.example.org")
        await eventually(lambda: registration(user, "db-1=2Eexample=2Eorg"))
        await user.put("blueprints", "g/n/1.0.0=2Bb1", 1)
        await eventually(lambda: _slices(user))
        assert await user.slices() == {"db-1=2Eexample=2Eorg.g/n/1.0.0=2Bb1": "LOAD"}


async def _slices(user: Raw) -> bool:
    return bool(await user.slices())


@pytest.mark.quick
async def test_a_living_process_keeps_its_id(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=30.0) as nodes, nodes_on(server) as others:
        await nodes.start("n1")
        before = await registration(user)
        began = time.monotonic()
        with pytest.raises(AssertionError, match="NodeIdTaken"):
            await others.start("n1")
        assert time.monotonic() - began < 28, "the TTL was not waited for"
        error = others.all["n1"].error
        assert isinstance(error, NodeIdTaken)
        assert "n1" in str(error)
        assert "--id" in str(error)
        assert before["incarnation"] in str(error)
        await anyio.sleep(1)
        assert (await registration(user))["incarnation"] == before["incarnation"]
        nodes.unharmed()


async def test_of_two_that_start_at_once_one_gets_the_id(server: NatsServer) -> None:
    async with raw(server) as user:
        for number in range(8):
            async with connected(server) as first, connected(server) as second:
                await Bucket(first, NODES).ensure(create=True)
                name, refused, won = f"n{number}", [], []

                async def register(connection: Connection, which: str, name: str = name) -> None:
                    one = presence(connection, which, node=name)
                    try:
                        await one.register()
                    except NodeIdTaken:
                        refused.append(which)  # noqa: B023
                    else:
                        won.append(which)  # noqa: B023

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(register, first, "a")
                    tasks.start_soon(register, second, "b")
                assert len(won) == len(refused) == 1
                assert (await registration(user, name))["incarnation"] == won[0]


async def test_the_id_of_a_process_that_died_is_free_at_once(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=30.0) as nodes:
        await nodes.start("n1")
        first = nodes.all["n1"]
        await first.crash()
        assert await registration(user), "it did not sign off"
        began = time.monotonic()
        await nodes.start("n1")
        assert time.monotonic() - began < 28, "the TTL was not waited for"
        assert (await registration(user))["incarnation"] == nodes.all["n1"].node.incarnation
        assert first.node.incarnation != nodes.all["n1"].node.incarnation


async def test_who_takes_the_place_of_a_process_knows_when_that_was_heard_last(server: NatsServer) -> None:
    """Where nobody is registered, that may have been until now."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        until: list[float] = []
        for value in (None, {"incarnation": "dead", "ttl": 60}):
            stored = clock.now()
            if value is not None:
                await user.put("nodes", "n1", value)
            await anyio.sleep(1.5)
            began = clock.now()
            new = presence(connection, "new", on_succession=until.append)
            await new.register()
            now = clock.now()
            assert began <= until[0] <= now, "the careful guess comes first"
            if value is None:
                assert until == until[:1]
            else:
                assert stored <= until[-1] <= now - 1.4
            until.clear()
            await new.leave()


async def test_who_finds_his_registration_gone_may_have_been_replaced_meanwhile(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        until: list[float] = []
        one = presence(connection, "one", TTL, on_succession=until.append)
        await one.register()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            for replaced in (True, False):
                until.clear()
                began = clock.now()
                if replaced:
                    await user.put("nodes", "n1", {"incarnation": "other", "ttl": 60})
                else:
                    await user.delete("nodes", "n1")
                await eventually(partial(_tells, user, incarnation="one"))
                await eventually(lambda: until)
                assert began <= until[-1] <= clock.now()
            tasks.cancel_scope.cancel()


async def test_a_frozen_holder_keeps_its_id(server: NatsServer) -> None:
    """It is connected and does not answer: nobody can tell that it is dead."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)

        async def silent(message: Any) -> None:
            pass

        await user.client.subscribe("cdm.node.n1", cb=silent)
        await user.put("nodes", "n1", {"incarnation": "frozen", "ttl": 30})
        with pytest.raises(NodeIdTaken, match="does not answer but is connected"):
            await presence(connection, "new").register()
        assert (await registration(user))["incarnation"] == "frozen"


@pytest.mark.parametrize(
    "frozen", [0.0, ASK_TIMEOUT + 0.2, 2 * ASK_TIMEOUT + 0.5], ids=["killed", "frozen", "frozen for both"]
)
async def test_a_server_that_fails_as_the_holder_is_asked_makes_it_no_living_one(
    server: NatsServer, frozen: float
) -> None:
    async with raw(server) as user, connected(server) as connection, anyio.create_task_group() as tasks:
        await Bucket(connection, NODES).ensure(create=True)
        asked = anyio.Event()

        async def silent(message: Any) -> None:
            asked.set()

        dead = await user.client.subscribe("cdm.node.n1", cb=silent)
        await user.put("nodes", "n1", {"incarnation": "dead", "ttl": 30})
        tasks.start_soon(presence(connection, "new").register)
        with bounded():
            await asked.wait()
        await dead.unsubscribe()
        await user.client.flush()
        if frozen:
            server.pause()
        else:
            server.kill()
        await anyio.sleep(frozen or ASK_TIMEOUT)
        if frozen:
            server.resume()
        else:
            await server.start()
        await eventually(lambda: patiently(partial(_tells, user, incarnation="new")))


async def test_who_could_not_register_at_once_takes_its_own_answer_for_nobody_else(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection, anyio.create_task_group() as tasks:
        await Bucket(connection, NODES).ensure(create=True)
        await user.put("nodes", "n1", {"incarnation": "dead", "ttl": 60})
        config = (await user.api("STREAM.INFO.KV_nodes"))["config"]
        # Too small for a registration: the bucket answers, and takes none.
        await user.api("STREAM.UPDATE.KV_nodes", {**config, "max_msg_size": 50})
        one = presence(connection, "new")
        tasks.start_soon(one.register)
        await eventually(lambda: one._responder is not None, what="the dead one did not answer, and it tried")
        await anyio.sleep(2)  # it tries again and again
        assert not one.is_registered
        await user.api("STREAM.UPDATE.KV_nodes", config)
        await eventually(partial(_tells, user, incarnation="new"))


async def test_an_answer_writes_no_key(server: NatsServer) -> None:
    """Who may ask whether a node lives must not have it write for him."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        await presence(connection, "new").register()
        for reply in ("$KV.nodes.n2", "cdm.leader.1"):
            await user.client.publish("cdm.node.n1", b"", reply=reply)
        assert (await user.client.request("cdm.node.n1", b"", timeout=ANSWER)).data
        await user.client.flush()
        assert set(await user.registrations()) == {"n1"}


@pytest.mark.parametrize("value", [b"\xff rubbish", b'{"incarnation":"\xff"}', b'{"x":' + b"[" * 100_000])
async def test_an_unreadable_registration_of_nobody_is_replaced(server: NatsServer, value: bytes) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        await user.put("nodes", "n1", value)
        await presence(connection, "new").register()
        assert (await registration(user))["incarnation"] == "new"


@pytest.mark.quick
async def test_heartbeats_keep_it(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        one = presence(connection, "a", ttl=5 * TTL)
        await one.register()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            began, revisions = time.monotonic(), set()

            async def beaten() -> bool:
                assert await registration(user)
                revisions.add(await revision(user))
                return len(revisions) > 3

            await eventually(beaten)
            assert time.monotonic() - began > 6, "three heartbeats a TTL, and no more"
            tasks.cancel_scope.cancel()
        await eventually(lambda: _gone(user), 20, "without heartbeats it expires")
        await one.register()
        assert await registration(user), "an expired one is made again over its marker"
        await one.leave()
        assert not await registration(user)


async def _gone(user: Raw) -> bool:
    return not await registration(user)


@pytest.mark.parametrize("on_its_way", [False, True], ids=["at rest", "with a heartbeat on its way"])
async def test_heartbeats_keep_what_a_node_that_leaves_says(server: NatsServer, on_its_way: bool) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        one = presence(connection, "a", ttl=5 * TTL)
        await one.register()
        before = await registration(user)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            if on_its_way:
                one.beat_at_once()
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()
            with bounded():
                await one.take_no_more()
            revisions = set()

            async def beaten() -> bool:
                assert await registration(user) == {**before, "capacity": 0}
                revisions.add(await revision(user))
                return len(revisions) > 2

            await eventually(beaten, what="heartbeats say it, too")
            await one.leave()
            assert not await registration(user)
            tasks.cancel_scope.cancel()


async def test_leaving_is_final(server: NatsServer) -> None:
    """Between the farewell and the end of the process no heartbeat enters the node again."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        one = presence(connection, "a", ttl=1.0)
        await one.register()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            await one.leave()
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert not await registration(user)
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()


async def test_leaving_is_not_spoilt_by_a_heartbeat_on_its_way(server: NatsServer) -> None:
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        for number in range(10):
            one = presence(connection, f"a{number}", ttl=1.0)
            await one.register()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run)
                one.beat_at_once()
                for _ in range(number):
                    await anyio.lowlevel.checkpoint()
                await one.leave()
                tasks.cancel_scope.cancel()
            assert not await registration(user), f"after {number} turns of the loop"


async def test_one_that_expired_while_the_server_was_down_is_made_again(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await nodes.start("n1", "n2")
        server.kill()
        await anyio.sleep(2.5)
        await server.start()
        await eventually(lambda: registration(user, "n1"))
        await eventually(lambda: registration(user, "n2"))
        nodes.unharmed()


async def test_one_that_an_operator_deleted_comes_back(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        await user.put("blueprints", "g/n/1", 2)
        await eventually(lambda: _slices(user))
        before = await user.slices()
        for headers in ({"KV-Operation": "DEL"}, {"KV-Operation": "PURGE"}):
            await user.put("nodes", "n1", b"", headers)
            await eventually(lambda: registration(user))
        await eventually(lambda: _same(user, before))
        nodes.unharmed()


async def _same(user: Raw, before: dict[str, str]) -> bool:
    return await user.slices() == before


async def test_one_overwritten_with_rubbish_is_mended_or_given_up(server: NatsServer) -> None:
    """Rubbish under a node's key names no other process: the node must not end for it."""
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await nodes.start("n1")
        await user.put("nodes", "n1", b"rubbish")
        await anyio.sleep(1.5)
        nodes.unharmed()
        await eventually(lambda: registration(user))


async def test_an_intent_whose_suffix_was_forgotten_makes_no_node(server: NatsServer) -> None:
    """Without a TTL it would be a node for ever, and take slices that nobody runs."""
    async with raw(server) as user, connected(server) as connection, nodes_on(server) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        await user.put("nodes", "n9", {"schedule": "drain"})
        await user.put("blueprints", "g/n/1", 3)
        await eventually(lambda: _count(user, 3))
        assert all(key.startswith("n1.") for key in await user.slices())
        found = report(await snapshot(connection), clock.now())
        assert [node.node for node in found.nodes] == ["n1"]
        (note,) = found.notes
        assert note.startswith("nodes/n9: ")
        assert ".intent" in note
        await user.put("nodes", "n1", {"schedule": "drain"})
        await eventually(lambda: _names_a_process(user), what="a node's own is written over it")
        assert await _count(user, 3)
        nodes.unharmed()


async def test_a_node_that_nobody_gave_up_is_gone_since_its_registration_ended(server: NatsServer) -> None:
    """Without a leader only who was following then knows when: what is remembered of a node is as old as the node."""
    ttl = 5 * TTL
    async with raw(server) as user, connected(server) as connection, nodes_on(server, node_ttl=ttl) as nodes:
        await nodes.start("n1")
        await eventually(lambda: _is_remembered(user))
        followed = Gathered()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Watch(Bucket(connection, NODES), followed.take).run)
            await eventually(lambda: bool(followed.seen))
            crashed = time.time()
            await nodes.all["n1"].crash()
            await eventually(lambda: not followed.nodes, ttl + SLACK)
            tasks.cancel_scope.cancel()
        (gone,) = followed.report(clock.now(), {}, []).gone
        assert gone.how == "missing"
        assert datetime.fromisoformat(gone.since).timestamp() > crashed, "it was heard less than a TTL before"
        (looked,) = report(await snapshot(connection), clock.now()).gone
        assert (looked.how, looked.since) == ("missing", "")


async def test_a_node_that_took_its_registration_back_has_left_though_no_leader_wrote_it_down(
    server: NatsServer,
) -> None:
    async with raw(server) as user, connected(server) as connection:
        bucket = Bucket(connection, NODES)
        await bucket.ensure(create=True)
        one = presence(connection, "a")
        await one.register()
        await user.put("nodes", "n1.seen", {"registration": {}})
        await one.leave()
        (gone,) = report(await snapshot(connection, names=["nodes"]), clock.now()).gone
        assert (gone.how, bool(gone.since)) == ("left", True)


async def _is_remembered(user: Raw) -> bool:
    return "n1.seen" in await user.contents("nodes")


async def _names_a_process(user: Raw) -> bool:
    return "incarnation" in await registration(user)


@pytest.mark.parametrize("headers", [{"Nats-TTL": "60s"}, None], ids=["with a TTL", "without a TTL"])
async def test_a_registration_of_nobody_ends_no_node(server: NatsServer, headers: dict[str, str] | None) -> None:
    """The process that it names does not answer: the node registers anew, and its slices stay."""
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        await user.put("blueprints", "g/n/1", 2)
        await eventually(lambda: _slices(user))
        before = await user.slices()
        await user.put("nodes", "n1", {**await registration(user), "incarnation": "other"}, headers)
        own = nodes.all["n1"].node.incarnation
        await eventually(lambda: _registered_as(user, own), 5 + SLACK)
        await anyio.sleep(2.5)  # longer than the TTL
        await eventually(lambda: _registered_as(user, own))
        assert await _same(user, before)
        nodes.unharmed()


async def _registered_as(user: Raw, incarnation: str) -> bool:
    return (await registration(user)).get("incarnation") == incarnation


async def test_a_dead_nodes_registration_without_a_ttl_expires(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        victim = await _one_of_three(user, nodes)
        name = str(victim.settings.node)
        await victim.crash()
        await user.put("nodes", name, {**await registration(user, name), "incarnation": "other"})
        await eventually(lambda: _moved(user, name), 2 * 2 + 2 + SLACK, "its slices run elsewhere")
        nodes.unharmed()


async def test_a_process_that_lost_its_id_ends(server: NatsServer) -> None:
    """Another process took the id while this one was not heard (its registration expired meanwhile)."""
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await nodes.start("n1")

        async def other(message: Any) -> None:
            await user.client.publish(message.reply, b'{"node":"n1","incarnation":"other"}')

        await user.client.subscribe("cdm.node.n1", cb=other)
        await user.put("nodes", "n1", {"incarnation": "other", "ttl": 30.0})
        with bounded():
            await nodes.all["n1"].ended.wait()
        assert "NodeIdTaken" in repr(nodes.all["n1"].error)
        assert (await registration(user))["incarnation"] == "other"


async def test_a_replica_that_is_behind_costs_nobody_the_id(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a heartbeat was lost, and the replica that is asked still shows the predecessor."""
    async with raw(server) as user, connected(server) as connection:
        await Bucket(connection, NODES).ensure(create=True)
        await presence(connection, "dead").register()
        old = await Bucket(connection, NODES).read(NodeKey(NodeId("n1")))
        bucket = Bucket(connection, NODES)
        one = Presence(bucket, NodeId("n1"), Registration(incarnation="a", ttl=2.0))
        monkeypatch.setattr(one, "_refuse_if_alive", _dead)
        await one.register()
        await user.put("nodes", "n1", (await registration(user)))  # as its own, by a revision that it does not know
        behind = 3
        up_to_date = bucket.read_near

        async def read_near(key: NodeKey, timeout: float | None = None) -> Any:
            nonlocal behind
            behind -= 1
            return old if behind >= 0 else await up_to_date(key, timeout)

        monkeypatch.setattr(bucket, "read_near", read_near)
        before = await revision(user)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            await eventually(lambda: _beyond(user, before), 5)
            tasks.cancel_scope.cancel()
        assert behind < 0
        assert (await registration(user))["incarnation"] == "a"


async def _dead(payload: bytes) -> None:
    """Nobody answers for the predecessor."""


async def _beyond(user: Raw, before: int) -> bool:
    return await revision(user) > before


@pytest.mark.parametrize("slip", [False, True], ids=["alone", "an intent in the place of its registration"])
async def test_a_node_that_dies_is_told_within_its_ttl(server: NatsServer, slip: bool) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        victim = await _one_of_three(user, nodes)
        name = str(victim.settings.node)
        await victim.crash()
        if slip:
            await user.put("nodes", name, {"schedule": "drain"})
        await in_time(lambda: _moved(user, name), 3)
        nodes.unharmed()


async def _one_of_three(user: Raw, nodes: Nodes) -> Running:
    """Three nodes with a slice each; one of those that do not lead."""
    await nodes.start("n1", "n2", "n3")
    await nodes.leader()
    await user.put("blueprints", "g/n/1", 3)
    await eventually(lambda: _count(user, 3))
    return next(running for running in nodes.all.values() if not running.active)


async def _count(user: Raw, count: int) -> bool:
    return len(await user.slices()) == count


async def _moved(user: Raw, name: str) -> bool:
    found = await user.slices()
    return len(found) == 3 and not any(key.startswith(f"{name}.") for key in found)


async def test_a_clean_leave_frees_its_slices_at_once(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=30.0) as nodes:
        victim = await _one_of_three(user, nodes)
        await victim.stop()
        await in_time(lambda: _moved(user, str(victim.settings.node)), 0.0)


async def test_most_nodes_gone_at_once_are_given_up_one_by_one(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes:
        await user.record()
        await nodes.start("n1", "n2", "n3", "n4")
        leader = await nodes.leader()
        await user.put("blueprints", "g/n/1", 4)
        await eventually(lambda: _count(user, 4))
        others = [running for running in nodes.all.values() if running is not leader]
        heard, began = await user.registrations(), time.time()

        async def beaten() -> bool:
            now = await user.registrations()
            names = [str(each.settings.node) for each in others]
            return all(name in now and now[name].sequence > heard[name].sequence for name in names)

        await eventually(beaten, what="what lasts for a TTL is not old")
        for running in others:
            await running.crash()

        async def evicted() -> list[float]:
            """When the keys of the others were removed, by the server's clock."""
            gone = [each.headers["Nats-Time-Stamp"] for each in await user.recorded() if each.gone]
            return [datetime.fromisoformat(each).timestamp() for each in gone] if len(gone) >= 3 else []

        died = await eventually(evicted, 30)
        assert died[0] > began + 1, "nobody is dead before its TTL is over"
        assert died[-1] - died[0] > 1.5, f"evictions are paced: {died}"
        assert leader.managing.election.valid(clock.now())


async def test_a_bucket_that_takes_no_heartbeats_evicts_nobody(server: NatsServer) -> None:
    """The connection is up, and every registration expires: so it is when NATS elects for long."""
    names = ("n1", "n2", "n3")
    async with raw(server) as user, nodes_on(server, node_ttl=TTL) as nodes, agents(server, *names):
        await nodes.start(*names)
        await user.put("blueprints", "g/n/1", 3)
        await eventually(lambda: _active(user, 3))
        before = {key: record.sequence for key, record in (await user.contents("slices")).items() if key[0] != "_"}
        config = (await user.api("STREAM.INFO.KV_nodes"))["config"]
        # Too small for a registration, and not for the marker of its end.
        await user.api("STREAM.UPDATE.KV_nodes", {**config, "max_msg_size": 150})
        await eventually(lambda: _nobody(user), 20, "all registrations expire")  # when the server gets to it
        await anyio.sleep(2.5)  # longer than the TTL: whoever would be given up would be now
        await user.api("STREAM.UPDATE.KV_nodes", config)
        await in_time(lambda: _everybody(user, names), 0.0, "all are back")
        await anyio.sleep(2.5)
        after = {key: record.sequence for key, record in (await user.contents("slices")).items() if key[0] != "_"}
        assert after == before
        # And a node that dies then is given up in time.
        await nodes.all["n2"].crash()
        await in_time(lambda: _all_off(user, "n2"), 2.0 + 1.0, "what ran on the dead node runs elsewhere")
        assert nodes.all["n1"].error is None


async def test_a_node_leaves_a_server_that_takes_no_heartbeats(server: NatsServer) -> None:
    """A server that is cut off from its peers keeps its clients; here it is one that knows nothing of the others."""
    async with running_server() as other, raw(server) as user, raw(other) as stranger:
        for each in (server, other):
            async with connected(each) as connection:
                await Bucket(connection, NODES).ensure(create=True)
        access = Access(servers=(server.url, other.url))
        async with connect(access, name="n1") as connection, anyio.create_task_group() as tasks:
            taken: list[bool] = []
            one = Presence(
                Bucket(connection, NODES), NodeId("n1"), Registration(incarnation="a", ttl=2.0), taken.append
            )
            await one.register()
            tasks.start_soon(one.run)

            async def registered() -> list[Raw]:
                return [each for each in (user, stranger) if await registration(each)]

            (here,) = await eventually(registered)
            there = stranger if here is user else user
            await here.api("STREAM.DELETE.KV_nodes")  # nobody answers there any more
            await in_time(lambda: registration(there), 2.0, "it is registered at the other server")
            assert taken[-2:] == [False, True]
            tasks.cancel_scope.cancel()


async def _active(user: Raw, count: int) -> bool:
    return [*(await user.slices()).values()] == ["ACTIVE"] * count


async def _nobody(user: Raw) -> bool:
    return not await user.registrations()


async def _everybody(user: Raw, names: tuple[str, ...]) -> bool:
    return {*names} == {*await user.registrations()}


async def _all_off(user: Raw, node: str) -> bool:
    return await _active(user, 3) and not any(key.startswith(f"{node}.") for key in await user.slices())
