"""A node's folder is one process's, also when somebody deletes it meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdm.errors import FolderTaken
from cdm.node import folder as folder_module
from cdm.node.folder import Folder


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
    monkeypatch.setattr(folder_module, "_holder", lambda _: 65_534)
    second.take()
    first.free()
    second.free()
