"""Artifacts in the object store of a real server: pushed by several at once, broken, replaced, cut off."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from cdm.artifacts import repository as module
from cdm.artifacts import transfer as module_of_transfers
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import Pushed, StoredArtifact, UnreadableArtifact
from cdm.errors import ArtifactDamaged, ArtifactMissing, BucketMissing, Conflict, InvalidContent, StoreError
from cdm.model.artifact import Artifact
from cdm.model.content import Content
from cdm.model.manifest import Manifest
from cdm.store.connection import Access, connect
from cdm.store.objects import CHUNK
from tests.harness.processes import environment
from tests.harness.servers import FORGIVEN, NatsServer, running_cluster
from tests.harness.store import connected
from tests.harness.waiting import Stopwatch, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = Artifact("org.example", "one", "1.0.0+b1")
NAME = "org.example/one/1.0.0=2Bb1"


@asynccontextmanager
async def store(server: NatsServer, prefix: str = "") -> AsyncIterator[Artifacts]:
    async with connected(server, prefix) as connection:
        artifacts = Artifacts(connection)
        await artifacts.ensure(create=True)
        yield artifacts


def source(folder: Path, size: int = 300_000, name: str = "program") -> tuple[Path, Content]:
    path = folder / name
    with path.open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
        file.write(os.urandom(size % 1_000_000))
    return path, pack(path, folder).content(Manifest(entry=name), inside=False)


async def chunks(user: Raw) -> dict[str, int]:
    """How many messages each name of parts has."""
    info = await user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.C.>"})
    return {subject.rpartition(".")[2]: count for subject, count in (info["state"].get("subjects") or {}).items()}


async def fetched(artifacts: Artifacts, stored: StoredArtifact, into: Path) -> bytes:
    await artifacts.fetch(stored, into)
    return await anyio.Path(into).read_bytes()


@pytest.mark.quick
async def test_what_is_pushed_is_described_listed_fetched_and_removed(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    steps: list[tuple[int, int]] = []
    async with store(server) as artifacts, raw(server) as user:
        assert not await artifacts.ensure(create=True)
        with pytest.raises(ArtifactMissing, match="cdm artifact push"):
            await artifacts.describe(ONE)
        pushed = await artifacts.push(ONE, path, content, progress=lambda *step: steps.append(step))
        assert pushed is Pushed.STORED
        assert steps == [(CHUNK, 300_000), (2 * CHUNK, 300_000), (300_000, 300_000)]
        stored = await artifacts.describe(ONE)
        assert stored.content == content
        assert await artifacts.listing() == [stored]
        assert await fetched(artifacts, stored, tmp_path / "copy") == path.read_bytes()
        assert await artifacts.push(ONE, path, content) is Pushed.UNCHANGED
        await artifacts.remove(ONE)
        assert await artifacts.listing() == []
        assert await chunks(user) == {}
        with pytest.raises(ArtifactMissing):
            await artifacts.remove(ONE)
        with pytest.raises(Conflict, match="replaced or removed"):
            await artifacts.fetch(stored, tmp_path / "gone")
        assert await artifacts.push(ONE, path, content) is Pushed.STORED


async def test_other_clients_read_the_same_objects(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        theirs = await user.client.jetstream().object_store("artifacts")
        assert (await theirs.get(NAME)).data == path.read_bytes()
        await theirs.put("g/other/1", b"x")
        await theirs.put("no artifact".replace(" ", "-"), b"x")
        listed = await artifacts.listing()
        assert [each.name for each in listed if isinstance(each, UnreadableArtifact)] == ["g/other/1", "no-artifact"]
        other = Artifact("g", "other", "1")
        with pytest.raises(InvalidContent, match="not pushed by cdm"):
            await artifacts.describe(other)
        with pytest.raises(Conflict, match="cannot be read"):
            await artifacts.push(other, path, content)
        await artifacts.remove(other)
        await theirs.delete(NAME)
        with pytest.raises(ArtifactMissing):
            await artifacts.describe(ONE)


async def test_without_a_bucket_it_is_said_what_to_do(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server) as connection:
        artifacts = Artifacts(connection)
        for call in (artifacts.describe(ONE), artifacts.listing(), artifacts.ensure(create=False)):
            with pytest.raises(BucketMissing, match="cdm init"):
                await call


async def test_a_prefix_is_a_store_of_its_own(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    async with store(server, "p") as ours, store(server) as others, raw(server) as user:
        await ours.push(ONE, path, content)
        assert await others.listing() == []
        assert (await user.api("STREAM.INFO.OBJ_p_artifacts"))["config"]["storage"] == "file"


async def test_what_is_there_is_not_changed_without_force(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    other, other_content = source(tmp_path, name="other")
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        before = await artifacts.describe(ONE)
        with pytest.raises(Conflict, match="other content"):
            await artifacts.push(ONE, other, other_content)
        manifest = replace(content, manifest=Manifest(entry="program", args=("-x",)))
        with pytest.raises(Conflict, match="another manifest"):
            await artifacts.push(ONE, path, manifest)
        assert await artifacts.describe(ONE) == before
        assert set(await chunks(user)) == {before.nuid}
        assert await artifacts.push(ONE, other, other_content, force=True) is Pushed.REPLACED
        stored = await artifacts.describe(ONE)
        assert stored.content == other_content
        assert set(await chunks(user)) == {stored.nuid}


@pytest.mark.parametrize("same", [True, False])
async def test_of_two_pushes_at_once_one_wins_and_nothing_of_the_other_is_left(
    server: NatsServer, tmp_path: Path, same: bool
) -> None:
    sources = [source(tmp_path, name=f"program-{n}") for n in range(4)]
    if same:
        sources = [sources[0]] * 4
    results: list[Pushed | type[StoreError]] = []

    async def one(path: Path, content: Content) -> None:
        async with store(server) as artifacts:
            try:
                results.append(await artifacts.push(ONE, path, content))
            except Conflict as error:
                results.append(type(error))

    async with store(server) as artifacts, raw(server) as user:
        async with anyio.create_task_group() as tasks:
            for path, content in sources:
                tasks.start_soon(one, path, content)
        assert results.count(Pushed.STORED) == 1
        assert results.count(Pushed.UNCHANGED if same else Conflict) == 3
        stored = await artifacts.describe(ONE)
        assert set(await chunks(user)) == {stored.nuid}
        pushed = await anyio.Path(tmp_path / stored.content.file).read_bytes()
        assert await fetched(artifacts, stored, tmp_path / "copy") == pushed


async def test_forced_pushes_at_once_all_win_in_turn(server: NatsServer, tmp_path: Path) -> None:
    sources = [source(tmp_path, name=f"program-{n}") for n in range(4)]
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, *sources[0])
        async with anyio.create_task_group() as tasks:
            for path, content in sources:
                tasks.start_soon(partial(artifacts.push, ONE, path, content, force=True))
        stored = await artifacts.describe(ONE)
        assert set(await chunks(user)) == {stored.nuid}
        await artifacts.fetch(stored, tmp_path / "copy")


async def test_a_push_that_is_cancelled_leaves_the_old_one_and_no_parts(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    big, big_content = source(tmp_path, 20_000_000, "big")
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        before = await artifacts.describe(ONE)
        with anyio.CancelScope() as scope:
            await artifacts.push(
                ONE, big, big_content, force=True, progress=lambda done, _: scope.cancel() if done > 5_000_000 else None
            )
        assert scope.cancelled_caught
        assert await artifacts.describe(ONE) == before
        assert set(await chunks(user)) == {before.nuid}
        assert await fetched(artifacts, before, tmp_path / "copy") == path.read_bytes()


async def test_a_file_that_changes_while_it_is_pushed_is_not_stored(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    path.write_bytes(b"other")
    async with store(server) as artifacts, raw(server) as user:
        with pytest.raises(InvalidContent, match="was changed"):
            await artifacts.push(ONE, path, content)
        assert await artifacts.listing() == []
        assert await chunks(user) == {}


async def test_a_transfer_survives_a_restart_of_the_server(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path, 30_000_000)
    async with store(server) as artifacts, anyio.create_task_group() as tasks:
        restarts = 0

        def disturb(done: int, total: int) -> None:
            nonlocal restarts
            if restarts == 0 and done > total / 2:
                restarts = 1
                tasks.start_soon(server.restart)

        assert await artifacts.push(ONE, path, content, progress=disturb) is Pushed.STORED
        assert restarts == 1
        restarts = 0
        stored = await artifacts.describe(ONE)
        await artifacts.fetch(stored, tmp_path / "copy", disturb)
        assert restarts == 1


async def test_parts_of_killed_pushes_are_swept_away_once_they_are_old(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = source(tmp_path)
    async with store(server) as artifacts, raw(server) as user:
        await user.client.request("$O.artifacts.C.orphan", b"x" * 1000)
        await artifacts.push(ONE, path, content)
        assert "orphan" in await chunks(user)
        monkeypatch.setattr(module, "UNFINISHED", 0.0)
        other = Artifact("g", "other", "1")
        await artifacts.push(other, path, content)
        assert set(await chunks(user)) == {
            each.nuid for each in await artifacts.listing() if isinstance(each, StoredArtifact)
        }
        await artifacts.fetch(await artifacts.describe(ONE), tmp_path / "copy")


async def test_on_three_servers_a_transfer_survives_the_loss_of_one(tmp_path: Path) -> None:
    path, content = source(tmp_path, 20_000_000)
    async with running_cluster() as servers:
        access = Access(servers=tuple(server.url for server in servers))
        async with connect(access, name="test") as connection, raw(servers) as user:
            artifacts = Artifacts(connection)
            await eventually(partial(_made, artifacts), 20)
            info = await user.api("STREAM.INFO.OBJ_artifacts")
            assert info["config"]["num_replicas"] == 3
            leader = servers[int(info["cluster"]["leader"].removeprefix("s")) - 1]
            disturbed = False

            def disturb(done: int, total: int) -> None:
                nonlocal disturbed
                if not disturbed and done > total / 2:
                    disturbed = True
                    leader.kill()

            assert await artifacts.push(ONE, path, content, progress=disturb) is Pushed.STORED
            assert disturbed
            assert await fetched(artifacts, await artifacts.describe(ONE), tmp_path / "copy") == path.read_bytes()


async def _made(artifacts: Artifacts) -> bool:
    try:
        return await artifacts.ensure(create=True, replicas=3)
    except StoreError:
        return False


# Broken in the store


async def sequences(user: Raw, nuid: str) -> list[int]:
    found, after = list[int](), 0
    while True:
        request = json.dumps({"next_by_subj": f"$O.artifacts.C.{nuid}", "seq": after + 1}).encode()
        answer = await user.client.request("$JS.API.DIRECT.GET.OBJ_artifacts", request)
        assert answer.headers
        if "Status" in answer.headers:
            return found
        after = int(answer.headers["Nats-Sequence"])
        found.append(after)


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_an_artifact_with_a_part_missing_is_refused(server: NatsServer, tmp_path: Path, which: int) -> None:
    path, content = source(tmp_path)
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        stored = await artifacts.describe(ONE)
        sequence = (await sequences(user, stored.nuid))[which]
        await user.api("STREAM.MSG.DELETE.OBJ_artifacts", {"seq": sequence})
        with pytest.raises(ArtifactDamaged, match="push it again"):
            await artifacts.fetch(stored, tmp_path / "copy")
        watch = Stopwatch()
        assert await artifacts.push(ONE, path, content) is Pushed.REPAIRED
        assert watch.took < watch.bound(module_of_transfers.LAG, slack=0), "a part that is missing is not waited for"
        stored = await artifacts.describe(ONE)
        assert await fetched(artifacts, stored, tmp_path / "again") == path.read_bytes()
        assert await chunks(user) == {stored.nuid: 3}
        assert await artifacts.push(ONE, path, content) is Pushed.UNCHANGED


async def test_an_artifact_with_another_part_in_the_place_of_one_is_refused(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path, 2 * CHUNK)
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        stored = await artifacts.describe(ONE)
        last = (await sequences(user, stored.nuid))[-1]
        await user.api("STREAM.MSG.DELETE.OBJ_artifacts", {"seq": last})
        await user.client.request(f"$O.artifacts.C.{stored.nuid}", os.urandom(CHUNK))
        with pytest.raises(ArtifactDamaged, match="not those that were pushed"):
            await artifacts.fetch(stored, tmp_path / "copy")
        assert await artifacts.push(ONE, path, content) is Pushed.REPAIRED
        await artifacts.fetch(await artifacts.describe(ONE), tmp_path / "again")


async def test_of_those_who_repair_at_once_each_finds_it_whole_in_the_end(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    async with store(server) as artifacts, raw(server) as user:
        await artifacts.push(ONE, path, content)
        damaged = (await artifacts.describe(ONE)).nuid
        await user.api("STREAM.MSG.DELETE.OBJ_artifacts", {"seq": (await sequences(user, damaged))[1]})
        results: list[Pushed] = []

        async def push() -> None:
            async with store(server) as own:
                results.append(await own.push(ONE, path, content))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(push)
        assert set(results) <= {Pushed.REPAIRED, Pushed.UNCHANGED}
        assert Pushed.REPAIRED in results
        stored = await artifacts.describe(ONE)
        assert await chunks(user) == {stored.nuid: 3}
        assert await fetched(artifacts, stored, tmp_path / "copy") == path.read_bytes()


async def test_a_part_that_is_too_long_is_refused(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path, CHUNK)
    async with store(server) as artifacts:
        await artifacts.push(ONE, path, content)
        stored = await artifacts.describe(ONE)
        short = replace(stored, content=replace(content, size=CHUNK - 1))
        with pytest.raises(ArtifactDamaged):
            await artifacts.fetch(short, tmp_path / "copy")


async def test_a_record_that_is_nonsense_is_told_and_can_be_replaced(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path)
    subject = f"$O.artifacts.M.{base64.urlsafe_b64encode(NAME.encode()).decode()}"
    async with store(server) as artifacts, raw(server) as user:
        for nonsense in (b"{", b"[]", b'{"name": 1}', b'{"name":"x","bucket":"y","nuid":"z","metadata":{"cdm":"{}"}}'):
            await user.client.request(subject, nonsense)
            with pytest.raises(InvalidContent, match=r"org\.example:one:"):
                await artifacts.describe(ONE)
            assert isinstance((await artifacts.listing())[0], UnreadableArtifact)
        other = Artifact("g", "other", "1")
        await artifacts.push(other, path, content)
        await user.client.request(subject, b'{"name":"x","bucket":"y","nuid":">"}')
        await artifacts.push(ONE, path, content, force=True)
        for each in (ONE, other):
            await artifacts.fetch(await artifacts.describe(each), tmp_path / each.name)


# Size

STREAM = r"""
import asyncio, re, sys
from pathlib import Path
from cdm.artifacts.packing import pack
from cdm.model.artifact import Artifact
from cdm.model.manifest import Manifest
from cdm.artifacts.repository import Artifacts
from cdm.store.connection import Access, connect
from cdm.store.objects import CHUNK

def peak():
    # Not what getrusage says: that begins with the peak of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

async def main(url, path, folder):
    async with connect(Access(servers=(url,)), name="test") as connection:
        artifacts = Artifacts(connection)
        await artifacts.ensure(create=True)
        before = peak()
        packed = pack(Path(path), Path(folder))
        name = Artifact.parse("g:big:1")
        await artifacts.push(name, packed.path, packed.content(Manifest()))
        await artifacts.fetch(await artifacts.describe(name), Path(folder) / "copy")
        print(peak() - before, file=sys.stderr)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_64_megabytes_go_through_in_a_few_megabytes_of_memory(server: NatsServer, tmp_path: Path) -> None:
    path, content = source(tmp_path, 64 * 1024 * 1024)
    ran = await anyio.run_process(
        [sys.executable, "-c", STREAM, server.url, str(path), str(tmp_path)],
        env=environment(),
        stdin=subprocess.DEVNULL,
    )
    assert int(ran.stderr) < 20_000
    with (tmp_path / "copy").open("rb") as copy:
        assert hashlib.file_digest(copy, "sha256").hexdigest() == content.sha256
