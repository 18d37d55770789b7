"""A manager knows what each artifact consists of: on a real server, and without what it takes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.artifacts import kept
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import UnreadableArtifact
from cdm.errors import StoreBusy
from cdm.model.artifact import Artifact
from cdm.model.keys import ARTIFACTS
from cdm.model.manifest import Manifest
from cdm.model.node import Role
from cdm.node import contents as module
from cdm.store import mirror as mirror_module
from cdm.store import watch as module_of_watches
from cdm.store.bucket import buckets
from cdm.store.descriptions import Descriptions
from cdm.store.watch import Watch
from tests.harness.nodes import Nodes, Running, nodes_on
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import Mirror, connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, patiently, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE, TWO = Artifact("g", "one", "1"), Artifact("g", "two", "1")
UNKNOWN = "what artifacts consist of is not known"


class Pusher:
    """Somebody who pushes."""

    def __init__(self, artifacts: Artifacts, folder: Path) -> None:
        self.artifacts = artifacts
        self.folder = folder

    async def push(self, artifact: Artifact, text: str) -> str:
        """Push a file with this text; returns the content's digest."""
        path = self.folder / "program"
        path.write_text(text)
        content = pack(path, self.folder).content(Manifest(entry="program"))
        await self.artifacts.push(artifact, path, content, force=True)
        return content.sha256


@asynccontextmanager
async def pusher(server: NatsServer, folder: Path, *, create: bool = True) -> AsyncIterator[Pusher]:
    async with connected(server) as connection:
        artifacts = Artifacts(connection)
        if create:
            await artifacts.ensure(create=True)
        yield Pusher(artifacts, folder)


async def manager(nodes: Nodes, name: str = "m1", **settings: Any) -> Running:
    await nodes.start(name, role=Role.MANAGER, **settings)
    return nodes.all[name]


async def knows(running: Running, expected: dict[Artifact, str], within: float = 10) -> None:
    def found() -> dict[Artifact, str]:
        return running.managing.manager.cluster.contents

    await eventually(lambda: found() == expected, within, f"{expected} is known, not {found()}")


@pytest.mark.quick
async def test_what_is_pushed_replaced_and_removed_is_known(server: NatsServer, tmp_path: Path) -> None:
    async with raw(server) as user, nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        one, two = await at.push(ONE, "1"), await at.push(TWO, "2")
        first = await manager(nodes)
        await knows(first, {ONE: one, TWO: two})
        other = await at.push(ONE, "other")
        await knows(first, {ONE: other, TWO: two})
        await user.put("slices", "_rollout.g/one", {"from": {"content": other}})
        third = await at.push(ONE, "third")  # and the one before is kept
        assert len(await at.artifacts.kept()) == 1
        theirs = await user.client.jetstream().object_store("artifacts")
        await theirs.put("no-artifact", b"x")
        await theirs.put("g/foreign/1", b"x")
        await knows(first, {ONE: third, TWO: two})
        assert await user.client.request("$O.artifacts.M.Zy9vbmUvMQ==", b"{")
        await knows(first, {TWO: two})
        await at.artifacts.remove(TWO)
        await knows(first, {})
        three = await at.push(TWO, "three")
        await knows(first, {TWO: three})
        await theirs.delete("g/two/1")
        await knows(first, {})
        await eventually(lambda: _read_by(user, 1))  # a consumer that was lost is there for a while
        assert isinstance((await at.artifacts.listing())[0], UnreadableArtifact)
        await first.stop()
        await eventually(lambda: _read_by(user, 0))


async def _read_by(user: Raw, count: int) -> bool:
    return bool((await user.api("STREAM.INFO.OBJ_artifacts"))["state"]["consumer_count"] == count)


async def test_it_is_known_whatever_becomes_of_the_server(server: NatsServer, tmp_path: Path) -> None:
    async with nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        first = await manager(nodes)
        expected = {ONE: await at.push(ONE, "1")}
        await knows(first, expected)
        for turn in range(2):
            (server.kill if turn else server.stop)()
            await server.start()
            expected[ONE] = await at.push(ONE, f"after {turn}")
            await knows(first, expected, 30)


async def test_parts_that_are_being_pushed_hold_up_no_barrier(server: NatsServer, tmp_path: Path) -> None:
    """The stream's last message is one that the watch is not told of."""
    async with raw(server) as user, pusher(server, tmp_path) as at, connected(server) as connection:
        await at.push(ONE, "1")
        await user.client.request("$O.artifacts.C.parts", b"x")
        mirror = Mirror()
        watch = Watch(Descriptions(connection), mirror)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: mirror.values)
            for _ in range(3):
                await user.client.request("$O.artifacts.C.parts", b"x")
                with bounded():
                    await watch.caught_up()
            await watch.check()
            tasks.cancel_scope.cancel()
        assert not mirror.resets


