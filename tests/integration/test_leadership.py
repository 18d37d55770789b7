"""Lease and fence on a real server, with several nodes in this process."""

from __future__ import annotations

import time
from typing import Any

import anyio
import nats.errors
import pytest
from nats.aio.msg import Msg

from cdm import clock
from cdm.cli.gathering import report
from cdm.errors import Uncertain, Unreachable
from cdm.leader import detector
from cdm.leader.election import HIGHEST_CREDIBLE
from cdm.store import connection as connection_module
from cdm.store import watch as watch_module
from cdm.store.snapshot import snapshot
from cdm.store.watch import Phase
from tests.harness.judging import assert_terms_grow
from tests.harness.nodes import Nodes, nodes_on
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.waiting import Stopwatch, eventually, in_time
from tests.harness.wire import EXPECT, EXPECT_SUBJECT, Raw, Rejection, artifact_of, on_nodes, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
FENCE = "$KV.slices._term"


async def serves(user: Raw, artifact: str = KEY, instances: int = 2, within: float = 10) -> None:
    """A blueprint that is put now is served: the proof that somebody leads."""
    await user.stubborn("blueprints", artifact, instances)
    await eventually(lambda: _has_loads(user, artifact, instances), within, f"{artifact} is served")


async def _has_loads(user: Raw, artifact: str, instances: int) -> bool:
    try:
        found = await user.slices()
    except (Rejection, nats.errors.Error):
        return False
    # Where nobody answers, what was told to go stays for a minute.
    return sum(artifact_of(key) == artifact and state != "UNLOAD" for key, state in found.items()) == instances


async def finish(user: Raw, nodes: Nodes) -> None:
    """What holds at the end of every test."""
    nodes.unharmed()
    assert_terms_grow(await user.recorded())


