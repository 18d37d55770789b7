"""Contents that were pushed over stay for as long as something names them, whatever interrupts those who push."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from cdm.artifacts import kept as module
from cdm.artifacts import repository
from cdm.artifacts.kept import Kept
from cdm.artifacts.named import named_contents
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import Pushed, StoredArtifact
from cdm.errors import ArtifactDamaged, ArtifactMissing, Conflict, ContentMissing, StoreError, Uncertain, Unreachable
from cdm.model.artifact import Artifact
from cdm.model.content import Content
from cdm.model.manifest import Manifest
from cdm.store.connection import Access, connect
from cdm.store.objects import ObjectInfo, Objects
from tests.harness.processes import environment
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import connected
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

ONE = Artifact("org.example", "one", "1.0.0+b1")
NAME = "org.example/one/1.0.0=2Bb1"
SLICE = f"n1.{NAME}"
RECORD = "_rollout.org.example/one"


class Shop:
    """A store with the buckets of a cluster, three contents, and somebody who looks at all of it from outside."""

    def __init__(self, server: NatsServer, artifacts: Artifacts, user: Raw, folder: Path) -> None:
        self.server = server
        self.artifacts = artifacts
        self.user = user
        self.folder = folder
        self.sources = {name: self._source(name) for name in ("a", "b", "c")}

    def _source(self, name: str) -> tuple[Path, Content]:
        path = self.folder / name / "program"
        path.parent.mkdir()
        path.write_bytes(name.encode() * 300_000)
        return path, pack(path, path.parent).content(Manifest(entry="program", args=(name,)), inside=False)

    def digest(self, name: str) -> str:
        return self.sources[name][1].sha256

    async def push(self, name: str, *, artifacts: Artifacts | None = None, force: bool = True) -> Pushed:
        return await (artifacts or self.artifacts).push(ONE, *self.sources[name], force=force)

    async def name_in_slice(self, name: str | None, key: str = SLICE) -> None:
        """A slice runs this content; None: there is no such slice any more."""
        if name is None:
            await self.user.delete("slices", key)
        else:
            await self.user.put("slices", key, {"state": "ACTIVE", "term": 1, "content": self.digest(name)})

    async def name_in_record(self, old: str, new: str) -> None:
        """A rollout goes from one content to another."""
        of = {name: {"version": "1.0.0", "content": self.digest(name)} for name in (old, new)}
        await self.user.put("slices", RECORD, {"from": of[old], "to": of[new], "phase": "rolling"})

    async def bytes_of(self, stored: StoredArtifact) -> bytes:
        copy = anyio.Path(self.folder / f"copy-{stored.nuid}")
        await copy.unlink(missing_ok=True)
        await self.artifacts.fetch(stored, Path(copy))
        return await copy.read_bytes()

    async def has(self, *names: str) -> bool:
        """Whether these contents can be fetched, each whole, and no others."""
        for name in self.sources:
            try:
                stored = await self.artifacts.describe(ONE, self.digest(name))
            except ContentMissing:
                if name in names:
                    return False
                continue
            assert stored.content == self.sources[name][1]
            assert await self.bytes_of(stored) == name.encode() * 300_000
            if name not in names:
                return False
        return True

    async def parts(self) -> int:
        """How many contents there are parts of."""
        info = await self.user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.C.>"})
        return len(info["state"].get("subjects") or {})


@asynccontextmanager
async def shop(server: NatsServer, folder: Path) -> AsyncIterator[Shop]:
    async with connected(server) as connection, raw(server) as user:
        artifacts = Artifacts(connection)
        await artifacts.ensure(create=True)
        await user.record()
        yield Shop(server, artifacts, user, folder)


@contextmanager
def before_puts(number: int, act: Callable[[ObjectInfo], Awaitable[None]]) -> Iterator[None]:
    """Do something once, before the description with this number is written; numbers count from 1."""
    real, count = Objects.put, 0

    async def put(self: Objects, info: ObjectInfo, expect: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            await act(info)
        await real(self, info, expect)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objects, "put", put)
        yield


@pytest.mark.quick
async def test_a_content_that_a_slice_names_is_kept_until_it_does_not(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at:
        assert await at.push("a") is Pushed.STORED
        before = await at.artifacts.describe(ONE)
        await at.name_in_slice("a")
        assert await at.push("b") is Pushed.REPLACED
        assert await at.has("a", "b")
        now = await at.artifacts.describe(ONE)
        assert now.content.sha256 == at.digest("b")
        assert await at.artifacts.listing() == [now], "what is kept is no artifact"
        assert [(each.artifact, each.content) for each in await at.artifacts.kept()] == [(ONE, before.content)]
        assert await at.bytes_of(before) == b"a" * 300_000, "whoever was reading it reads on"

        await at.push("c")
        assert await at.has("a", "c"), "nothing named b"
        await at.name_in_slice("c")
        assert await at.has("a", "c"), "it is removed by the next push"
        other = Artifact("g", "other", "1")
        await at.artifacts.push(other, *at.sources["b"])
        assert await at.has("c")
        assert await at.parts() == 2
        with pytest.raises(ContentMissing, match=f"content {at.digest('a')[:12]} of org.example:one:.* pushed over"):
            await at.artifacts.describe(ONE, at.digest("a"))


@pytest.mark.quick
async def test_what_a_rollouts_record_names_is_kept(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.name_in_record("a", "b")
        await at.push("b")
        await at.push("c")
        assert await at.has("a", "b", "c")
        await at.user.delete("slices", RECORD)
        await at.artifacts.remove(ONE)
        assert await at.parts() == 0


async def test_one_that_is_pushed_again_is_there_once(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at:
        for name in ("a", "b", "a", "b"):
            await at.push(name)
            await at.name_in_record("a", "b")
        assert await at.has("a", "b")
        assert await at.parts() == 2
        assert [each.content.sha256 for each in await at.artifacts.kept()] == [at.digest("a")]


async def test_what_is_not_cdms_is_replaced_as_it_always_was(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at:
        theirs = await at.user.client.jetstream().object_store("artifacts")
        await theirs.put(NAME, b"x")
        await at.push("a")
        assert await at.has("a")
        assert await at.parts() == 1


async def test_other_clients_read_what_is_kept(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.name_in_slice("a")
        await at.push("b")
        theirs = await at.user.client.jetstream().object_store("artifacts")
        kept = await theirs.get(f"{NAME}/{at.digest('a')}")
        assert kept.data == b"a" * 300_000
        assert (await theirs.get(NAME)).data == b"b" * 300_000


async def test_what_is_removed_leaves_no_trace_in_the_end(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shop(server, tmp_path) as at:
        for name in ("a", "b"):
            await at.push(name)

        async def subjects() -> int:
            info = await at.user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.M.>"})
            return len(info["state"]["subjects"])

        assert await subjects() == 2, "a mark tells those who follow the bucket that it is gone"
        monkeypatch.setattr(module, "MARKER_TTL", 0.0)
        await at.artifacts.push(Artifact("g", "other", "1"), *at.sources["a"])
        assert await subjects() == 2, "of the two artifacts"
        assert await at.has("b")


# Reading what is named


async def test_nothing_is_removed_where_it_cannot_be_told_what_is_named(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(connection: Any) -> frozenset[str]:
        raise Unreachable("no connection")

    async with shop(server, tmp_path) as at, connected(server) as connection:
        await at.push("a")
        monkeypatch.setattr(repository, "named_contents", fails)
        blind = Artifacts(connection)
        assert await at.push("b", artifacts=blind) is Pushed.REPLACED
        assert await at.has("a", "b")
        assert await blind.remove(ONE) is True
        assert await at.has("a", "b")


@pytest.mark.parametrize("denied", ["$JS.API.CONSUMER.CREATE.KV_slices.>", "$JS.API.STREAM.INFO.KV_slices"])
async def test_one_who_may_not_read_what_is_named_keeps_everything(
    tmp_path: Path, denied: str, capsys: pytest.CaptureFixture[str]
) -> None:
    restricted = {"user": "p", "password": "p", "permissions": {"publish": {"allow": ">", "deny": denied}}}
    users = [restricted, {"user": "o", "password": "o"}]
    config = tmp_path / "server.conf"
    js = {"store_dir": str(tmp_path / "js")}
    config.write_text(json.dumps({"jetstream": js, "authorization": {"users": users}, "no_auth_user": "o"}))
    async with running_server(jetstream=False, arguments=["-c", str(config)]) as server:
        access = Access(servers=(server.url,), user="p", password="p")
        async with shop(server, tmp_path) as at, connect(access, name="test") as connection:
            await at.push("a")
            with bounded(20):
                assert await at.push("b", artifacts=Artifacts(connection)) is Pushed.REPLACED
            assert await at.has("a", "b")
            output = capsys.readouterr().out
            assert "contents that were pushed over are kept" in output
            assert f'permission denied: publish "{denied.removesuffix(".>")}' in output
            await at.push("c")
            assert await at.has("c")


async def test_every_digest_in_any_value_counts_as_named(server: NatsServer, tmp_path: Path) -> None:
    digests = [f"{number:064x}" for number in range(6)]
    async with shop(server, tmp_path) as at, connected(server) as connection:
        assert await named_contents(connection) == frozenset()
        put = partial(at.user.put, "slices")
        await put(SLICE, {"state": "ACTIVE", "content": digests[0]})
        await put(RECORD, {"from": {"content": digests[1]}, "to": {"content": digests[2]}})
        await put("_new", {"of": [{"a": {"later": f"version:{digests[3]}"}}]})
        await put("%%", b"[" * 3 + digests[4].encode())
        await put("n1.g/gone/1", {"content": digests[5]})
        await put("n1.g/longer/1", {"content": digests[5] + "0"})
        await at.user.delete("slices", "n1.g/gone/1")
        assert await named_contents(connection) >= frozenset(digests[:4])
        assert digests[5] not in await named_contents(connection)


async def test_without_a_cluster_nothing_is_named(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server) as connection:
        assert await named_contents(connection) == frozenset()


# Removing


async def test_what_is_removed_is_kept_where_it_is_named_unless_it_is_forced(
    server: NatsServer, tmp_path: Path
) -> None:
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.push("b")
        await at.name_in_slice("b")
        assert await at.artifacts.remove(ONE) is True
        assert await at.artifacts.listing() == []
        with pytest.raises(ArtifactMissing):
            await at.artifacts.describe(ONE)
        with pytest.raises(ArtifactMissing):
            await at.artifacts.remove(ONE)
        assert await at.has("b")
        with pytest.raises(ContentMissing, match="it was removed"):
            await at.artifacts.describe(ONE, at.digest("a"))
        assert await at.artifacts.remove(ONE, force=True) is False
        assert await at.has()
        assert await at.parts() == 0

        await at.push("a")
        await at.name_in_record("a", "b")
        await at.push("b")
        assert await at.artifacts.remove(ONE, force=True) is False
        assert await at.parts() == 0


# Interrupted


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_push_that_is_killed_between_its_steps_loses_nothing(
    server: NatsServer, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the old content is kept, before the new one takes its place, before what is not named is removed."""
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.name_in_slice("a")
        await at.push("b")
        await at.name_in_slice("b")
        killed = await anyio.run_process(
            [sys.executable, "-c", KILLED, server.url, str(at.sources["c"][0]), str(ONE), str(step)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert killed.returncode == -9, killed.stderr
        assert await at.has(*("abc" if step == 3 else "ab"))
        assert (await at.artifacts.describe(ONE)).content.sha256 == at.digest("c" if step == 3 else "b")
        assert len(await at.artifacts.kept()) == (1 if step == 1 else 2)

        assert await at.push("a") is Pushed.REPLACED
        await at.name_in_slice("a")
        monkeypatch.setattr(module, "UNFINISHED", 0.0)
        monkeypatch.setattr(repository, "UNFINISHED", 0.0)
        await at.artifacts.push(Artifact("g", "other", "1"), *at.sources["b"])
        await at.artifacts.push(Artifact("g", "other", "2"), *at.sources["b"])
        assert await at.has("a")
        assert await at.parts() == 3


KILLED = r"""
import asyncio, os, signal, sys
from pathlib import Path
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.model.artifact import Artifact
from cdm.model.manifest import Manifest
from cdm.store.connection import Access, connect
from cdm.store.objects import Objects

real, count = Objects.put, 0

async def put(self, info, expect):
    global count
    count += 1
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    await real(self, info, expect)

async def main(url, path, name):
    Objects.put = put
    async with connect(Access(servers=(url,)), name="test") as connection:
        packed = pack(Path(path), Path(path).parent)
        content = packed.content(Manifest(entry="program", args=("c",)), inside=False)
        await Artifacts(connection).push(Artifact.parse(name), packed.path, content, force=True)

asyncio.run(main(*sys.argv[1:4]))
"""


async def test_what_was_left_of_a_push_does_not_take_the_artifacts_own_parts_with_it(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is kept under the second name, too, and no other one took its place."""

    async def stop(info: ObjectInfo) -> None:
        raise Unreachable("gone")

    async with shop(server, tmp_path) as at:
        await at.push("a")
        with before_puts(2, stop), pytest.raises(StoreError):
            await at.push("b")
        assert len(await at.artifacts.kept()) == 1
        other = Artifact("g", "other", "1")
        await at.artifacts.push(other, *at.sources["b"])
        assert len(await at.artifacts.kept()) == 1, "somebody may be between two steps"
        monkeypatch.setattr(module, "UNFINISHED", 0.0)
        await at.artifacts.remove(other)
        assert await at.artifacts.kept() == []
        assert await at.has("a")
        assert await at.parts() == 2, "whether b took its place was not known, so its parts are left for a while"


async def test_parts_of_old_pushes_are_not_swept_away_while_they_come_to_be_kept(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another push replaces them, and keeps them, while the bucket is read by one who sweeps."""
    monkeypatch.setattr(repository, "UNFINISHED", 0.0)
    real, done = Objects.find, False

    async with shop(server, tmp_path) as at, connected(server) as connection:
        await at.push("a")
        await at.name_in_slice("a")
        other = Artifacts(connection)

        async def find(self: Objects, name: str) -> Any:
            nonlocal done
            if name == NAME and not done and self is at.artifacts._objects:
                done = True
                await at.push("b", artifacts=other)
            return await real(self, name)

        monkeypatch.setattr(Objects, "find", find)
        await at.artifacts._sweep()
        assert done
        assert await at.has("a", "b")


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_push_whose_answer_is_lost_does_not_name_parts_that_are_gone(
    server: NatsServer, tmp_path: Path, overtaken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took its place, and by the time that it is tried again another one has, and has removed its parts."""
    real, lost = Objects._publish, False

    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")

        async def publish(self: Objects, subject: str, payload: bytes, headers: dict[str, str]) -> None:
            nonlocal lost
            await real(self, subject, payload, headers)
            if not lost and subject.endswith(key(NAME)) and self is at.artifacts._objects:
                lost = True
                if overtaken:
                    await at.push("c", artifacts=other)
                raise Uncertain("no answer")

        monkeypatch.setattr(Objects, "_publish", publish)
        if overtaken:
            with pytest.raises(Uncertain, match="try again"):
                await at.push("b")
        else:
            assert await at.push("b") is Pushed.REPLACED
        assert await at.has("c" if overtaken else "b")


def key(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


# At once


@pytest.mark.parametrize("step", [1, 2])
async def test_of_two_pushes_at_once_neither_loses_what_is_named(server: NatsServer, tmp_path: Path, step: int) -> None:
    """Another push does all that it does before the old content is kept, or before the new one takes its place."""
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")
        await at.name_in_record("a", "b")

        async def act(info: ObjectInfo) -> None:
            assert await at.push("b", artifacts=other) is Pushed.REPLACED

        with before_puts(step, act):
            assert await at.push("c") is Pushed.REPLACED
        assert (await at.artifacts.describe(ONE)).content.sha256 == at.digest("c")
        assert await at.has("a", "b", "c")
        assert await at.parts() == 3


async def test_one_that_was_overtaken_does_not_put_what_is_gone_in_the_place_of_what_is_kept(
    server: NatsServer, tmp_path: Path
) -> None:
    """While it stood still its content was stored anew, by another manifest, and then pushed over."""
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")
        await at.name_in_slice("a")
        stale = await at.artifacts._objects.find(NAME)
        path, content = at.sources["a"]
        await other.push(ONE, path, replace(content, manifest=Manifest(entry="program")), force=True)
        await at.push("b", artifacts=other)
        with pytest.raises(Conflict):
            await at.artifacts._kept.keep(NAME, stale)
        kept = await at.artifacts.describe(ONE, at.digest("a"))
        assert await at.bytes_of(kept) == b"a" * 300_000


async def test_two_who_remove_it_at_once_keep_what_is_named(server: NatsServer, tmp_path: Path) -> None:
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")
        await at.name_in_slice("a")

        async def act(info: ObjectInfo) -> None:
            assert await other.remove(ONE) is True

        with before_puts(1, act):
            assert await at.artifacts.remove(ONE) is True
        assert await at.has("a")


async def test_a_part_that_is_missing_of_what_is_kept_is_told(server: NatsServer, tmp_path: Path) -> None:
    """It is not taken for one that was replaced, and asked for again."""
    async with shop(server, tmp_path) as at:
        await at.push("a")
        stored = await at.artifacts.describe(ONE)
        await at.name_in_slice("a")
        await at.push("b")
        await at.user.api("STREAM.PURGE.OBJ_artifacts", {"filter": f"$O.artifacts.C.{stored.nuid}"})
        for each in (stored, await at.artifacts.describe(ONE, at.digest("a"))):
            with pytest.raises(ArtifactDamaged, match="a part of it is missing"):
                await at.bytes_of(each)


@pytest.mark.parametrize("step", [1, 2])
async def test_a_removal_at_the_same_time_loses_nothing_that_is_named(
    server: NatsServer, tmp_path: Path, step: int
) -> None:
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")
        await at.name_in_slice("a")

        async def act(info: ObjectInfo) -> None:
            await other.remove(ONE)

        with before_puts(step, act):
            assert await at.push("b") in (Pushed.STORED, Pushed.REPLACED)
        assert await at.has("a", "b")
        assert await at.parts() == 2


async def test_a_sweep_does_not_remove_what_is_kept_anew(server: NatsServer, tmp_path: Path) -> None:
    """One content was kept and has its place again; as its second name is removed, another push is replacing it."""
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.name_in_slice("a")
        await at.push("a")
        await at.push("b")

        async def act(info: ObjectInfo) -> None:
            assert info.deleted
            assert info.name == f"{NAME}/{at.digest('a')}"
            await at.push("c", artifacts=other)

        with before_puts(3, act):  # keeps b, a takes its place, what is kept of a is removed
            await at.push("a")
        assert await at.has("a", "c")


@pytest.mark.parametrize("round_", range(3))
async def test_pushes_and_removals_in_any_order_keep_what_is_named(
    server: NatsServer, tmp_path: Path, round_: int
) -> None:
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.name_in_record("a", "b")

        async def push(name: str, artifacts: Artifacts) -> None:
            for _ in range(4):
                await at.push(name, artifacts=artifacts)

        async with connected(server) as one, connected(server) as two, anyio.create_task_group() as tasks:
            tasks.start_soon(push, "b", Artifacts(one))
            tasks.start_soon(push, "c", Artifacts(two))
            tasks.start_soon(push, "a", at.artifacts)
        await at.push("c")
        assert await at.has("a", "b", "c")
        assert await at.parts() == 3


async def test_a_content_that_has_its_place_again_while_it_is_looked_for_is_found(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shop(server, tmp_path) as at, connected(server) as connection:
        other = Artifacts(connection)
        await at.push("a")
        await at.name_in_slice("a")
        await at.push("b")
        real, done = Kept.find, False

        async def find(self: Kept, artifact: str, digest: str) -> Any:
            nonlocal done
            if not done and self is at.artifacts._kept:
                done = True
                await at.push("a", artifacts=other)
            return await real(self, artifact, digest)

        monkeypatch.setattr(Kept, "find", find)
        assert (await at.artifacts.describe(ONE, at.digest("a"))).name == NAME
        assert done


# What others wrote


async def test_a_push_of_an_older_version_leaves_what_is_kept(server: NatsServer, tmp_path: Path) -> None:
    """It knows nothing of it: to its sweep it is one more object, and to its list one that it cannot read."""
    async with shop(server, tmp_path) as at:
        await at.push("a")
        await at.name_in_slice("a")
        await at.push("b")
        names = await at.artifacts._objects.names()
        found = {name: await at.artifacts._objects.find(name) for name in names}
        named = {each.live.nuid for each in found.values() if each.live}
        assert set(await at.artifacts._objects.parts()) == named
        description = found[f"{NAME}/{at.digest('a')}"].info
        assert description is not None
        assert json.loads((description.metadata or {})["cdm"])["sha256"] == at.digest("a")
        await eventually(lambda: at.has("a", "b"))
