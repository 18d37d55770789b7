"""Folders to archives and back, and archives that mean harm."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdm.artifacts import packing
from cdm.artifacts import tree as tree_module
from cdm.artifacts.entry import completed
from cdm.artifacts.packing import pack
from cdm.artifacts.tree import scan
from cdm.artifacts.unpacking import unpack
from cdm.errors import InvalidContent, InvalidManifest
from cdm.model.content import Content, Form
from cdm.model.manifest import Container, Manifest
from tests.harness.examples import examples

HASH = "0" * 64


def folder_of(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "run").write_text("#!/bin/sh\n")
    (path / "bin" / "run").chmod(0o755)
    (path / "a.txt").write_text("a")
    (path / "ä b").write_bytes(b"\0" * 3000)
    (path / "empty").mkdir()
    (path / "run").symlink_to("bin/run")
    (path / "bin" / "up").symlink_to("../a.txt")
    return path


def tarball(*members: tuple[str, bytes | str], path: Path, compress: bool = True) -> Path:
    """An archive of files (bytes) and of what a type and a target name (text: ``sym:target``)."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o6755
            if isinstance(what, bytes):
                info.size = len(what)
                made.addfile(info, io.BytesIO(what))
            else:
                kind, _, info.linkname = what.partition(":")
                info.type = getattr(tarfile, kind.upper() + "TYPE")
                made.addfile(info)
    path.write_bytes(gzip.compress(raw.getvalue(), 1) if compress else raw.getvalue())
    return path


def content_of(path: Path, unpacked: int = 1_000_000) -> Content:
    return Content(Form.TREE, path.name, HASH, path.stat().st_size, unpacked, Manifest())


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    packed = pack(source, tmp_path)
    target = tmp_path / "target"
    tree = unpack(packed.path, packed.content(Manifest()), target).tree
    assert (target / "bin" / "run").read_text() == "#!/bin/sh\n"
    assert (target / "ä b").read_bytes() == b"\0" * 3000
    assert (target / "empty").is_dir()
    assert (target / "run").readlink() == Path("bin/run")
    assert (target / "bin" / "up").read_text() == "a"
    assert stat.S_IMODE((target / "bin" / "run").stat().st_mode) == 0o555
    assert stat.S_IMODE((target / "a.txt").stat().st_mode) == 0o444
    for each in (tree, scan(target)):
        assert each.files == {"bin/run", "a.txt", "ä b"} == packed.tree.files
        assert each.folders == {"bin", "empty"} == packed.tree.folders
        assert each.links == {"run": "bin/run", "bin/up": "../a.txt"} == packed.tree.links
        assert each.size == 3011 == packed.tree.size


def test_the_same_folder_has_the_same_digest_whenever_and_by_whomever_it_was_made(tmp_path: Path) -> None:
    one = pack(folder_of(tmp_path / "one"), tmp_path)
    for path in (tmp_path / "one").rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    other = folder_of(tmp_path / "two")
    (other / "a.txt").unlink()
    (other / "a.txt").write_text("a")
    (other / "a.txt").chmod(0o664)
    again = pack(other, tmp_path)
    assert one.sha256 == again.sha256
    (other / "a.txt").chmod(0o755)
    assert pack(other, tmp_path).sha256 != one.sha256