async def test_there_is_one_leader(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        lease = 10.0  # on a busy machine none is to be renewed too late
        async with nodes_on(server, lease_ttl=lease) as nodes:
            await nodes.start("n1", "n2", "n3", "n4", "n5")
            leader = await nodes.leader()
            until = time.monotonic() + lease + 0.5
            while time.monotonic() < until:
                assert nodes.active() == [leader]
                await anyio.sleep(0.02)
            held = await user.lease()
            assert held["node"] == leader.settings.node
            assert held["term"] == leader.active == 1
            await serves(user, instances=5)
            assert set(on_nodes(await user.slices()).values()) == {1}
            await finish(user, nodes)


async def test_five_candidates_at_once(server: NatsServer) -> None:
    """However many want the lease at once, one term begins, and one only."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server) as nodes, anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(nodes.start, f"n{number}")
        async with nodes_on(server) as nodes:
            await nodes.start("x1")
            await nodes.leader()
            terms = [r.value["term"] for r in await user.recorded() if r.key == "_term"]
            assert len(terms) == len(set(terms))
            assert terms == sorted(terms)
            await finish(user, nodes)


@pytest.mark.quick
async def test_a_clean_stop_hands_over_at_once(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=10.0, node_ttl=10.0) as nodes:
            await nodes.start("n1", "n2", "n3")
            first = await nodes.leader()
            term = first.active
            await nodes.leader()
            watch = Stopwatch()
            await first.stop()
            second = await nodes.leader(above=term, promised=1)
            assert watch.took < watch.bound(1)
            assert second is not first
            assert second.active == term + 1
            assert str(first.settings.node) not in await user.registrations()
            await serves(user)
            await finish(user, nodes)


async def test_the_last_node_leaves_nothing_but_the_fence(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        await first.stop()
        assert set(await user.contents("slices")) == {"_term"}
        assert not await user.registrations()
        await nodes.start("n2")
        assert (await nodes.leader()).active == 2


@pytest.mark.quick
async def test_a_dead_leader_is_replaced_before_its_lease_ends(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=20.0, node_ttl=20.0) as nodes:
            await nodes.start("n1", "n2", "n3")
            first = await nodes.leader()
            term = first.active
            await anyio.sleep(1.1)  # followers get to know the term; before that they do not judge it
            watch = Stopwatch()
            await first.crash()
            await nodes.leader(above=term, promised=1)
            assert watch.took < watch.bound(1)
            await serves(user)
            await finish(user, nodes)


async def _asks(user: Raw, term: int, within: float) -> int:
    """How often the leader of this term is asked in so many seconds."""
    found = 0

    async def count(_message: Msg) -> None:
        nonlocal found
        found += 1

    subscription = await user.client.subscribe(f"cdm.leader.{term}", cb=count)
    await anyio.sleep(within)
    await subscription.unsubscribe()
    return found


async def test_a_leader_whose_end_the_server_tells_is_asked_rarely(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "RARELY", 10_000)
    async with raw(server) as user, nodes_on(server, lease_ttl=60.0, node_ttl=60.0) as nodes:
        await nodes.start("n1", "n2", "n3")
        beacons = [running.managing.leadership._beacon for running in nodes.all.values()]
        detectors = [running.managing.election.detector for running in nodes.all.values()]

        def told() -> int:
            return [each._told for each in detectors].count(True)

        for restarts in (True, False):
            first = await nodes.leader()
            await eventually(lambda: [each.burns for each in beacons].count(True) == 1)
            await eventually(lambda: [each.hears for each in beacons].count(True) == 2)
            await eventually(lambda: told() == 2)
            if restarts:  # what is told meanwhile is heard by nobody
                await server.restart()
                await eventually(lambda: not told())
        assert not await _asks(user, first.active, 0.5)
        term = first.active
        await first.crash()
        await nodes.leader(above=term)
        assert not any(each.error for each in nodes.all.values())


async def test_a_silent_leader_is_replaced_when_its_lease_ends(server: NatsServer) -> None:
    """It answers probes and renews nothing: then the TTL decides."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=5.0) as nodes:
            await nodes.start("n1", "n2", "n3")

            async def no_renewal(*_: Any) -> None:
                await anyio.sleep_forever()

            first = await nodes.leader()
            first.managing.leadership._renew = no_renewal  # type: ignore[assignment,method-assign]
            term = first.active
            assert term, "it leads still"
            began = time.monotonic()
            await in_time(lambda: any(node.active > term for node in nodes.active()), 5)
            assert time.monotonic() - began > 0.5, "nobody answers for it: the TTL was not waited for"
            assert not first.managing.election.valid(clock.now())
            await serves(user)
            await finish(user, nodes)


async def test_nobody_looks_for_what_is_renewed(server: NatsServer) -> None:
    """What expires is known by the clock, and looked for when it is due: at rest nothing is asked."""
    async with raw(server) as user, nodes_on(server, lease_ttl=12.0, node_ttl=12.0, reconcile_interval=600.0) as nodes:
        await nodes.start("n1", "n2", "n3")
        await nodes.leader()
        await serves(user)
        await anyio.sleep(1)
        asked = [await user.overhear(f"$JS.API.{call}.>") for call in ("STREAM.INFO", "STREAM.MSG", "DIRECT")]

        def consumers() -> int:
            return sum(w.listings + w.resumes for r in nodes.all.values() for w in r.node.watches.values())

        async def nothing_is_asked() -> bool:
            for each in asked:
                each.clear()
            before = consumers()
            await anyio.sleep(16)  # longer than the TTLs, after which each would be looked for
            subjects = [message.subject for each in asked for message in each]
            assert subjects == [] or consumers() > before, "whoever makes a consumer anew does ask"
            return not subjects

        await eventually(nothing_is_asked, 60)
        await nodes.all["n3"].crash()
        await eventually(lambda: any(message.subject.endswith("KV_nodes") for message in asked[0]), 10, "it is due")


@pytest.mark.quick
async def test_the_server_refuses_an_old_fence(server: NatsServer) -> None:
    """Whatever a deposed leader sends, single or in a batch, changes nothing."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        first = await nodes.leader()
        tenure = first.managing.election.tenure
        assert tenure is not None
        guard = {EXPECT: str(tenure.fence_revision), EXPECT_SUBJECT: FENCE}
        late = {"state": "LOAD", "term": tenure.term}
        await user.put("slices", "n1.g/n/1", late, guard)
        await first.stop()
        await nodes.leader(above=tenure.term)
        with pytest.raises(Rejection) as single:
            await user.put("slices", "n1.g/n/2", late, guard)
        assert single.value.code == 10071
        head = {"Nats-Batch-Id": "late", "Nats-Batch-Sequence": "1", **guard}
        await user.client.publish("$KV.slices.n1.g/n/3", b'{"state":"LOAD","term":1}', headers=head)
        commit = {"Nats-Batch-Id": "late", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
        with pytest.raises(Rejection) as batch:
            await user.put("slices", "n1.g/n/4", late, commit)
        assert batch.value.code == 10071
        after = await user.contents("slices")
        # What was stored in the old term may be gone by now, if it was on the node that stopped; nothing was added.
        assert not {"n1.g/n/2", "n1.g/n/3", "n1.g/n/4"} & set(after)


async def test_a_fenced_leader_steps_down_by_its_first_write(server: NatsServer) -> None:
    """Deaf to everything, a deposed leader learns from the server's refusal, and its command is not stored."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=20.0) as nodes:
            await nodes.start("n1", "n2")
            first = await nodes.leader()
            term = first.active
            leadership = first.managing.leadership

            async def nothing(*_: Any) -> None:
                await anyio.sleep(0.05)

            renew = leadership._renew
            leadership._renew = nothing  # type: ignore[assignment,method-assign]
            leadership.hearsay._watched = lambda lease: None  # type: ignore[method-assign]
            first.managing.election.watched_fence = lambda *_: None  # type: ignore[method-assign]
            lease, fence = (await user.contents("slices"))["_leader"], (await user.contents("slices"))["_term"]
            head = {"Nats-Batch-Id": "coup", "Nats-Batch-Sequence": "1", EXPECT: str(lease.sequence)}
            usurper = b'{"node":"usurper","term":%d}' % (term + 1)
            await user.client.publish("$KV.slices._leader", usurper, headers=head | {"Nats-TTL": "2s"})
            commit = {"Nats-Batch-Id": "coup", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
            await user.put("slices", "_term", usurper, commit | {EXPECT: str(fence.sequence)})
            await user.put("blueprints", KEY, 1)
            await eventually(lambda: first.active != term, 10, "fenced, it is Dormant before its TTL is over")
            leadership._renew = renew  # type: ignore[method-assign]
            await eventually(lambda: any(node.active > term + 1 for node in nodes.active()), 10)
            await eventually(lambda: _has_loads(user, KEY, 1))
            commands = [r for r in await user.recorded() if r.key.endswith(KEY)]
            assert all(record.value["term"] > term + 1 for record in commands)
            await finish(user, nodes)


VANDALISM = {
    "lease deleted": ("_leader", b"", {"KV-Operation": "DEL"}),
    "lease purged": ("_leader", b"", {"KV-Operation": "PURGE"}),
    "lease overwritten with rubbish": ("_leader", b"rubbish", {}),
    "lease given to nobody": ("_leader", b'{"node":"nobody","term":1,"incarnation":"x"}', {}),
    "lease given to a far term": ("_leader", b'{"node":"nobody","term":1000000,"incarnation":"x"}', {}),
    "lease given to a term that none can follow": ("_leader", b'{"node":"nobody","term":9007199254740992}', {}),
    "lease of another shape": ("_leader", b"[1, 2]", {}),
    "lease that is not UTF-8": ("_leader", b'{"node":"\xff","term":1}', {}),
    "lease that is nested too deeply": ("_leader", b'{"x":' + b"[" * 100_000, {}),
    "fence that is not UTF-8": ("_term", b'{"leader":"\xff","term":1}', {}),
    "fence deleted": ("_term", b"", {"KV-Operation": "DEL"}),
    "fence purged": ("_term", b"", {"KV-Operation": "PURGE"}),
    "fence overwritten with rubbish": ("_term", b"rubbish", {}),
    "fence set back": ("_term", b'{"term":0,"leader":"n1"}', {}),
    "fence set far ahead": ("_term", b'{"term":1000000,"leader":"n1"}', {}),
    "fence set to a term that none can follow": ("_term", b'{"term":9007199254740992,"leader":"n1"}', {}),
    "fence set to the highest term that can be read": ("_term", b'{"term":%d,"leader":"n1"}' % (2**52), {}),
    "lease given to the highest term that can be read": ("_leader", b'{"node":"nobody","term":%d}' % (2**52), {}),
    "fence set to the highest term that is believed": ("_term", b'{"term":%d}' % HIGHEST_CREDIBLE, {}),
    "fence rewritten as it was": ("_term", b'{"term":1,"leader":"n1"}', {}),
}


@pytest.mark.parametrize("what", VANDALISM)
async def test_vandalism_is_survived(server: NatsServer, what: str) -> None:
    key, data, headers = VANDALISM[what]
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        term = first.active
        await nodes.start("n2", "n3")
        await serves(user, "g/before/1")
        await user.put("slices", key, data, headers)
        await nodes.leader(above=term, promised=2)
        highest = max(running.managing.election.highest_term for running in nodes.all.values())
        record = (await user.contents("slices"))["_term"]
        assert record.value["term"] == highest > term
        await serves(user, "g/after/1")
        assert len(await user.slices()) == 4, "what ran before is left alone"
        nodes.unharmed()


@pytest.mark.parametrize("absurd", [2**52, 2**53])
@pytest.mark.parametrize("key", ["_term", "_leader"])
async def test_an_absurd_term_costs_one_term(server: NatsServer, key: str, absurd: int) -> None:
    """The terms after it could be read by nobody: then nobody would ever lead for longer than a second."""
    async with raw(server) as user, connected(server) as connection, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await user.put("slices", key, {"node": "nobody", "term": absurd})
        for number, term in enumerate((2**53, 2**60)):
            await user.put("slices", f"n1.g/stray/{number}", {"state": "ACTIVE", "term": term})
        second = await nodes.leader(above=1, promised=2)
        term = second.active
        await anyio.sleep(2.5)
        assert nodes.active() == [second]
        assert second.active == term < 5
        found = report(await snapshot(connection), clock.now())
        assert (found.leader, found.term) == (second.settings.node, term)
        assert found.healthy
        assert not found.notes

        async def unloaded() -> bool:
            strays = [record.value for name, record in (await user.contents("slices")).items() if "stray" in name]
            return [(value["state"], value["term"] <= term) for value in strays] == [("UNLOAD", True)] * 2

        await eventually(unloaded)
        await serves(user)
        nodes.unharmed()


async def test_terms_go_on_above_a_term_that_somebody_wrote_by_hand(server: NatsServer) -> None:
    """Also where every process that knew of it has ended since."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await user.put("slices", "_term", {"term": HIGHEST_CREDIBLE, "leader": "n1"})
        terms = [HIGHEST_CREDIBLE]
        for number in range(4):
            leader = await nodes.leader(above=terms[-1])
            terms.append(leader.active)
            if number == 1:
                await user.delete("slices", "_term")
                continue
            for running in nodes.all.values():
                await (running.stop() if number % 2 else running.crash())
            await nodes.start("n1", "n2")
        assert terms == sorted(set(terms))
        await serves(user)


async def test_vandalism_again_and_again(server: NatsServer) -> None:
    """Everything at once, in quick succession: terms only grow, and in the end somebody serves."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2", "n3")
        await nodes.leader()
        terms = [1]
        for key, data, headers in VANDALISM.values():
            await user.put("slices", key, data, headers)
            await anyio.sleep(0.1)
            terms.append(max(running.managing.election.highest_term for running in nodes.all.values()))
        assert terms == sorted(terms)
        await nodes.leader(above=terms[-1] - 1)
        await serves(user)
        nodes.unharmed()


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers that are lost are missed sooner."""
    monkeypatch.setattr(watch_module, "HEARTBEAT", 0.5)


@pytest.mark.usefixtures("quick_heartbeats")
async def test_slices_deleted_and_made_again(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2", "n3")
        first = await nodes.leader()
        for _ in range(2):
            await first.stop()
            await nodes.start(str(first.settings.node))
            first = await nodes.leader()
        term = first.active
        assert term == 3
        await serves(user, instances=4)
        await user.api("STREAM.DELETE.KV_slices")
        await nodes.leader(above=term, within=12)
        await eventually(lambda: _has_loads(user, KEY, 4), 10, "what was lost is commanded anew")
        record = (await user.contents("slices"))["_term"]
        assert record.value["term"] > term
        nodes.unharmed()


async def test_slices_purged(server: NatsServer) -> None:
    """``nats stream purge KV_slices`` takes lease, fence and slices, and leaves no markers."""
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1", "n2", "n3")
        first = await nodes.leader()
        term = first.active
        await serves(user, instances=4)
        await user.api("STREAM.PURGE.KV_slices", {})
        await nodes.leader(above=term, promised=5)
        await eventually(lambda: _has_loads(user, KEY, 4), 10, "what was lost is commanded anew")
        nodes.unharmed()


@pytest.mark.usefixtures("quick_heartbeats")
@pytest.mark.parametrize("bucket", ["blueprints", "nodes", "status"])
async def test_another_bucket_deleted(server: NatsServer, bucket: str) -> None:
    async with raw(server) as user, nodes_on(server, node_ttl=6.0) as nodes:
        await nodes.start("n1", "n2")
        await nodes.leader()
        await serves(user)
        await user.api(f"STREAM.DELETE.KV_{bucket}")
        await eventually(lambda: _exists(user, bucket), 12, "it is made again")
        await eventually(
            lambda: all(w.phase is Phase.LIVE for r in nodes.all.values() for w in r.node.watches.values())
        )
        await eventually(lambda: _registered(user, "n1", "n2"), 8, "both are registered")
        await serves(user, "g/after/1", within=8)
        nodes.unharmed()


async def _exists(user: Raw, bucket: str) -> bool:
    try:
        await user.api(f"STREAM.INFO.KV_{bucket}")
    except Rejection:
        return False
    return True


async def _registered(user: Raw, *names: str) -> bool:
    return set(await user.registrations()) == set(names)


async def test_a_server_that_is_killed_and_restarted(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=4.0, node_ttl=4.0) as nodes:
            await nodes.start("n1", "n2", "n3")
            await nodes.leader()
            await serves(user, instances=3)
            before = await user.slices()
            term = (await nodes.leader()).active
            server.kill()
            await anyio.sleep(4.5)  # all leases and registrations expire meanwhile
            await server.start()
            leader = await nodes.leader(within=10)
            assert leader.active > term
            await eventually(lambda: _registered(user, "n1", "n2", "n3"))
            assert await user.slices() == before, "nobody was evicted"
            await serves(user, "g/after/1", 6)
            stored = await user.recorded()
            assert not [r for r in stored if r.gone and not r.key.startswith("_")], "no slice was deleted"
            assert not [r for r in stored if r.value.get("state") == "UNLOAD"]
            nodes.unharmed()
            assert_terms_grow(stored, complete=False)


@pytest.mark.parametrize("pause", [1.9, 2.05, 2.6])
async def test_a_server_that_hangs_around_the_leases_end(server: NatsServer, pause: float) -> None:
    """Renewals sent into the silence are stored when the server goes on, at a time when their sender may have given
    up: somebody must lead afterwards, and not only hold the lease."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=2.0, node_ttl=2.0) as nodes:
            await nodes.start("n1")
            await nodes.leader()
            server.pause()
            await anyio.sleep(pause)
            server.resume()
            await anyio.sleep(0.5)
            await nodes.leader(promised=2)
            await serves(user, within=5)
            await finish(user, nodes)


async def test_a_server_that_hangs_while_a_take_over_is_prepared(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate's voice cannot be heard to be up: nothing may come of it but another attempt."""
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 1.0)
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        leadership = first.managing.leadership
        raised = leadership._start_responder
        hung: list[int] = []

        async def hang_first(term: int) -> None:
            if not hung:
                hung.append(term)
                server.pause()
            await raised(term)

        leadership._start_responder = hang_first  # type: ignore[method-assign]
        await user.client.publish("$KV.slices._leader", b"", headers={"KV-Operation": "DEL"})
        await eventually(lambda: bool(hung))
        await anyio.sleep(1.5)  # longer than the flush waits
        server.resume()
        nodes.unharmed()
        await nodes.leader(above=1)
        await serves(user)


async def test_a_take_over_whose_answer_was_lost_is_adopted(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server) as nodes:
            await nodes.start("n1")
            first = await nodes.leader()
            slices = first.node.buckets["slices"]
            batch = slices.batch
            lost: list[int] = []

            async def deaf(writes: Any, timeout: float | None = None) -> int:
                revision = await batch(writes, timeout)
                if not lost:
                    lost.append(revision)
                    raise Uncertain("no answer in time")
                return revision

            slices.batch = deaf  # type: ignore[method-assign]
            await user.delete("slices", "_leader")
            second = await nodes.leader(above=1, within=3)
            assert lost
            assert second.active == 2, "what was won is not taken again"
            await serves(user)
            await finish(user, nodes)


async def test_an_interrupted_take_over_does_not_hang(server: NatsServer) -> None:
    """The connection breaks after the take-over was stored and before its answer came."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=20.0) as nodes:
            await nodes.start("n1")
            first = await nodes.leader()
            slices = first.node.buckets["slices"]
            batch = slices.batch
            broken: list[int] = []

            async def breaking(writes: Any, timeout: float | None = None) -> int:
                revision = await batch(writes, timeout)
                if not broken:
                    broken.append(revision)
                    first.node.connection._client._transport.close()  # type: ignore[union-attr]
                    raise Unreachable("the connection was lost")
                return revision

            slices.batch = breaking  # type: ignore[method-assign]
            await user.delete("slices", "_leader")
            await nodes.leader(above=1, within=15)  # the adopted lease is of use before it ends
            assert broken
            await serves(user)
            await finish(user, nodes)


async def test_a_restarted_process_does_not_adopt_its_predecessors_lease(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server, lease_ttl=10.0) as nodes:
            await nodes.start("n1")
            first = await nodes.leader()
            await first.crash()
            await nodes.start("n1")
            second = await nodes.leader(promised=3)
            assert second.active == 2
            await finish(user, nodes)


async def test_a_leader_that_lost_its_connection_steps_down_in_time(server: NatsServer) -> None:
    """By its own clock, before the lease can end on the server."""
    async with nodes_on(server, lease_ttl=6.0) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        server.kill()
        watch = Stopwatch()
        await eventually(lambda: not first.active, 6, "it is Dormant before its TTL is over")
        assert watch.took < watch.bound(6, slack=0)
        assert not first.managing.election.valid(clock.now())
        await server.start()
        again = await nodes.leader(promised=5)
        assert again.active > 1


async def test_quick_successions_only_grow_the_term(server: NatsServer) -> None:
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server) as nodes:
            await nodes.start("n1", "n2", "n3")
            for number in range(4):
                leader = await nodes.leader(promised=3)
                await user.put("blueprints", "g/n/1", number)
                if number % 2:
                    await leader.crash()
                else:
                    await leader.stop()
                await nodes.start(str(leader.settings.node))
            await serves(user, within=15)
            await finish(user, nodes)


async def test_a_blueprint_behind_more_refused_ones_than_are_kept_stays_in_force(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        guarded = {"env": {"A": "x"}, "args": ["--safe"], "stop_after": 30.0}
        await user.put("blueprints", KEY, {"instances": 3, **guarded})
        await eventually(lambda: _has_loads(user, KEY, 3))
        for number in range(15):
            await user.put("blueprints", KEY, b"x%d" % number)
        await eventually(lambda: _condition(user, "Invalid"))
        before = {key: record for key, record in (await user.contents("slices")).items() if not key.startswith("_")}
        await nodes.all["n1"].stop()
        await nodes.start("n1")
        await nodes.leader(above=1)
        await user.put("blueprints", "g/after/1", 1)
        await eventually(lambda: _has_loads(user, "g/after/1", 1))
        assert await _has_loads(user, KEY, 3)
        status = await user.status(KEY)
        assert status["condition"] == "Invalid"
        assert status["desired"] == 3
        assert not status.keys() & {"overrides", "settings"}, "whoever may read statuses need not read variables"
        assert (await user.contents("slices"))[f"_blueprint.{KEY}"].value["blueprint"] == {"instances": 3, **guarded}
        after = await user.contents("slices")
        assert {after[key].value["state"] for key in before if key.endswith(KEY)} == {"LOAD"}
        lost = next(key for key in before if KEY in key)
        await user.delete("slices", lost)

        async def replaced() -> bool:
            found = await user.contents("slices")
            return lost in found and found[lost].sequence > after[lost].sequence

        await eventually(replaced)
        again = (await user.contents("slices"))[lost].value
        assert again["overrides"] == guarded, "with all that the valid one wanted"
        nodes.unharmed()


async def test_a_blueprint_deleted_while_nobody_led_is_not_revived_by_a_refused_one(server: NatsServer) -> None:
    async with raw(server) as user, nodes_on(server) as nodes:
        await nodes.start("n1")
        await nodes.leader()
        await nodes.start("n2")
        await serves(user, instances=3)
        await eventually(lambda: _condition(user, "Progressing"))
        await nodes.all["n2"].crash()
        await nodes.all["n1"].crash()
        await user.delete("blueprints", KEY)
        await user.put("blueprints", KEY, b"oops")
        await nodes.start("n1", "n2")
        await nodes.leader(above=1)
        await eventually(lambda: _condition(user, "Invalid"))
        await eventually(lambda: _all_unload(user), 5, "the deleted one is in force no more")
        assert (await user.status(KEY))["in_force_revision"] == 0
        nodes.unharmed()


async def _all_unload(user: Raw) -> bool:
    return set((await user.slices()).values()) <= {"UNLOAD"}


async def _condition(user: Raw, condition: str) -> bool:
    return (await user.status(KEY)).get("condition") == condition


async def test_connections_that_break_again_and_again(server: NatsServer) -> None:
    """Everybody's connection breaks at times, the leader's too: never two leaders, and nothing is lost."""
    async with raw(server) as user:
        await user.record()
        async with nodes_on(server) as nodes:
            await nodes.start("n1", "n2", "n3")
            await nodes.leader()
            for number in range(9):
                await user.put("blueprints", f"g/n/{number}", 2)
                running = list(nodes.all.values())[number % 3]
                transport: Any = running.node.connection._client._transport
                transport.close()
                await anyio.sleep(0.25)
                valid = [node for node in nodes.all.values() if node.managing.election.valid(clock.now())]
                terms = [node.managing.election.tenure.term for node in valid if node.managing.election.tenure]
                assert len(set(terms)) == len(terms)
            await nodes.leader(within=5)
            for number in range(9):
                await eventually(lambda n=number: _has_loads(user, f"g/n/{n}", 2))  # type: ignore[misc]
            assert len(await user.slices()) == 18, "nobody is evicted, and nothing is there twice"
            await finish(user, nodes)


async def test_slices_of_a_node_that_left_before_the_take_over_are_moved(server: NatsServer) -> None:
    """The successor hears of the departure before it leads."""
    async with raw(server) as user, nodes_on(server, node_ttl=30.0) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        await nodes.start("n2", "n3")
        await serves(user, instances=6)
        for key, record in (await user.contents("slices")).items():
            if not key.startswith("_"):  # at rest, nothing of them is ever due
                await user.put("slices", key, {**record.value, "state": "ACTIVE"})
        await first.stop()
        await nodes.leader(above=1)
        await eventually(lambda: _none_on(user, "n1", 6), 5)
        nodes.unharmed()


async def test_slices_of_a_node_that_left_before_its_successor_began_are_moved_at_once(server: NatsServer) -> None:
    """The successor never saw it registered: what it goes by is the marker of the farewell."""
    async with raw(server) as user, nodes_on(server, node_ttl=60.0) as nodes:
        await nodes.start("n1")
        first = await nodes.leader()
        await serves(user, instances=3)
        await first.stop()
        await nodes.start("n2")
        await nodes.leader(above=1)
        await eventually(lambda: _none_on(user, "n1", 3), 15)
        nodes.unharmed()


async def test_slices_of_a_node_that_expired_before_its_successor_began_have_their_time(server: NatsServer) -> None:
    """After an outage every registration has expired: a marker of that is no farewell."""
    async with raw(server) as user, nodes_on(server, node_ttl=6.0) as nodes:
        await nodes.start("n1", node_ttl=4.0)
        first = await nodes.leader()
        await serves(user, instances=3)
        await first.crash()
        await eventually(lambda: _registered(user), 20, "its registration expires")
        began = time.monotonic()
        await nodes.start("n2")
        await eventually(lambda: _none_on(user, "n1", 3), 30)
        assert time.monotonic() - began > 4, "it is given its TTL to register again"
        nodes.unharmed()


async def _none_on(user: Raw, node: str, instances: int) -> bool:
    found = await user.slices()
    return len(found) == instances and not on_nodes(found)[node]


async def test_prefixes_keep_clusters_apart(server: NatsServer) -> None:
    async with (
        raw(server) as plain,
        raw(server, "east") as east,
        nodes_on(server) as here,
        nodes_on(server, prefix="east") as there,
    ):
        await here.start("n1")
        await there.start("n1", "n2")
        first, second = await here.leader(), await there.leader()
        assert first.active == second.active == 1
        await serves(east, "g/east/1", 2)
        await serves(plain, "g/plain/1", 3)
        assert on_nodes(await plain.slices()) == {"n1": 3}
        assert on_nodes(await east.slices()) == {"n1": 1, "n2": 1}
        await second.crash()
        await there.leader(above=1, promised=3)
        assert here.active() == [first]


async def test_a_node_at_rest_is_quiet(server: NatsServer) -> None:
    """What a cluster at rest costs the server: heartbeats, renewals and probes, and nothing in a tight loop."""
    async with raw(server) as user, nodes_on(server, lease_ttl=2.0, node_ttl=2.0) as nodes:
        await nodes.start("n1", "n2", "n3")
        await nodes.leader()
        await serves(user)
        heard: list[str] = []

        async def listen(message: Any) -> None:
            heard.append(message.subject)

        await user.client.subscribe(">", cb=listen)
        assert await _rate(heard) < 60, sorted(set(heard))


async def _rate(heard: list[str]) -> float:
    """Messages a second, of three looks the one in the middle: what stood still may elect in one of them."""
    rates = []
    for _ in range(3):
        heard.clear()
        began = time.monotonic()
        await anyio.sleep(1)
        talk = [subject for subject in heard if not subject.startswith("_INBOX")]
        rates.append(len(talk) / (time.monotonic() - began))
    return sorted(rates)[1]


@pytest.mark.parametrize("bucket", ["nodes", "slices"])
async def test_a_missing_bucket_is_not_asked_for_in_a_tight_loop(server: NatsServer, bucket: str) -> None:
    async with raw(server) as user, nodes_on(server, lease_ttl=2.0, node_ttl=2.0) as nodes:
        await nodes.start("n1")
        await nodes.all["n1"].stop()
        await nodes.start("n1", "n2", "n3", create=False)  # nobody makes it again
        await nodes.leader()
        heard: list[str] = []

        async def listen(message: Any) -> None:
            heard.append(message.subject)

        await user.client.subscribe(">", cb=listen)
        await user.api(f"STREAM.DELETE.KV_{bucket}")
        assert await _rate(heard) < 150, sorted(set(heard))
        nodes.unharmed()
