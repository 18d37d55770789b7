"""What somebody altered in a node's cache is never run."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from cdm.artifacts.seal import Seal
from cdm.model.manifest import Manifest
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.supply import ONE, TWO, supply
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


def _appended(folder: Path) -> None:
    program = folder / "bin" / "a.sh"
    program.chmod(0o755)
    with program.open("a") as file:
        file.write("echo more\n")


def _other_bytes_at_the_same_time(folder: Path) -> None:
    program = folder / "bin" / "b.sh"  # not the entry: the program may read it
    known = program.stat()
    program.chmod(0o755)
    program.write_text(program.read_text().replace("echo b", "echo x"))
    program.chmod(stat.S_IMODE(known.st_mode))
    os.utime(program, ns=(known.st_atime_ns, known.st_mtime_ns))


def _zeros(folder: Path) -> None:
    """As a power cut leaves what was not brought to the disk."""
    program = folder / "bin" / "b.sh"
    mode, size = stat.S_IMODE(program.stat().st_mode), program.stat().st_size
    program.chmod(0o755)
    program.write_bytes(bytes(size))
    program.chmod(mode)


def _another_file(folder: Path) -> None:
    program = folder / "bin" / "a.sh"
    known = program.stat()
    other = folder.parent / "other"
    other.write_text(program.read_text().replace("echo a", "echo x"))
    other.chmod(stat.S_IMODE(known.st_mode))
    os.utime(other, ns=(known.st_atime_ns, known.st_mtime_ns))
    other.rename(program)


def _link_for_file(folder: Path) -> None:
    program = folder / "bin" / "a.sh"
    other = folder.parent.parent / "elsewhere"
    other.write_bytes(program.read_bytes())
    program.unlink()
    program.symlink_to(other)


def _link_elsewhere(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("bin/b.sh")


def _link_for_folder(folder: Path) -> None:
    (folder / "bin").rename(folder.parent.parent / "bin")
    (folder / "bin").symlink_to(folder.parent.parent / "bin")


def _link_for_all(folder: Path) -> None:
    folder.rename(folder.parent.parent / "all")
    folder.symlink_to(folder.parent.parent / "all")


def _link_to_nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent.parent / "nothing")


def _file_for_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def _one_more(folder: Path) -> None:
    (folder / "bin" / "more.sh").write_text("#!/bin/sh\n")
    (folder / "more").mkdir()
    (folder / "more" / "x").touch()


def _file_for_folder(folder: Path) -> None:
    (folder / "empty").rmdir()
    (folder / "empty").touch()


ALTERATIONS = [
    *(_appended, _other_bytes_at_the_same_time, _zeros, _another_file),
    *(_link_for_file, _link_elsewhere, _link_for_folder, _link_for_all, _link_to_nothing, _file_for_all),
    *(_one_more, _file_for_folder),
]


def state_of(folder: Path) -> dict[str, str | bytes | None]:
    """What is in a folder: bytes of files, targets of links."""
    assert not folder.is_symlink()
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda alter: alter.__name__)
@pytest.mark.parametrize("restarted", [False, True])
async def test_what_somebody_altered_is_not_run(
    server: NatsServer, tmp_path: Path, alter: Callable[[Path], None], restarted: bool
) -> None:
    async with supply(server, tmp_path) as at:
        tree = at.tree()
        (tree / "empty").mkdir()
        await at.push(ONE, tree, Manifest(entry="link"))
        cache = at.cache()
        one = await cache.get(ONE)
        before = state_of(one.folder)
        alter(one.folder)
        if restarted:
            cache = at.cache()
        assert await cache.get(ONE) == one
        assert state_of(one.folder) == before
        assert at.contents == [one.digest]
        assert at.seals == [one.digest]


async def test_a_lone_file_that_was_altered_is_not_run(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at:
        script = tmp_path / "job.sh"
        script.write_text("#!/bin/sh\necho right\n")
        script.chmod(0o755)
        await at.push(ONE, script)
        for cache in (at.cache(), at.cache()):
            program = (await cache.get(ONE)).folder / "job.sh"
            program.chmod(0o755)
            program.write_text("#!/bin/sh\necho wrong\n")
            assert (await cache.get(ONE)).folder / "job.sh" == program
            assert (await anyio.run_process([program])).stdout == b"right\n"


async def test_what_is_still_the_same_is_not_downloaded_again(server: NatsServer, tmp_path: Path) -> None:
    async with supply(server, tmp_path) as at, raw(server) as user:
        await at.push(ONE, at.tree(), Manifest(entry="link"))
        one = await at.cache().get(ONE)
        asked = await user.overhear("$JS.API.DIRECT.GET.OBJ_artifacts")
        cache = at.cache()
        await cache.get(ONE)
        for path in one.folder.rglob("*.sh"):
            os.utime(path)
        await cache.get(ONE)
        shutil.copytree(one.folder, tmp_path / "copy", symlinks=True)
        shutil.rmtree(one.folder)
        (tmp_path / "copy").rename(one.folder)
        (one.folder / "bin" / "b.sh").chmod(0o6777)
        await cache.get(ONE)
        assert stat.S_IMODE((one.folder / "bin" / "b.sh").stat().st_mode) == 0o444
        await user.client.flush()
        assert not asked


async def test_what_slices_write_beside_their_program_is_left_while_they_are_there(
    server: NatsServer, tmp_path: Path
) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="link"))
        cache = at.cache()
        one = await cache.get(ONE)
        cache.hold(one.digest)
        (one.folder / "data").write_text("mine")
        await cache.get(ONE)
        assert (one.folder / "data").exists()
        cache.release(one.digest)
        await cache.get(ONE)
        assert not (one.folder / "data").exists()


async def test_what_has_no_seal_is_downloaded_anew(server: NatsServer, tmp_path: Path) -> None:
    """An earlier version of cdm left none; and what is altered must not be trusted because its seal is gone."""
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="link"))
        one = await at.cache().get(ONE)
        for spoil in (Path.unlink, lambda seal: seal.write_bytes(b"nonsense")):
            _appended(one.folder)
            spoil(tmp_path / "cache" / f"{one.digest}.seal")
            cache = at.cache()
            await cache.start()
            assert cache.size > 0
            await cache.get(ONE)
            assert (await anyio.run_process([one.folder / "bin" / "a.sh"])).stdout == b"a\n"
            assert at.contents == at.seals == [one.digest]


async def test_one_that_is_altered_and_held_needs_no_room_beside_the_new_one(
    server: NatsServer, tmp_path: Path
) -> None:
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.file(400_000))
        cache = at.cache(500_000)
        one = await cache.get(ONE)
        cache.hold(one.digest)
        (one.folder / "program").unlink()
        assert await cache.get(ONE) == one
        assert cache.size == 400_000


async def test_many_who_load_at_once_have_one_check_and_nothing_that_was_added(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    check = Seal.check

    def counted(seal: Seal, folder: Path, go_on: Callable[[], None], *, remove_others: bool) -> list[str]:
        nonlocal checks
        checks += 1
        return check(seal, folder, go_on, remove_others=remove_others)

    monkeypatch.setattr(Seal, "check", counted)
    async with supply(server, tmp_path) as at:
        await at.push(ONE, at.tree(), Manifest(entry="link"))
        cache = at.cache()
        one = await cache.get(ONE)
        (one.folder / "added").touch()
        assert checks == 1
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(cache.get, ONE)
        assert not (one.folder / "added").exists()
        assert checks < 10, "who comes while a check waits for its turn need not have another"


@pytest.mark.parametrize("alter", [_link_to_nothing, _file_for_all], ids=lambda alter: alter.__name__)
async def test_what_is_in_the_place_of_a_content_is_removed_where_room_is_needed(
    server: NatsServer, tmp_path: Path, alter: Callable[[Path], None]
) -> None:
    async with supply(server, tmp_path) as at:
        for artifact in (ONE, TWO):
            await at.push(artifact, at.file(400_000, artifact.name))
        cache = at.cache(500_000)
        alter((await cache.get(ONE)).folder)
        two = await cache.get(TWO)
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [two.digest, f"{two.digest}.seal"]
