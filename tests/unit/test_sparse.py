"""Zeros take no room: neither in what is packed nor on a node."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdm.artifacts import packing
from cdm.artifacts.packing import pack
from cdm.artifacts.sparse import SparseFile
from cdm.artifacts.unpacking import unpack
from cdm.errors import InvalidContent
from cdm.model.manifest import Manifest

LENGTH = 300 * 1024 * 1024


def room_of(path: Path) -> int:
    """Bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with a sparse file in it, as disk images are."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "image"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(100_000_000)
        file.write(b"middle" * 50_000)
        file.truncate(LENGTH)
    if room_of(path) > LENGTH / 2:
        pytest.skip("no sparse files here")
    return folder


def test_a_sparse_file_stays_one(image: Path, tmp_path: Path) -> None:
    packed = pack(image, tmp_path)
    assert packed.size > LENGTH
    assert room_of(packed.path) < 2_000_000
    with (image / "image").open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    unpack(packed.path, packed.content(Manifest()), tmp_path / "into")
    made = tmp_path / "into" / "image"
    assert made.stat().st_size == LENGTH
    assert room_of(made) < 2_000_000
    with made.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == expected


def test_an_archive_that_says_where_the_holes_are_says_what_to_do(image: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.tar.gz"
    subprocess.run(["tar", "--sparse", "-czf", made, "-C", image, "image"], check=True)
    with pytest.raises(InvalidContent, match="without --sparse"):
        pack(made, tmp_path)


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.integers(0, 200_000).map(bytes),
        st.integers(1, 200_000).map(lambda length: b"x" * length),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, joined=st.booleans())
def test_what_is_written_is_there(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], joined: bool) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    with SparseFile(path) as file:
        for piece in [b"".join(pieces)] if joined else pieces:
            assert file.write(piece) == len(piece)
    assert path.read_bytes() == b"".join(pieces)


def test_a_push_that_finds_no_room_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(b"x" * 3_000_000)

    class FullDisk(SparseFile):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing, "SparseFile", FullDisk)
    with pytest.raises(OSError, match="no room for its archive of some 3,000,000 bytes; TMPDIR"):
        pack(source, tmp_path)
