"""A node's folder is one process's, also when somebody deletes it meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from cdm.errors import FolderTaken, UsageError
from cdm.node import folder as folder_module
from cdm.node.folder import Folder
from tests.harness.waiting import eventually
from tests.unit.support import Heard


def test_a_folder_is_taken_by_one_and_free_afterwards(tmp_path: Path) -> None:
    first, second = Folder(tmp_path / "a" / "b"), Folder(tmp_path / "a" / "b")
    first.take()
    with pytest.raises(FolderTaken, match="used by another process"):
        second.take()
    beside = Folder(tmp_path / "a" / "c")
    beside.take()
    beside.free()
    first.free()
    second.take()
    second.free()


def test_a_folder_that_was_deleted_and_made_anew_is_still_taken(tmp_path: Path) -> None:
    first, second = Folder(tmp_path / "a"), Folder(tmp_path / "a")
    first.take()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FolderTaken):
        second.take()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    with pytest.raises(FolderTaken):
        Folder(link).take()
    first.free()
    second.take()
    second.free()


@pytest.mark.anyio
async def test_that_it_cannot_be_made_anew_is_told_once_and_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, tries = Heard(), 0
    monkeypatch.setattr(folder_module, "log", log)
    monkeypatch.setattr(folder_module, "CHECK_INTERVAL", 0.01)
    folder = Folder(tmp_path / "a")
    folder.take()
    lock = folder._lock

    def refused() -> int:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise OSError(errno.EROFS, "Read-only file system")
        return lock()

    monkeypatch.setattr(folder, "_lock", refused)
    shutil.rmtree(tmp_path / "a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(folder.watch)
        await eventually(lambda: "there again" in str(log.lines))
        tasks.cancel_scope.cancel()
    folder.free()
    told = [(level, event) for level, event, _ in log.lines if level != "debug"]
    assert [(level, event[:40]) for level, event in told] == [
        ("error", "the node's folder was deleted while the "),
        ("error", "the node's folder cannot be made anew"),
        ("info", "the node's folder is there again"),
    ]


def test_a_process_that_is_killed_has_nothing_any_more(tmp_path: Path) -> None:
    program = f"""
import pathlib, time
from cdm.node.folder import Folder
folder = Folder(pathlib.Path({str(tmp_path / "a")!r}))
folder.take()
print("taken", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(FolderTaken):
            Folder(tmp_path / "a").take()
        other.kill()
    folder = Folder(tmp_path / "a")
    folder.take()
    folder.free()


def test_a_stranger_who_has_its_name_keeps_no_node_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Folder(tmp_path / "a"), Folder(tmp_path / "a")
    first.take()
    shutil.rmtree(tmp_path / "a")
    monkeypatch.setattr(folder_module, "_holder", lambda _: (1, 65_534))
    second.take()
    first.free()
    second.free()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_enters_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    path.mkdir(parents=True)
    taken = Folder(path)
    taken.take()
    assert mode(path) == 0o700
    taken.free()


def test_slices_that_are_others_pass_through_it_and_enter_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node"
    taken = Folder(path, shared=True)
    taken.take()
    taken.free()
    assert [mode(each) for each in (path.parent, path, path / "artifacts", path / "runtime")] == [0o711] * 4
    assert mode(path / "lock") == 0o600
    (path / "artifacts" / "content").mkdir(mode=0o755)
    (path / "artifacts" / "link").symlink_to(tmp_path)
    (path / "artifacts" / "content.seal").touch()
    before = mode(tmp_path)
    taken.take()
    taken.free()
    assert mode(path / "artifacts" / "content") == 0o700
    assert mode(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make it another's")
def test_traps_of_its_former_user_are_not_walked_into(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.mkdir()
    os.chown(path, 12345, 12345)
    with pytest.raises(UsageError, match="belongs to user 12345"):
        Folder(path, shared=True).take()
    alike = Folder(path)
    alike.take()
    alike.free()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make it another's")
def test_what_others_made_of_it_is_made_anew(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "node", tmp_path / "elsewhere"
    path.mkdir()
    (elsewhere / "content").mkdir(parents=True)
    (path / "artifacts").symlink_to(elsewhere)
    taken = Folder(path, shared=True)
    taken.take()
    taken.free()
    assert not (path / "artifacts").is_symlink()
    assert mode(elsewhere / "content") == 0o755