@pytest.mark.parametrize("target", ["/etc/passwd", "../a", "../../a", "bin/../../a", "bin/../a.txt", "..", "x/" * 600])
def test_a_link_that_leads_outside_is_refused_in_a_folder(tmp_path: Path, target: str) -> None:
    source = folder_of(tmp_path / "source")
    (source / "link").symlink_to(target)
    with pytest.raises(InvalidContent, match="symbolic link 'link'"):
        pack(source, tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source")
    os.mkfifo(source / "pipe")
    with pytest.raises(InvalidContent, match="pipe"):
        pack(source, tmp_path)
    with pytest.raises(InvalidContent, match="/dev/zero"):
        pack(Path("/dev/zero"), tmp_path)
    with pytest.raises(InvalidContent, match="does not exist"):
        pack(tmp_path / "nothing", tmp_path)
    for empty in (tmp_path / "empty", tmp_path / "folder"):
        if empty.name == "empty":
            empty.touch()
        else:
            empty.mkdir()
        with pytest.raises(InvalidContent, match="is empty"):
            pack(empty, tmp_path)


HARMFUL: list[tuple[str, list[tuple[str, bytes | str]]]] = [
    ("above", [("../x", b"1")]),
    ("above in the middle", [("a/../../x", b"1")]),
    ("absolute", [("/tmp/x", b"1")]),
    ("a link to outside", [("l", "sym:../x")]),
    ("an absolute link", [("l", "sym:/etc")]),
    ("a link that climbs in mid-path", [("d/e/up", "sym:../.."), ("d/x", "sym:e/up/../..")]),
    ("a file through a link", [("d/a", b"1"), ("l", "sym:d"), ("l/x", b"1")]),
    ("a file in the place of a link", [("d/a", b"1"), ("l", "sym:d/a"), ("l", b"1")]),
    ("a folder below a file", [("d", b"1"), ("d/x", b"1")]),
    ("a file in the place of a folder", [("d/x", b"1"), ("d", b"1")]),
    ("a file twice", [("d", b"1"), ("d", b"2")]),
    ("a hard link to outside", [("l", "lnk:../x")]),
    ("a hard link to what comes later", [("l", "lnk:x"), ("x", b"1")]),
    ("a hard link to a link", [("x", b"1"), ("s", "sym:x"), ("l", "lnk:s")]),
    ("a device", [("x", "chr:")]),
    ("a pipe", [("x", "fifo:")]),
    ("a name too long", [("x" * 300, b"1")]),
    ("a path too long", [("x/" * 600 + "x", b"1")]),
    ("a name that takes all memory", [("x" * 5_000_000, b"1")]),
    ("a link that takes all memory", [("x", "sym:" + "x" * 5_000_000)]),
    ("more than was said", [("x", b"\0" * 2_000_000)]),
]


@pytest.mark.parametrize("members", [each[1] for each in HARMFUL], ids=[each[0] for each in HARMFUL])
def test_a_harmful_archive_writes_nothing_outside_and_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes | str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tarball(*members, path=tmp_path / "made.tar.gz")
    (tmp_path / "room").mkdir()
    with pytest.raises(InvalidContent, match=r"made\.tar\.gz") as refused:
        unpack(made, content_of(made), tmp_path / "room" / "into")
    assert len(str(refused.value)) < 400
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["into"]
    monkeypatch.setattr(packing, "MAX_UNPACKED", 1_000_000)
    with pytest.raises(InvalidContent, match=r"made\.tar\.gz"):
        pack(made, tmp_path)


def test_an_ordinary_archive_is_unpacked(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("./", "dir:"),
        ("./app/run.py", b"print()"),
        ("./app/again", "lnk:./app/run.py"),
        ("./last", "sym:app/run.py"),
    ]
    made = tarball(*members, path=tmp_path / "made.tgz")
    packed = pack(made, tmp_path)
    assert packed.path == made
    tree = unpack(made, packed.content(Manifest()), tmp_path / "into").tree
    assert tree.files == {"app/run.py", "app/again"}
    assert (tmp_path / "into" / "last").read_bytes() == b"print()"
    mode = (tmp_path / "into" / "app" / "run.py").stat().st_mode
    assert stat.S_IMODE(mode) == 0o555  # neither set-user-id nor writable


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tarball(*((str(number), b"") for number in range(20)), path=tmp_path / "made.tar.gz")
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 10)
    with pytest.raises(InvalidContent, match="more than 10 files"):
        pack(made, tmp_path)


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _flipped(raw: bytes) -> bytes:
    return raw[:700] + bytes([raw[700] ^ 0xFF]) + raw[701:]


def _header_broken(raw: bytes) -> bytes:
    plain = bytearray(gzip.decompress(raw))
    plain[1024 + 148] ^= 0x01  # the checksum of the second member
    return gzip.compress(bytes(plain))


@pytest.mark.parametrize("spoil", [_cut, _flipped, _header_broken, lambda raw: b"", lambda raw: b"\x1f\x8bnonsense"])
def test_a_broken_archive_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    made = tarball(*((str(n), os.urandom(300)) for n in range(20)), path=tmp_path / "made.tar.gz")
    made.write_bytes(spoil(made.read_bytes()))
    with pytest.raises(InvalidContent, match=r"made\.tar\.gz"):
        pack(made, tmp_path)


