"""A node's cache of artifacts, on a real server: nothing that is not whole and verified is ever there to be run."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from msgspec.structs import replace

from cdm.artifacts.cache import Cache, Fetched
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.sparse import SparseFile
from cdm.artifacts.stored import Pushed, StoredArtifact
from cdm.errors import SliceFailed
from cdm.model.artifact import Artifact
from cdm.model.content import Form
from cdm.model.manifest import Manifest
from tests.harness.proxy import proxied
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.supply import ONE, THREE, TWO, Supply, refused, supply
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def break_part(user: Raw, supply: Supply, artifact: Artifact) -> None:
    """Another part comes in the place of the last one."""
    stored = await supply.artifacts.describe(artifact)
    subject = f"$O.artifacts.C.{stored.nuid}"
    last = await user.api("STREAM.MSG.GET.OBJ_artifacts", {"last_by_subj": subject})
    await user.api("STREAM.MSG.DELETE.OBJ_artifacts", {"seq": last["message"]["seq"]})
    await user.client.request(subject, b"x" * (stored.content.size % (128 * 1024)))


@pytest.mark.quick
async def test_a_file_is_there_under_its_name_and_can_be_run(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        script = tmp_path / "job.py"
        script.write_text("print(1)")
        await at.push(ONE, script)
        cache = at.cache()
        fetched = await cache.get(ONE)
        assert fetched.manifest.entry == "job.py"
        program = fetched.folder / "job.py"
        assert program.read_text() == "print(1)"
        assert stat.S_IMODE(program.stat().st_mode) == 0o555
        assert fetched == await cache.get(ONE)
        assert at.contents == [fetched.digest]
        assert cache.size == 8


async def test_a_lone_file_can_be_run_whatever_runs_it(server: NatsServer, tmp_path: Path) -> None:
    """An earlier version pushed it with the permissions that it had."""
    async with supply(server, tmp_path) as at:
        script = tmp_path / "job"
        script.write_text("#!/bin/sh\necho done\n")
        packed = pack(script, tmp_path)
        content = replace(packed.content(Manifest(entry="env", args=("./job",))), mode=0o644)
        await at.artifacts.push(ONE, script, content)
        program = (await at.cache().get(ONE)).folder / "job"
        assert (await anyio.run_process([program])).stdout == b"done\n"
        script.chmod(0o755)
        assert await at.push(ONE, script, Manifest(entry="env", args=("./job",))) is Pushed.UNCHANGED


async def test_a_sparse_file_takes_no_more_room_than_it_did(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        image = at.file()
        os.truncate(image, 50_000_000)
        if image.stat().st_blocks * 512 > 1_000_000:
            pytest.skip("no sparse files here")
        await at.push(ONE, image)
        told: list[tuple[int, list[str]]] = []

        async def sized(size: int) -> None:
            told.append((size, at.contents))

        kept = (await at.cache().get(ONE, sized=sized)).folder / "program"
        ((size, there),) = told
        assert size > 50_000_000
        assert there == [], "it is told before it is fetched"
        assert kept.stat().st_size == 50_000_000
        assert kept.stat().st_blocks * 512 < 1_000_000


async def test_of_a_tree_the_entry_can_be_run_and_the_same_content_is_there_once(
    server: NatsServer, tmp_path: Path
) -> None:
    async with supply(server, tmp_path) as at:
        tree = at.tree()
        # As earlier versions pushed: now the manifest is a part of the content.
        await at.push(ONE, tree, Manifest(entry="link"), inside=False)
        await at.push(TWO, tree, Manifest(entry="bin/b.sh"), inside=False)
        cache = at.cache()
        one = await cache.get(ONE)
        assert os.access(one.folder / "bin" / "a.sh", os.X_OK)
        assert not (one.folder / "bin" / "b.sh").stat().st_mode & 0o111
        two = await cache.get(TWO)
        assert two.folder == one.folder
        assert two.manifest.entry == "bin/b.sh"
        assert (one.folder / "bin" / "b.sh").stat().st_mode & 0o111
        assert at.contents == [one.digest]


async def test_the_same_bytes_under_other_names_are_other_contents(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        for artifact, name in ((ONE, "a.py"), (TWO, "b.py")):
            (tmp_path / name).write_text("print(1)")
            await at.push(artifact, tmp_path / name)
        cache = at.cache()
        assert (await cache.get(ONE)).manifest.entry == "a.py"
        two = await cache.get(TWO)
        assert (two.folder / "b.py").exists()


async def test_an_archive_is_unpacked(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        with tarfile.open(tmp_path / "app.tar.gz", "w:gz") as made:
            made.add(at.tree(), "app")
        await at.push(ONE, tmp_path / "app.tar.gz", Manifest(entry="app/bin/a.sh"))
        fetched = await at.cache().get(ONE)
        ran = await anyio.run_process([fetched.folder / "app" / "bin" / "a.sh"])
        assert ran.stdout == b"a\n"


async def test_gets_at_once_share_one_download(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at, raw(server) as user:
        await at.push(ONE, at.file(5_000_000))
        asked = await user.overhear("$JS.API.DIRECT.GET.OBJ_artifacts")
        cache = at.cache()
        found: list[Fetched] = []

        async def get() -> None:
            found.append(await cache.get(ONE))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(get)
        assert len(found) == 10
        assert len({fetched.digest for fetched in found}) == 1
        await user.client.flush()
        once = -(-5_000_000 // (128 * 1024)) + 1  # and the manifest
        assert once <= len(asked) < 2 * once, "what a server that stands still does not answer is asked once more"


async def test_who_waits_goes_on_when_the_first_is_cancelled(server: NatsServer, tmp_path: Path) -> None:
    async with proxied(server) as way, supply(way, tmp_path) as at:
        await at.push(ONE, at.file(20_000_000))
        cache = at.cache()
        found: list[Fetched] = []

        async def first(scope: anyio.CancelScope) -> None:
            with scope:
                await cache.get(ONE)

        async def second() -> None:
            found.append(await cache.get(ONE))

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(first, scope)
            await eventually(lambda: (tmp_path / "cache").exists() and at.contents, pause=0.0)
            way.cut()  # before all of it is there
            tasks.start_soon(second)
            await anyio.sleep(0.02)
            scope.cancel()
            way.mend()
        assert scope.cancelled_caught
        assert at.contents == [found[0].digest]


async def test_a_cancelled_download_leaves_nothing(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file(20_000_000))
        for pause in (0.0, 0.005, 0.02, 0.05, 0.1):
            with anyio.move_on_after(pause) as scope:
                await at.cache().get(ONE)
            if not scope.cancelled_caught:
                break
            assert not (tmp_path / "cache").exists() or at.contents == []


# What is not run


async def test_what_is_missing_is_told_with_what_to_do(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server) as connection:
        cache = Cache(tmp_path / "cache", Artifacts(connection))
        assert "cdm init" in await refused(cache, fatal=True)
    async with supply(server, tmp_path) as at:
        assert "cdm artifact push g:one:1" in await refused(at.cache(), fatal=True)


async def test_a_manifest_that_cannot_be_obeyed_is_fatal(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="bin/no"))
        text = await refused(at.cache(), fatal=True)
        assert "entry: 'bin/no'" in text
        assert "cdm artifact push --force" in text
        await at.push(TWO, at.file(), Manifest(directory="no"))
        assert "directory: " in await refused(at.cache(), TWO, fatal=True)


async def test_a_record_of_a_later_version_is_fatal(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at, raw(server) as user:
        await at.push(ONE, at.file(), inside=False)
        info = await user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.M.>"})
        (subject,) = info["state"]["subjects"]
        record = await user.client.request(f"$JS.API.DIRECT.GET.OBJ_artifacts.{subject}")
        fields = json.loads(record.data)
        content = json.loads(fields["metadata"]["cdm"])
        content["manifest"]["magic"] = True
        fields["metadata"]["cdm"] = json.dumps(content)
        await user.client.request(subject, json.dumps(fields).encode(), headers={"Nats-Rollup": "sub"})
        assert "magic" in await refused(at.cache(), fatal=True)


async def test_a_damaged_artifact_is_never_there(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at, raw(server) as user:
        await at.push(ONE, at.file(300_000))
        await break_part(user, at, ONE)
        cache = at.cache()
        failures: list[str] = []

        async def get() -> None:
            failures.append(await refused(cache, fatal=False))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(get)
        assert len(failures) == 3
        assert "cdm artifact push g:one:1" in failures[0]
        assert at.contents == []
        assert await at.push(ONE, tmp_path / "program") is Pushed.REPAIRED
        assert (await cache.get(ONE)).digest == at.contents[0]


async def test_a_damaged_artifact_does_not_hinder_another_with_the_same_content(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supply(server, tmp_path) as at, raw(server) as user:
        path = at.file(300_000)
        await at.push(ONE, path)
        await at.push(TWO, path)
        await break_part(user, at, ONE)
        cache, begun, fetch = at.cache(), anyio.Event(), Artifacts.fetch

        async def fetched(self: Artifacts, stored: StoredArtifact, into: Path) -> bytes:
            begun.set()
            return await fetch(self, stored, into)

        monkeypatch.setattr(Artifacts, "fetch", fetched)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(refused, cache, ONE, fatal=False))
            await begun.wait()  # else that of the other may be there before
            tasks.start_soon(cache.get, TWO)
        assert len(at.contents) == 1


async def test_a_harmful_archive_is_never_there(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        bad = tmp_path / "bad"  # a suffix would have it refused as it is packed
        with tarfile.open(bad, "w") as made:
            made.addfile(tarfile.TarInfo("../../escaped"))
        content = replace(pack(bad, tmp_path).content(Manifest()), form=Form.TREE)
        await at.artifacts.push(ONE, bad, content)
        assert "cannot be unpacked" in await refused(at.cache(), fatal=True)
        assert at.contents == []
        assert not (tmp_path / "escaped").exists()


async def test_one_that_unpacks_to_more_than_it_says_is_refused(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        tree = at.tree()
        (tree / "big").write_bytes(bytes(1_000_000))
        packed = pack(tree, tmp_path)
        content = replace(packed.content(Manifest(entry="link")), unpacked=1000)
        await at.artifacts.push(ONE, packed.path, content)
        assert "more than 1,000 bytes" in await refused(at.cache(), fatal=True)
        assert at.contents == []


async def test_a_full_disk_is_told_and_leaves_nothing(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="link"))
        cache = at.cache()

        def full(file: SparseFile, piece: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(SparseFile, "write", full)
            told = await refused(cache, fatal=False)
            assert "No space left" in told
            assert "for what it unpacks to" in told
        assert at.contents == []
        await cache.get(ONE)


async def test_without_a_connection_it_is_not_fatal(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdm.store.objects.PATIENCE", 0.5)
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file())
        server.kill()
        assert "g:one:1" in await refused(at.cache(), fatal=False)


# Replaced


async def test_one_that_is_replaced_while_it_is_downloaded_is_downloaded_anew(
    server: NatsServer, tmp_path: Path
) -> None:
    async with proxied(server) as way, supply(way, tmp_path) as at, connected(server) as connection:
        await at.push(ONE, at.file(20_000_000))
        before = await at.artifacts.describe(ONE)
        new = at.file(1_000_000, "new")
        found: list[Fetched] = []

        async def get() -> None:
            found.append(await at.cache().get(ONE))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await eventually(lambda: any((tmp_path / "cache").glob("tmp-*/packed")), pause=0.0)
            way.cut()
            packed = pack(new, tmp_path)
            other = Artifacts(connection)
            assert await other.push(ONE, new, packed.content(Manifest()), force=True) is Pushed.REPLACED
            assert not found, "the download was over before it was disturbed"
            way.mend()
        assert found[0].digest != before.content.identity
        assert at.contents == [found[0].digest]
        assert (found[0].folder / "new").read_bytes() == new.read_bytes()


async def test_one_that_is_replaced_later_stays_for_those_who_hold_it(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file())
        cache = at.cache()
        old = await cache.get(ONE)
        await at.push(ONE, at.file(), force=True)
        new = await cache.get(ONE)
        assert new.digest != old.digest
        assert at.contents == sorted([old.digest, new.digest])


# Room


async def test_what_was_not_used_for_longest_makes_room_unless_it_is_held(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO, THREE):
            await at.push(artifact, at.file(400_000, artifact.name))
        cache = at.cache(1_000_000)
        one, two = await cache.get(ONE), await cache.get(TWO)
        await cache.get(ONE)
        three = await cache.get(THREE)
        assert at.contents == sorted([one.digest, three.digest])
        cache.hold(one.digest)
        cache.hold(one.digest)
        cache.hold(three.digest)
        assert "no room" in await refused(cache, TWO, fatal=False)
        assert at.contents == sorted([one.digest, three.digest])
        cache.release(one.digest)
        assert "no room" in await refused(cache, TWO, fatal=False)
        cache.release(one.digest)
        assert (await cache.get(TWO)).digest == two.digest
        assert at.contents == sorted([two.digest, three.digest])
        assert cache.size == 800_000
        with pytest.raises(ValueError, match="not held"):
            cache.release(two.digest)


async def test_what_can_never_fit_is_fatal(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file(2000))
        assert "enlarge" in await refused(at.cache(1000), fatal=True)


async def test_what_has_no_room_on_the_disk_says_what_it_needs(
    server: NatsServer, tmp_path: Path, small_disk: Path
) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO):
            tree = at.tree(artifact.name)
            (tree / "data").write_bytes(os.urandom(3_000_000))
            await at.push(artifact, tree, Manifest(entry="link"))
        await at.push(THREE, at.file(5_000_000))
        cache = Cache(small_disk / "cache", at.artifacts)
        one = await cache.get(ONE)
        cache.hold(one.digest)
        content = (await at.artifacts.describe(TWO)).content
        told = await refused(cache, TWO, fatal=False)
        assert f"no room on the disk for g:two:1, which needs {content.data_size + content.unpacked:,} bytes " in told
        assert f"({content.data_size:,} for the archive and {content.unpacked:,} for what it unpacks to)" in told
        assert f"{small_disk / 'cache'} has 5," in told
        cache.release(one.digest)
        assert (await cache.get(TWO)).folder.exists(), "what is not used makes room on the disk, too"
        assert not one.folder.exists()
        (small_disk / "cache" / "notes").write_bytes(bytes(4_000_000))
        assert "which needs 5,000,000 bytes: " in await refused(cache, THREE, fatal=False)
        assert (await cache.get(TWO)).folder.exists(), "nothing is removed in vain"


async def test_many_at_once_stay_within_the_bound(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        all_of_them = [Artifact("g", f"a{number}", "1") for number in range(8)]
        for artifact in all_of_them:
            await at.push(artifact, at.file(300_000, artifact.name))
        cache = at.cache(1_000_000)
        good = 0
        failures: list[SliceFailed] = []

        async def get(artifact: Artifact) -> None:
            nonlocal good
            try:
                fetched = await cache.get(artifact)
                assert fetched.folder.is_dir()
                good += 1
            except SliceFailed as failure:
                failures.append(failure)

        async with anyio.create_task_group() as tasks:
            for artifact in all_of_them:
                tasks.start_soon(get, artifact)
        assert good >= 3
        assert good + len(failures) == 8
        assert not any(failure.fatal for failure in failures)
        assert cache.size <= 1_000_000
        assert len(at.contents) <= 3


async def test_a_new_process_takes_over_what_is_there_and_removes_leftovers(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO, THREE):
            await at.push(artifact, at.file(400_000, artifact.name))
        before = at.cache(1_000_000)
        two, one = await before.get(TWO), await before.get(ONE)
        os.utime(two.folder, (1, 1))
        left = tmp_path / "cache" / "tmp-0123"
        (left / "content").mkdir(parents=True)
        (left / "packed").write_text("half")
        (tmp_path / "cache" / "notes").write_text("somebody's")
        cache = at.cache(1_000_000)
        (tmp_path / "cache" / f"{'0' * 64}.seal").touch()
        await cache.start()
        assert at.contents == sorted([one.digest, two.digest, "notes"])
        assert at.seals == sorted([one.digest, two.digest])
        assert cache.size == 800_000
        three = await cache.get(THREE)
        assert at.contents == sorted([one.digest, three.digest, "notes"])
        assert at.seals == sorted([one.digest, three.digest])


# Removed by somebody


@pytest.mark.parametrize("removed", ["contents", "folder", "program", "all but an empty folder"])
@pytest.mark.parametrize("held", [False, True])
async def test_what_somebody_removed_from_the_folder_is_fetched_again(
    server: NatsServer, tmp_path: Path, removed: str, held: bool
) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="bin/a.sh"))
        cache = at.cache()
        one = await cache.get(ONE)
        if held:
            cache.hold(one.digest)
        gone = {"contents": one.folder, "folder": at.folder / "cache", "program": one.folder / "bin" / "a.sh"}
        if path := gone.get(removed):
            path.unlink() if path.is_file() else shutil.rmtree(path)
        else:
            shutil.rmtree(one.folder)
            one.folder.mkdir()
        found: list[Fetched] = []

        async def get() -> None:
            found.append(await cache.get(ONE))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(get)
        assert found == [one] * 3
        assert sorted(path.name for path in one.folder.rglob("*")) == ["a.sh", "b.sh", "bin", "link"]
        assert at.contents == [one.digest]
        if held:
            cache.release(one.digest)
        with pytest.raises(ValueError, match="not held"):
            cache.release(one.digest)


async def test_what_somebody_removed_makes_room(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO):
            await at.push(artifact, at.file(400_000, artifact.name))
        cache = at.cache(500_000)
        shutil.rmtree((await cache.get(ONE)).folder)
        assert at.contents == []
        assert (await cache.get(TWO)).digest == at.contents[0]
        assert cache.size == 400_000
        assert (await cache.get(ONE)).digest == at.contents[0]


async def test_what_cannot_be_removed_is_not_forgotten(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO):
            await at.push(artifact, at.file(400_000, artifact.name))
        cache = at.cache(500_000)
        one = await cache.get(ONE)

        def stuck(path: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", stuck)
            assert "not permitted" in await refused(cache, TWO, fatal=False)
        assert cache.size == 400_000
        assert await cache.get(ONE) == one
        await cache.get(TWO)
        await cache.get(ONE)


@pytest.mark.parametrize("started", range(6))
async def test_without_threads_a_slice_fails_and_the_node_lives(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """A slice that forks without end leaves none, sooner or later while another is loaded."""
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file())
        cache = at.cache()
        run, left = to_thread.run_sync, started

        async def none(*args: Any) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
            return await run(*args)

        with monkeypatch.context() as patch:
            patch.setattr(to_thread, "run_sync", none)
            assert "no thread can be started now" in await refused(cache, ONE, fatal=False)
        assert (await cache.get(ONE)).folder.exists()
