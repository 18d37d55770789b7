"""What tells a node's folder from every other one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cdm.node import identity
from cdm.node.identity import IDENTITY, identity_of

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


@pytest.mark.parametrize("kept", ["", "{}", "nonsense", '{"number":"","machine":"","inode":0}'])
def test_what_cannot_be_read_is_made_anew(tmp_path: Path, kept: str) -> None:
    (tmp_path / IDENTITY).write_text(kept)
    number = identity_of(tmp_path)
    assert len(number) == 16
    assert identity_of(tmp_path) == number


def test_where_no_machine_says_which_it_is_all_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MACHINE", ())
    assert identity_of(tmp_path) == identity_of(tmp_path)
