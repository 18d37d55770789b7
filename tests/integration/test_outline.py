"""The whole outline with ``cdm node`` processes, users and agents who have nothing but a NATS client."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import nats.errors
import pytest

from tests.harness.agents import agents
from tests.harness.judging import assert_terms_grow, live
from tests.harness.processes import Process, Processes, command_line, processes
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import Raw, Record, Rejection, artifact_of, on_nodes, patiently, raw, runs_exactly

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
UNANSWERED = ("--command-timeout", "600")
"""Where no agent answers: on a busy machine commands are not to count as stuck meanwhile."""


@pytest.fixture
async def user(server: NatsServer) -> AsyncIterator[Raw]:
    async with raw(server) as client:
        await client.record()
        yield client


async def states(user: Raw, artifact: str = KEY) -> dict[str, str]:
    return {key: state for key, state in (await user.slices()).items() if artifact_of(key) == artifact}


async def settled(user: Raw, artifact: str, instances: int, state: str = "ACTIVE") -> bool:
    """All instances are there, in this state, and nothing else of the artifact is."""
    try:
        found = await states(user, artifact)
    except (Rejection, nats.errors.Error):
        return False
    return sorted(found.values()) == [state] * instances


async def leader(user: Raw, running: Processes, above: int = 0, promised: float | None = None) -> tuple[Process, int]:
    """The leading process and its term, once it is above the given one."""

    async def led() -> dict[str, Any]:
        try:
            lease = await user.lease()
        except nats.errors.Error:
            return {}
        return lease if lease.get("term", 0) > above else {}

    what = f"somebody leads in a term above {above}"
    lease = await (eventually(led, what=what) if promised is None else in_time(led, promised, what))
    return running.all[lease["node"]], int(lease["term"])


def commands(records: list[Record], artifact: str = KEY) -> list[tuple[str, str]]:
    return [
        (record.key, record.value["state"])
        for record in records
        if not record.key.startswith("_") and artifact_of(record.key) == artifact and not record.gone
    ]


@pytest.mark.quick
async def test_publish_scale_and_remove(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with processes(server, user, tmp_path, "n1", "n2", "n3") as running:
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: settled(user, KEY, 3, "LOAD"), 5)
        assert set(await states(user)) == {f"{node}.{KEY}" for node in ("n1", "n2", "n3")}
        await user.put("blueprints", KEY, {"instances": 5})
        await eventually(lambda: settled(user, KEY, 5, "LOAD"), 5)
        five = set(await states(user))
        assert sorted(on_nodes(await states(user)).values()) == [1, 2, 2]
        assert {key.removeprefix(key[:3]) for key in five} == {KEY, f"{KEY}/1"}
        await user.put("blueprints", KEY, 2)
        await eventually(lambda: _counts(user, LOAD=2, UNLOAD=3), 5)
        kept = {key for key, state in (await states(user)).items() if state == "LOAD"}
        assert len(on_nodes(dict.fromkeys(kept, ""))) == 2, "what stays is spread"
        await user.delete("blueprints", KEY)
        await eventually(lambda: _counts(user, UNLOAD=5), 5)
        stored = commands(await user.recorded())
        assert [state for _, state in stored] == ["LOAD"] * 5 + ["UNLOAD"] * 5, "the smallest changes, each once"
        assert len(set(stored)) == 10
        running.unharmed()


async def _counts(user: Raw, **counts: int) -> bool:
    found = list((await states(user)).values())
    return {state: found.count(state) for state in found} == counts


async def test_a_slices_whole_life(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with processes(server, user, tmp_path, "n1", "n2", "n3") as running, agents(server, "n1", "n2", "n3"):
        await user.put("blueprints", KEY, {"instances": 7, "min_healthy": 0})
        await eventually(lambda: settled(user, KEY, 7), 10)
        assert sorted(on_nodes(await states(user)).values()) == [2, 2, 3]
        status = await eventually(lambda: _status(user, active=7), 5)
        assert status["condition"] == "Ready"
        assert status["desired"] == 7
        assert (status["pending"], status["failed"]) == (0, 0)
        blueprint = (await user.contents("blueprints"))[KEY]
        assert status["observed_revision"] == status["in_force_revision"] == blueprint.sequence
        await user.put("blueprints", KEY, 4)
        await eventually(lambda: settled(user, KEY, 4), 10)
        assert sorted(on_nodes(await states(user)).values()) == [1, 1, 2]
        await user.put("blueprints", KEY, 0)
        await eventually(lambda: settled(user, KEY, 0), 10)
        await user.delete("blueprints", KEY)
        await eventually(lambda: _no_status(user), 5, "the status goes with the blueprint")
        running.unharmed()


async def _status(user: Raw, artifact: str = KEY, **fields: Any) -> dict[str, Any]:
    status = await user.status(artifact)
    return status if all(status.get(name) == value for name, value in fields.items()) else {}


async def _no_status(user: Raw) -> bool:
    return not await user.status(KEY)


@pytest.mark.quick
async def test_a_killed_leader(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3")
    async with processes(server, user, tmp_path, *names, node_ttl=6) as running, agents(server, *names):
        await user.put("blueprints", KEY, 6)
        await eventually(lambda: settled(user, KEY, 6), 10)
        await anyio.sleep(1.2)  # followers get to know the leader
        first, term = await leader(user, running)
        first.send(signal.SIGKILL)
        _, second = await leader(user, running, above=term, promised=1)
        assert second == term + 1
        await user.put("blueprints", "g/after/1", 2)
        await eventually(lambda: settled(user, "g/after/1", 2), 10)
        await in_time(lambda: settled_without(user, KEY, 6, first.name), 7, "its slices are replaced")
        assert not any(key.startswith(f"{first.name}.") for key in await user.slices())
        assert sorted(on_nodes(await states(user)).values()) == [3, 3]
        running.unharmed(first.name)
        # When it returns, nothing moves back, and it is used again.
        running.start(first.name)
        await eventually(lambda: _registered(user, first.name), 10)
        await running.heard(user)
        await user.put("blueprints", KEY, 8)
        await eventually(lambda: settled(user, KEY, 8), 10)
        assert on_nodes(await states(user))[first.name] == 2
        assert_terms_grow(await user.recorded())


async def settled_without(user: Raw, artifact: str, instances: int, node: str) -> bool:
    found = await states(user, artifact)  # one look: between two of them the node may be given up
    return sorted(found.values()) == ["ACTIVE"] * instances and not on_nodes(found)[node]


async def _registered(user: Raw, name: str) -> bool:
    return name in await user.registrations()


async def test_a_frozen_leader(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    """Past its lease it wakes up with work in its hands, and nothing of that is stored."""
    lease = 6.0  # on a busy machine nobody else is to lose one
    async with processes(
        server, user, tmp_path, "n1", "n2", "n3", lease_ttl=lease, node_ttl=30, options=UNANSWERED
    ) as running:
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: settled(user, KEY, 3, "LOAD"), 5)
        first, term = await leader(user, running)
        first.send(signal.SIGSTOP)
        try:
            for number in range(200):  # it has these to read, and would like to command, when it wakes
                await user.put("blueprints", f"g/late/{number}", 2)
            _, second = await leader(user, running, above=term, promised=lease)
            assert second == term + 1
            await user.put("blueprints", KEY, 5)
        finally:
            first.send(signal.SIGCONT)
        await eventually(lambda: settled(user, KEY, 5, "LOAD"), 10)
        await eventually(lambda: _are(user, 200 * 2 + 5), 10, "all are served")
        await anyio.sleep(1)  # whatever it had in mind, it had the time
        assert_terms_grow(await user.recorded())
        assert await _are(user, 200 * 2 + 5)
        running.unharmed()


async def _are(user: Raw, count: int) -> bool:
    return len(await user.slices()) == count


async def test_a_stopped_leader(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with processes(server, user, tmp_path, "n1", "n2", "n3", lease_ttl=20, node_ttl=20) as running:
        await user.put("blueprints", KEY, 3)
        await eventually(lambda: settled(user, KEY, 3, "LOAD"), 5)
        for number, remaining in enumerate((2, 1), 1):
            first, term = await leader(user, running)
            first.send(signal.SIGTERM)
            _, second = await leader(user, running, above=term, promised=1)
            assert second == term + 1 == number + 1
            assert await first.ends(5) == 0, first.log
            del running.all[first.name]
            await eventually(lambda r=remaining: _spread(user, r), 5, "its slices are elsewhere")  # type: ignore[misc]
        last, _ = await leader(user, running)
        last.send(signal.SIGINT)
        assert await last.ends(5) == 0, last.log
        assert set(await user.contents("slices")) >= {"_term"}
        assert "_leader" not in await user.contents("slices")
        assert not await user.registrations()
        assert_terms_grow(await user.recorded())


async def _spread(user: Raw, nodes: int) -> bool:
    found = {key: state for key, state in (await states(user)).items() if live(state)}
    return len(found) == 3 and len(on_nodes(found)) == nodes


async def test_a_node_that_dies(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3", "n4")
    async with processes(server, user, tmp_path, *names, node_ttl=6) as running, agents(server, *names):
        for number in range(4):
            await user.put("blueprints", f"g/n/{number}", 4)
        for number in range(4):
            await eventually(lambda n=number: settled(user, f"g/n/{n}", 4), 10)  # type: ignore[misc]
        first, _ = await leader(user, running)
        victim = next(process for name, process in running.all.items() if name != first.name)
        before = await user.slices()
        victim.send(signal.SIGKILL)
        await in_time(lambda: _evicted(user, victim.name), 7)
        for number in range(4):
            await eventually(lambda n=number: settled(user, f"g/n/{n}", 4), 10)  # type: ignore[misc]
        after = await user.slices()
        kept = {key for key in before if not key.startswith(f"{victim.name}.")}
        assert kept <= set(after), "nothing else moved"
        running.unharmed(victim.name)


async def _evicted(user: Raw, name: str) -> bool:
    return not on_nodes(await user.slices())[name]


MALFORMED: list[bytes] = [
    b"",
    b" ",
    b"x",
    b"-1",
    b"3.0",
    b"1e3",
    b"true",
    b"null",
    b'"3"',
    b"[3]",
    b"{}",
    b'{"instances": "3"}',
    b'{"instances": -1}',
    b'{"instances": 3.5}',
    b'{"instances": null}',
    b'{"instances": true}',
    b'{"instances": 100001}',
    b'{"instances": 3, "colour": "red"}',
    b'{"instance": 3}',
    b'{"instances": 3',
    b"{'instances': 3}",
    b"\xff\xfe\xfd",
    b"\x00\x01",
    b"99999999999999999999",
    b"1e400",
    b"NaN",
    b"Infinity",
    b"03",
    b"3 3",
    b"[" * 5000,
    b'{"a":' * 2000,
    b"3" * 70_000,
    b'{"instances": 3, "instances": "x"}',
    b"0x10",
    "3".encode("utf-16"),
    "\uff13".encode(),
    b'{"INSTANCES": 3}',
    b'[{"instances": 3}]',
    b"--",
    b'{"instances": {"n": 3}}',
]


async def test_malformed_blueprints_between_good_ones(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    assert len(MALFORMED) == 40
    async with processes(server, user, tmp_path, "n1", "n2", node_ttl=2, options=UNANSWERED) as running:
        await user.put("blueprints", "g/unborn/1", b"oops")
        for number, text in enumerate(MALFORMED):
            await user.put("blueprints", f"g/n/{number}", 1 + number % 3)
            await user.put("blueprints", f"g/n/{number}", text)
            await user.put("blueprints", f"no such key {number}".replace(" ", "-"), b"3")
            await user.put("blueprints", f"g/good/{number}", 1)
        last = await user.put("blueprints", "g/good/1", 2)

        async def all_served() -> bool:
            wanted = {f"g/n/{number}": 1 + number % 3 for number in range(40)}
            wanted |= {f"g/good/{number}": 1 for number in range(40)} | {"g/good/1": 2}
            return Counter(map(artifact_of, await user.slices())) == wanted

        await eventually(all_served, 15, "good ones are served, refused ones leave the last valid one in force")
        assert last
        statuses = await eventually(lambda: _statuses(user, 40 + 40 + 40 + 1, invalid=40 + 40 + 1), 10)
        for number in range(40):
            refused = statuses[f"g/n/{number}"]
            assert refused["condition"] == "Invalid", MALFORMED[number]
            assert refused["reason"]
            assert refused["in_force_revision"] < refused["observed_revision"]
            assert refused["desired"] == 1 + number % 3
        assert statuses["g/unborn/1"]["in_force_revision"] == 0
        assert statuses["no-such-key-0"]["condition"] == "Invalid"
        assert "instances" in statuses["g/n/12"]["reason"]
        # A new leader, which sees only the history, comes to the same end.
        first, term = await leader(user, running)
        first.send(signal.SIGKILL)
        running.all.pop(first.name)
        await leader(user, running, above=term)
        await in_time(lambda: _evicted(user, first.name), 5)
        await eventually(all_served, 10)
        running.unharmed()


async def _statuses(user: Raw, count: int, invalid: int) -> dict[str, dict[str, Any]]:
    found = {key: record.value for key, record in (await user.contents("status")).items()}
    refused = [value for value in found.values() if value["condition"] == "Invalid"]
    return found if len(found) == count and len(refused) == invalid else {}


async def test_a_server_killed_during_edits(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3")
    async with processes(server, user, tmp_path, *names, lease_ttl=2, node_ttl=9) as running, agents(server, *names):
        wanted: dict[str, int] = {}

        async def edit() -> None:
            for number in range(200):
                name = f"g/n/{number % 25}"
                wanted[name] = (number * 7) % 5
                await user.stubborn("blueprints", name, wanted[name])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(edit)
            await anyio.sleep(0.1)
            server.kill()
            await anyio.sleep(0.5)
            await server.start()

        async def exact() -> bool:
            return await patiently(lambda: runs_exactly(user, wanted))

        await eventually(exact, 25, "the end state is exact")
        running.unharmed()
        assert_terms_grow(await user.recorded(), complete=False)
        assert not [process for process in running.all.values() if "node is dead" in process.log], "nobody is evicted"
        # And once more at rest, with an outage longer than every TTL.
        before = await user.contents("slices")
        server.kill()
        await anyio.sleep(9.5)
        await server.start()
        await eventually(lambda: _lease(user), 10)
        await user.put("blueprints", "g/after/1", 3)
        await eventually(lambda: settled(user, "g/after/1", 3), 10)
        after = await user.contents("slices")
        same = {key for key in before if not key.startswith("_")}
        assert all(after[key].sequence == before[key].sequence for key in same), "nothing moved"
        running.unharmed()


async def _lease(user: Raw) -> dict[str, Any]:
    try:
        return await user.lease()
    except nats.errors.Error:
        return {}


async def test_at_rest_nothing_moves_but_the_lease(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3")
    async with processes(server, user, tmp_path, *names) as running, agents(server, *names):
        for number in range(10):
            await user.put("blueprints", f"g/n/{number}", {"instances": 4, "min_healthy": 0})
        await user.put("blueprints", "g/bad/1", b"x")
        await user.put("blueprints", "bad-key", b"1")
        for number in range(10):
            await eventually(lambda n=number: settled(user, f"g/n/{n}", 4), 10)  # type: ignore[misc]
        await eventually(lambda: _told(user, Ready=10, Invalid=2), 5)
        heard: list[tuple[str, bytes]] = []

        async def listen(message: Any) -> None:
            heard.append((message.subject, message.data))

        for subject in ("$KV.slices.>", "$KV.status.>", "$KV.blueprints.>"):
            await user.client.subscribe(subject, cb=listen)
        await user.client.flush()
        await anyio.sleep(2.5)  # two intervals of reconciliation, and some
        await eventually(lambda: heard, what="the lease is renewed")
        moved = [(subject, data) for subject, data in heard if subject != "$KV.slices._leader"]
        assert not moved
        running.unharmed()


async def _told(user: Raw, **counts: int) -> bool:
    return Counter(record.value["condition"] for record in (await user.contents("status")).values()) == counts


async def test_a_big_order_whose_leader_is_killed(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    """More than one atomic batch holds; whatever was stored of it, the successor completes it exactly."""
    async with processes(server, user, tmp_path, "n1", "n2", "n3", node_ttl=10, options=UNANSWERED) as running:
        first, term = await leader(user, running)
        await user.put("blueprints", KEY, 3500)
        await eventually(lambda: _stored(user, 500), 10, "some of it is stored")
        first.send(signal.SIGKILL)
        await leader(user, running, above=term, promised=3)
        await eventually(lambda: _halves(user, 3500), 15, "all of it is on the two nodes that are left")
        assert_terms_grow(await user.recorded())
        running.unharmed(first.name)


async def _stored(user: Raw, count: int) -> bool:
    return int((await user.api("STREAM.INFO.KV_slices"))["state"]["messages"]) > count


async def _halves(user: Raw, count: int) -> bool:
    both = sorted(on_nodes(await states(user)).values()) == [count // 2, count // 2]
    return both and await settled(user, KEY, count, "LOAD")


async def test_a_frozen_node_is_replaced_and_comes_back(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3")
    async with processes(server, user, tmp_path, *names, node_ttl=6) as running, agents(server, *names):
        await user.put("blueprints", KEY, 6)
        await eventually(lambda: settled(user, KEY, 6), 10)
        first, _ = await leader(user, running)
        victim = next(process for process in running.all.values() if process is not first)
        victim.send(signal.SIGSTOP)
        try:
            await in_time(lambda: settled_without(user, KEY, 6, victim.name), 7)
            before = await user.contents("slices")
        finally:
            victim.send(signal.SIGCONT)
        await in_time(lambda: _registered(user, victim.name), 5, "it registers again")
        await anyio.sleep(1.5)
        after = await user.contents("slices")
        changed = [record for key, record in after.items() if key[0] != "_" and record != before.get(key)]
        assert not changed, "nothing moves back"
        assert {key for key in before if key[0] != "_"} == {key for key in after if key[0] != "_"}
        await running.heard(user)
        await user.put("blueprints", KEY, 8)
        await eventually(lambda: settled(user, KEY, 8), 10)
        assert on_nodes(await states(user))[victim.name] == 2
        running.unharmed()


async def test_cordon_and_drain(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    names = ("n1", "n2", "n3")
    async with processes(server, user, tmp_path, *names) as running, agents(server, *names):
        # Nodes and blueprints are streams of their own: a leader may see the later write first.
        await user.put("nodes", "n1.intent", {"schedule": "cordon"})
        await eventually(lambda: running.know("cordon", "n1"), what="all know of the cordon")
        await user.put("blueprints", KEY, 4)
        await eventually(lambda: settled(user, KEY, 4), 10)
        assert on_nodes(await states(user)) == {"n2": 2, "n3": 2}
        await user.put("nodes", "n2.intent", {"schedule": "drain"})
        await eventually(lambda: settled_without(user, KEY, 4, "n2"), 10)
        assert on_nodes(await states(user)) == {"n3": 4}
        for name in ("n1", "n2"):
            await user.delete("nodes", f"{name}.intent")
        await eventually(lambda: running.know("normal", "n1", "n2"), what="all know that the nodes may be used again")
        await user.put("blueprints", KEY, 10)
        await eventually(lambda: settled(user, KEY, 10), 10)
        assert on_nodes(await states(user)) == {"n1": 3, "n2": 3, "n3": 4}
        running.unharmed()


async def test_a_failing_slice_is_retried_elsewhere_and_told(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with processes(server, user, tmp_path, "n1", "n2") as running:
        await user.put("blueprints", KEY, 1)
        await eventually(lambda: settled(user, KEY, 1, "LOAD"), 5)
        key, record = next((k, r) for k, r in (await user.contents("slices")).items() if k.endswith(KEY))
        await user.put("slices", key, {**record.value, "state": "FAILED", "reason": "no disk", "failures": 3})
        await eventually(lambda: _degraded(user), 5)
        other = "n2" if key.startswith("n1") else "n1"
        await eventually(lambda: _loaded_on(user, other), 5, "it is tried on the other node")
        again = (await user.contents("slices"))[f"{other}.{KEY}"]
        assert again.value["failures"] == 4
        running.unharmed()


async def _degraded(user: Raw) -> bool:
    status = await user.status(KEY)
    return status.get("condition") == "Degraded" and "no disk" in status["reason"]


async def _loaded_on(user: Raw, node: str) -> bool:
    return (await states(user)).get(f"{node}.{KEY}") == "LOAD"


# The command line


async def test_the_exit_codes_of_a_node(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    async with processes(server, user, tmp_path, "n1"):
        taken = await command_line("node", "--id", "n1", "--server", server.url)
        assert taken.returncode == 4
        assert b"n1" in taken.stderr + taken.stdout
        assert b"Traceback" not in taken.stderr
    wrong = await command_line("node", "--id", "n1", "--server", server.url, "--capacity", "many")
    assert wrong.returncode == 2
    bad = await command_line("node", "--id", "a/b", "--server", server.url)
    assert bad.returncode == 2


async def test_status_and_init(server: NatsServer, tmp_path: Path) -> None:
    missing = await command_line("status", "--json", "--server", server.url)
    assert missing.returncode in (1, 3)
    assert b"Traceback" not in missing.stderr
    for _ in range(2):
        init = await command_line("init", "--server", server.url)
        assert init.returncode == 0, init.stderr
    async with running_server(jetstream=False) as plain:
        refused = await command_line("init", "--server", plain.url)
        assert refused.returncode == 1
        assert b"JetStream" in refused.stderr
        assert b"Traceback" not in refused.stderr
    async with (
        raw(server) as user,
        processes(server, user, tmp_path, "n1", "n2", lease_ttl=6),
        agents(server, "n1", "n2"),
    ):
        await user.put("blueprints", KEY, 2)
        await eventually(lambda: settled(user, KEY, 2), 10)
        await eventually(lambda: _status(user, active=2), 5)
        shown = await command_line("status", "--json", "--server", server.url)
        assert shown.returncode == 0, shown.stderr + shown.stdout
        report = json.loads(shown.stdout)
        assert "n1" in json.dumps(report)
        assert "org.example" in json.dumps(report)
        # The two nodes have two each, for their manager and for their own slices; the agents' own listings come and go.
        await eventually(lambda: _consumers_of_cdm(user, 4), 5, "a look leaves no consumer behind")
        await user.put("blueprints", KEY, b"x")
        await eventually(lambda: _status(user, condition="Invalid"), 5)
        shown = await command_line("status", "--json", "--server", server.url)
        assert "Invalid" in json.dumps(json.loads(shown.stdout))
    async with raw(server) as user:
        await eventually(lambda: _leaderless(user), 5)
        unhealthy = await command_line("status", "--json", "--server", server.url)
        assert unhealthy.returncode == 3
        json.loads(unhealthy.stdout)


async def _leaderless(user: Raw) -> bool:
    return not await user.lease()


async def test_a_waiting_node_can_be_stopped_and_starts_with_its_server(tmp_path: Path) -> None:
    """Without a server a node waits for it, and SIGTERM ends it in good order all the same."""
    async with running_server() as server, raw(server) as user:
        server.kill()
        running = Processes(server.url, tmp_path, ())
        try:
            waiting, patient = running.start("n1"), running.start("n2")
            await eventually(lambda: server.url.rpartition(":")[2] in waiting.log, 10, "it says where it waits")
            waiting.send(signal.SIGTERM)
            assert await waiting.ends(5) == 0, waiting.log
            await server.start()
            await eventually(lambda: _registered_soon(user, "n2"), 10)
            patient.send(signal.SIGTERM)
            assert await patient.ends(5) == 0, patient.log
        finally:
            running.kill()


async def _registered_soon(user: Raw, name: str) -> bool:
    try:
        return name in await user.registrations()
    except (Rejection, nats.errors.Error):
        return False


async def _consumers_of_cdm(user: Raw, count: int) -> bool:
    found = (await user.api("CONSUMER.LIST.KV_slices"))["consumers"]
    return len([each for each in found if each["name"].startswith("cdm-")]) == count