async def test_descriptions_that_are_removed_in_the_end_are_missed_by_nobody(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kept content that is not needed leaves a mark, and after a while not even that."""
    monkeypatch.setattr(kept, "MARKER_TTL", 0.0)
    monkeypatch.setattr(mirror_module, "MARKER_TTL", 0.0)
    async with nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        expected = {ONE: await at.push(ONE, "1")}
        first = await manager(nodes)
        await knows(first, expected)
        for turn in range(5):
            expected[ONE] = await at.push(ONE, f"{turn}")
            await knows(first, expected)
            await first.managing.contents.check()
            await first.managing.contents.caught_up()
        await knows(first, expected)
        assert "purged" not in capsys.readouterr().out


# Who leads knows it


async def test_a_new_leader_knows_what_was_pushed_before(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[dict[Artifact, str]] = []
    real = Watch.run
    monkeypatch.setattr("cdm.node.contents.BARRIER_PATIENCE", 60.0)  # that it waits is the subject, not how long

    async def late(self: Watch) -> None:
        if self.bucket.layout is ARTIFACTS:
            await anyio.sleep(0.5)
        await real(self)

    async with nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        one = await at.push(ONE, "1")
        monkeypatch.setattr(Watch, "run", late)
        first = await manager(nodes)

        def told() -> bool:
            if first.active and not known:
                known.append(dict(first.managing.manager.cluster.contents))
            return bool(known)

        await eventually(told, 10, "it leads")
        assert known == [{ONE: one}]


async def test_a_store_that_does_not_answer_holds_up_no_leader(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is known, rather than what was so once, and it is read anew."""

    async def silent(self: Descriptions) -> Any:
        if stuck:
            raise StoreBusy("the stream has no majority")
        return await real(self)

    real, stuck = Descriptions.state, False
    monkeypatch.setattr(Descriptions, "state", silent)
    monkeypatch.setattr(module_of_watches, "HEARTBEAT", 60.0)
    async with nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        one = await at.push(ONE, "1")
        first = await manager(nodes)
        second = await manager(nodes, "m2")
        for each in (first, second):
            await knows(each, {ONE: one})
        leader = await nodes.leader()
        other = second if leader is first else first
        stuck = True
        await leader.crash()
        await nodes.leader(above=leader.active)
        assert other.active
        assert other.managing.manager.cluster.contents == {}
        stuck = False
        await knows(other, {ONE: one})


async def test_a_barrier_that_takes_too_long_is_left(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BARRIER_PATIENCE", 0.2)

    async def never(self: Watch) -> None:
        await anyio.sleep_forever()

    async with nodes_on(server) as nodes, pusher(server, tmp_path) as at:
        one = await at.push(ONE, "1")
        first = await manager(nodes)
        await knows(first, {ONE: one})
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "caught_up", never)
            with bounded():
                await first.managing.contents.caught_up()
            assert first.managing.manager.cluster.contents == {}
        await knows(first, {ONE: one})


# Where there is nothing to be read


async def test_without_a_bucket_a_manager_manages_and_notices_one_that_is_made(
    server: NatsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw(server) as user, nodes_on(server, reconcile_interval=0.5) as nodes:
        async with connected(server) as connection:
            for bucket in buckets(connection).values():
                await bucket.ensure(create=True)
        first = await manager(nodes, create=False)
        await nodes.leader()
        await user.put("blueprints", "g/one/1", 0)
        await eventually(partial(_told, user))
        assert not first.managing.contents.known
        await anyio.sleep(1.2)
        output = capsys.readouterr().out
        assert output.count(UNKNOWN) == 1
        assert "bucket artifacts does not exist" in output
        async with pusher(server, tmp_path) as at:
            one = await at.push(ONE, "1")
            await knows(first, {ONE: one})
        assert "what artifacts consist of is known" in capsys.readouterr().out
        # And one that goes again, and comes again.
        await user.api("STREAM.DELETE.OBJ_artifacts")
        await knows(first, {}, 20)
        async with pusher(server, tmp_path) as at:
            two = await at.push(TWO, "2")
            await knows(first, {TWO: two}, 20)
        nodes.unharmed()


async def _told(user: Raw) -> bool:
    return bool(await user.status("g/one/1"))


async def test_a_bucket_that_is_deleted_is_made_again_by_nodes_that_may(server: NatsServer, tmp_path: Path) -> None:
    async with raw(server) as user, nodes_on(server, reconcile_interval=0.5) as nodes, pusher(server, tmp_path) as at:
        first = await manager(nodes)
        await at.push(ONE, "1")
        await knows(first, {ONE: await at.push(ONE, "1")})
        await user.api("STREAM.DELETE.OBJ_artifacts")
        await eventually(lambda: patiently(partial(_made, user)), 30)
        await knows(first, {}, 20)
        two = await at.push(TWO, "2")
        await knows(first, {TWO: two}, 20)


async def _made(user: Raw) -> bool:
    return bool(await user.api("STREAM.INFO.OBJ_artifacts"))


async def test_a_manager_that_may_not_read_it_manages_and_reads_it_once_it_may(tmp_path: Path) -> None:
    def rules(*denied: str) -> str:
        restricted = {"user": "m", "password": "m", "permissions": {"publish": {"allow": ">", "deny": denied}}}
        users = [restricted, {"user": "o", "password": "o"}]
        return json.dumps({"jetstream": {"store_dir": str(tmp_path / "js")}, "authorization": {"users": users}})

    config = tmp_path / "server.conf"
    config.write_text(rules("$JS.API.CONSUMER.CREATE.OBJ_artifacts.>"))
    async with running_server(jetstream=False, arguments=["-c", str(config)]) as server:
        server_of = partial(_As, server)
        async with pusher(server_of("o"), tmp_path) as at:  # type: ignore[arg-type]
            one = await at.push(ONE, "1")
            async with nodes_on(server_of("m"), reconcile_interval=0.5) as nodes:
                first = await manager(nodes)
                await nodes.leader()
                assert first.managing.manager.cluster.contents == {}
                await eventually(lambda: not first.managing.contents.known)
                config.write_text(rules())
                await server.restart_with(["-c", str(config)])
                await knows(first, {ONE: one}, 30)
                nodes.unharmed()


class _As:
    """A server, as one of its users has it."""

    def __init__(self, server: NatsServer, user: str) -> None:
        self._server = server
        self._user = user

    @property
    def url(self) -> str:
        return self._server.url.replace("://", f"://{self._user}:{self._user}@")