def test_a_work_that_is_ended_ends(tmp_path: Path) -> None:
    made = tarball(("x", b"\0" * 900_000), path=tmp_path / "made.tar.gz")

    class Over(BaseException):
        pass

    def over() -> None:
        raise Over

    with pytest.raises(Over):
        unpack(made, content_of(made), tmp_path / "into", over)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), byte=st.integers(0, 255), cut=st.integers(0, 5000))
def test_any_bytes_are_unpacked_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    members: list[tuple[str, bytes | str]] = [
        ("a/b", b"x" * 600),
        ("n" * 120, b"y"),
        ("l", "sym:a/b"),
        ("h", "lnk:a/b"),
    ]
    made = tarball(*members, path=tmp_path / "made.tar.gz", compress=False)
    raw = bytearray(made.read_bytes())
    raw[position] = byte
    made.write_bytes(bytes(raw[: len(raw) - cut]))
    (tmp_path / "room").mkdir()
    with suppress(InvalidContent):
        unpack(made, content_of(made), tmp_path / "room" / "into")
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["into"]
    for path in (tmp_path / "room" / "into").rglob("*"):
        assert path.resolve().is_relative_to(tmp_path / "room" / "into")


# What is run


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        ("bin/run", True),
        ("run", True),
        ("./bin//run", True),
        ("bin/up", True),
        ("sh", True),
        ("bin", False),
        ("bin/", False),
        ("bin/no", False),
        ("no-such-program", True),
        ("bin/no-such-program", False),
        ("a\0b", False),
        ("", False),
        ("empty", False),
    ],
)
def test_the_entry_is_a_file_of_the_content_or_a_program_that_nodes_may_have(
    tmp_path: Path, entry: str, good: bool
) -> None:
    tree = pack(folder_of(tmp_path / "source"), tmp_path).tree
    if good:
        assert completed(Manifest(entry=entry), tree).entry == entry
    else:
        with pytest.raises(InvalidManifest, match=r"^entry: "):
            completed(Manifest(entry=entry), tree)


def test_the_only_file_is_the_entry_and_the_directory_must_be_there(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text("print()")
    packed = pack(script, tmp_path)
    assert completed(Manifest(), packed.tree).entry == "one.py"
    with pytest.raises(InvalidManifest, match=r"^directory: "):
        completed(Manifest(directory="data"), packed.tree)


def test_of_the_image_of_a_container_it_is_said_how_to_tell_so(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for name in ("manifest.json", "layer.tar"):
        (tmp_path / "saved" / name).write_text("[]")
    tree = pack(tmp_path / "saved", tmp_path).tree
    with pytest.raises(InvalidManifest, match=r"^entry: .*write container = \{\} into the manifest"):
        completed(Manifest(), tree)
    assert completed(Manifest(container=Container()), tree).entry == ""


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    made = tarball(("x", b"1"), ("a", "sym:b"), ("b", "sym:a"), path=tmp_path / "made.tar.gz")
    tree = pack(made, tmp_path).tree
    assert not tree.is_file("a")
    assert unpack(made, content_of(made), tmp_path / "into").tree.links == {"a": "b", "b": "a"}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"{}", "form"),
        (b"", "truncated"),
        (b'{"form":"file","file":"a/b","sha256":"%s","size":1,"unpacked":1,"manifest":{}}', "file"),
        (b'{"form":"file","file":"..","sha256":"%s","size":1,"unpacked":1,"manifest":{}}', "file"),
        (b'{"form":"tree","file":"x","sha256":"../x","size":1,"unpacked":1,"manifest":{}}', "sha256"),
        (b'{"form":"tree","file":"x","sha256":"%s","size":-1,"unpacked":1,"manifest":{}}', "size"),
        (b'{"form":"tree","file":"x","sha256":"%s","size":1,"unpacked":1,"manifest":{"new":1}}', "new"),
    ],
)
def test_a_record_that_cannot_be_is_refused(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidContent, match=field):
        Content.parse(raw.replace(b"%s", HASH.encode()))


def test_fields_of_a_later_version_are_ignored_in_a_record() -> None:
    raw = f'{{"form":"tree","file":"x","sha256":"{HASH}","size":1,"unpacked":1,"manifest":{{}},"new":1}}'
    assert Content.parse(raw).identity == HASH
