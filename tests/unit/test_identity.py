"""What tells a node's folder from every other one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdm.node import identity
from cdm.node.identity import IDENTITY, identity_of
from tests.harness.paths import ROOT

pytestmark = pytest.mark.quick


def test_a_folder_stays_what_it_is_and_a_copy_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    number = identity_of(first)
    assert identity_of(first) == number
    shutil.copytree(first, copy)
    assert identity_of(copy) not in ("", number)
    moved = first.rename(tmp_path / "moved")
    assert identity_of(moved) == number
    machine = tmp_path / "machine-id"
    machine.write_text("another\n")
    monkeypatch.setattr(identity, "MACHINE", (tmp_path / "missing", machine))
    other = identity_of(moved)
    assert other != number, "another machine has it now"
    assert identity_of(moved) == other


def _moved_elsewhere(folder: Path) -> Path:
    """As to another file system, or machine: its files are made anew there."""
    copy = _copied(folder)
    shutil.rmtree(folder)
    return copy


def _copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy")))


def _put_back(folder: Path) -> Path:
    copy = _copied(folder)
    for each in folder.iterdir():
        each.unlink()
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    return folder


def _installed_anew(folder: Path) -> Path:
    (folder.parent / "machine-id").write_text("another\n")
    return folder


DONE: dict[str, Callable[[Path], Path]] = {
    "renamed, or moved within its file system": lambda folder: folder.rename(folder.with_name("renamed")),
    "its files are put back from a backup, or a snapshot, into the folder that is there": _put_back,
    "copied, or put back from a backup as a folder that is made for it": _copied,
    "moved to another file system, or another machine": _moved_elsewhere,
    "its machine gets another `/etc/machine-id`, as when it is installed anew": _installed_anew,
}
"""What may be done with a node's folder, in the words of docs/operations.md."""


def test_the_documents_say_as_what_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for number, (done, do) in enumerate(DONE.items()):
        folder = tmp_path / str(number) / "folder"
        folder.mkdir(parents=True)
        machine = folder.parent / "machine-id"
        machine.write_text("one\n")
        monkeypatch.setattr(identity, "MACHINE", (machine,))
        before = identity_of(folder)
        counts_as = "the same" if identity_of(do(folder)) == before else "another"
        assert f"| {done} | {counts_as} |" in told


@pytest.mark.parametrize("kept", ["", "{}", "nonsense", '{"number":"","machine":"","inode":0}'])
def test_what_cannot_be_read_is_made_anew(tmp_path: Path, kept: str) -> None:
    (tmp_path / IDENTITY).write_text(kept)
    number = identity_of(tmp_path)
    assert len(number) == 16
    assert identity_of(tmp_path) == number


def test_where_no_machine_says_which_it_is_all_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MACHINE", ())
    assert identity_of(tmp_path) == identity_of(tmp_path)
