"""What was unpacked, and whether it is still there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cdm.artifacts.packing import pack
from cdm.artifacts.seal import Altered, Seal
from cdm.artifacts.unpacking import unpack
from cdm.model.manifest import Manifest


class _Earlier(msgspec.Struct, array_like=True):
    """As a seal was stored."""

    files: Any
    folders: Any
    links: Any
    manifest: bytes


def _go_on() -> None:
    pass


def unpacked(tmp_path: Path) -> tuple[Path, Seal]:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / "a").write_text("a")
    (source / os.fsdecode(b"\xff\n\\")).write_bytes(b"\0" * 3_000_000)
    (source / "up").symlink_to("sub/a")
    packed = pack(source, tmp_path)
    return tmp_path / "content", unpack(packed.path, packed.content(Manifest()), tmp_path / "content")


def test_a_seal_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    folder, seal = unpacked(tmp_path)
    seal.save(tmp_path / "seal")
    read = Seal.load(tmp_path / "seal")
    assert read is not None
    for each in (seal, read):
        assert each.tree.files == {"sub/a", "\udcff\n\\"}
        assert each.tree.folders == {"sub", "sub/empty"}
        assert each.tree.links == {"up": "sub/a"}
        assert each.tree.size == 3_000_001
        assert each.check(folder, _go_on, remove_others=True) == []
    assert Seal.load(tmp_path / "none") is None


def test_a_seal_that_is_half_written_is_none(tmp_path: Path) -> None:
    """A power cut may leave any of it as zeros, and what is written after that as it was."""
    _, seal = unpacked(tmp_path)
    seal.manifest = b'{"entry": "sub/a"}'
    seal.save(tmp_path / "seal")
    whole = (tmp_path / "seal").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "seal").write_bytes(whole[:at])
        assert Seal.load(tmp_path / "seal") is None, f"cut off after {at} bytes"
        for wrong in (b"\0", bytes([whole[at] ^ 1])):
            if wrong != whole[at : at + 1]:
                (tmp_path / "seal").write_bytes(whole[:at] + wrong + whole[at + 1 :])
                assert Seal.load(tmp_path / "seal") is None, f"{wrong!r} at {at}"


def test_a_seal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It had no digest of its own, or no manifest either; and earlier versions read those of this one."""
    folder, seal = unpacked(tmp_path)
    seal.manifest = b"{}"
    seal.save(tmp_path / "seal")
    stored = msgspec.msgpack.decode((tmp_path / "seal").read_bytes())
    assert len(stored) == 5
    assert msgspec.convert(stored, _Earlier).manifest == b"{}"
    for fields in (3, 4):
        (tmp_path / "seal").write_bytes(msgspec.msgpack.encode(stored[:fields]))
        read = Seal.load(tmp_path / "seal")
        assert read is not None
        assert read.manifest == (b"{}" if fields == 4 else b"")
        assert read.check(folder, _go_on, remove_others=True) == []


def test_a_file_is_read_again_only_where_the_file_system_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seal = unpacked(tmp_path)
    read: list[str] = []
    opened = Path.open

    def noted(path: Path, mode: str) -> object:
        read.append(path.name)
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", noted)
    seal.check(folder, _go_on, remove_others=True)
    assert len(read) == 2
    seal.check(folder, _go_on, remove_others=True)
    assert len(read) == 2
    os.utime(folder / "sub" / "a")
    seal.check(folder, _go_on, remove_others=True)
    assert read[2:] == ["a"]


def test_what_is_altered_is_named(tmp_path: Path) -> None:
    folder, seal = unpacked(tmp_path)
    (folder / "sub" / "a").chmod(0o644)
    (folder / "sub" / "a").write_text("b")
    with pytest.raises(Altered, match="'sub/a' has other bytes"):
        seal.check(folder, _go_on, remove_others=True)
    (folder / "sub" / "empty").rmdir()
    with pytest.raises(Altered, match="'sub/empty' is missing"):
        seal.check(folder, _go_on, remove_others=True)
