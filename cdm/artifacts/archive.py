"""Files and folders to an artifact's bytes, and back.

A folder becomes a tar archive that depends on nothing but names, contents and permissions, so that the same folder has
the same digest on every machine. For that reason it is not compressed: what a compressor makes of the same bytes
changes with its version. The server compresses what it stores.

Archives come from anybody. What is unpacked is decided here, member by member, and not by tarfile, whose filters have
been got round before, and are missing in early releases of Python 3.11. No file is written through a link: links are
made last, and point to what lies inside.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import IO, Any, Literal

import msgspec
from msgspec import Struct

from cdm.errors import InvalidContent, InvalidManifest
from cdm.model.content import Content, Form, problem_with_name
from cdm.model.manifest import Manifest
from cdm.runtimes.process.command import PYTHON_SUFFIXES

MAX_UNPACKED = 16 * 1024**3
"""Most bytes that an artifact may have when it is unpacked."""
MAX_ENTRIES = 200_000
"""Most files, folders and links of an artifact."""
MAX_PATH = 1024
"""Longest path inside an artifact, in bytes."""
SUFFIXES = (".tar.gz", ".tgz")
"""Files of these names are archives, and unpacked on the nodes."""

PROGRAMS = (b"#!", b"\x7fELF")
"""How a file begins that Linux runs by itself, as scripts and programs do."""

_PIECE = 1024 * 1024
_OVERHEAD = 1024 * 1024
"""Bytes that an archive may have between two members: long names, and padding."""
_KEPT = 0o755
"""Permissions that are kept: none for others to write, which would make a digest of the pusher's umask."""
_BROKEN = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error),
    *(ValueError, LookupError, OverflowError, RecursionError),
)
"""What readers of archives raise for archives that are none."""
_LONE_SYNCS = 200
"""Files up to which each is brought to the disk by itself; for more of them all that the machine has yet to write."""
_HOPS = 40

Check = Callable[[], None]
"""Called between two pieces of a long work; what it raises ends the work."""


def _go_on() -> None:
    pass


class Tree:
    """Names of what an artifact consists of; paths are relative and have slashes."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.links: dict[str, str] = {}
        self.size = 0
        """Bytes in the files."""

    def __len__(self) -> int:
        return len(self.files) + len(self.folders) + len(self.links)

    def resolve(self, path: str) -> str | None:
        """Where a path leads, past all links; None: nowhere."""
        ahead, at, hops = path.split("/")[::-1], list[str](), 0
        while ahead:
            part = ahead.pop()
            if part == "..":
                if not at:
                    return None
                at.pop()
            elif part not in ("", "."):
                target = self.links.get("/".join([*at, part]))
                if target is None:
                    at.append(part)
                elif (hops := hops + 1) > _HOPS:
                    return None
                else:
                    ahead += target.split("/")[::-1]
        return "/".join(at)

    def is_file(self, path: str) -> bool:
        """Whether there is a file, or a link that leads to one."""
        return self.resolve(path) in self.files

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder, or a link that leads to one."""
        found = self.resolve(path)
        return found == "" or found in self.folders


class Packed(Struct, frozen=True):
    """A file that is ready to be pushed."""

    path: Path
    form: Form
    file: str
    mode: int
    sha256: str
    size: int
    tree: Tree

    def content(self, manifest: Manifest) -> Content:
        """The record to store beside it."""
        return Content(
            form=self.form,
            file=self.file,
            sha256=self.sha256,
            size=self.size,
            unpacked=self.tree.size,
            manifest=manifest,
            mode=self.mode,
        )


# To the store


def pack(path: Path, folder: Path) -> Packed:
    """Make what is to be pushed of a file, a folder or an archive.

    Args:
        path: what its user named.
        folder: where a folder's archive is written.

    Raises:
        InvalidContent: says what cannot be pushed, and why.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise InvalidContent(f"{path} does not exist")
    found, name = path.stat(), path.resolve().name or "root"
    tree, mode = Tree(), 0
    if stat.S_ISDIR(found.st_mode):
        form, source = Form.TREE, folder / "packed.tar"
        with tarfile.open(source, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, path, "", tree)
    elif not stat.S_ISREG(found.st_mode):
        raise InvalidContent(f"{path} is no file, folder or archive")
    elif path.name.endswith(SUFFIXES):
        form, source = Form.TREE, path
        with _explained(str(path)):
            for _ in _members(path, tree, MAX_UNPACKED, _go_on):
                pass
    else:
        form, source, mode = Form.FILE, path, found.st_mode & _KEPT
        if problem := problem_with_name(name):
            raise InvalidContent(f"{path} {problem}")
        if name != _readable(name):
            raise InvalidContent(f"{path}: its name is not UTF-8; rename it")
        _count(tree, name, found.st_size, MAX_UNPACKED)
        tree.files.add(name)
    if not tree.files or (form is Form.FILE and not found.st_size):
        raise InvalidContent(f"{path} is empty")
    size, digest = _digest(source)
    return Packed(path=source, form=form, file=_readable(name), mode=mode, sha256=digest, size=size, tree=tree)


def _add(archive: tarfile.TarFile, folder: Path, prefix: str, tree: Tree) -> None:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        name = prefix + entry.name
        info = tarfile.TarInfo(name)  # no owner, no times
        _check_name(name)
        if entry.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry.path)  # noqa: PTH115
            _check_link(name, info.linkname)
            tree.links[name] = info.linkname
            info.mode = 0o777
            archive.addfile(info)
        elif entry.is_dir():
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tree.folders.add(name)
            archive.addfile(info)
            _add(archive, Path(entry.path), f"{name}/", tree)
        elif entry.is_file():
            with Path(entry.path).open("rb") as file:
                known = os.fstat(file.fileno())
                info.size, info.mode = known.st_size, known.st_mode & _KEPT
                _count(tree, name, info.size, MAX_UNPACKED)
                tree.files.add(name)
                archive.addfile(info, file)
        else:
            raise InvalidContent(f"{entry.path} is no file, folder or symbolic link")


def _readable(name: str) -> str:
    """A name with what of it is not UTF-8 replaced: a record is JSON, and holds nothing else."""
    return name.encode("utf-8", "surrogateescape").decode(errors="replace")


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


# From the store


def unpack(packed: Path, content: Content, into: Path, check: Check = _go_on) -> Tree:
    """Bring an artifact's files into a new folder; all is on the disk when this returns.

    Args:
        packed: the stored bytes, verified. A file is moved.
        content: their record.
        into: the folder, which must not exist.
        check: called between two pieces.

    Raises:
        InvalidContent: the archive is no archive, or holds what must not be unpacked.
        OSError: for example, the disk is full.
    """
    tree = Tree()
    into.mkdir()
    if content.form is Form.FILE:
        target = into / content.file
        packed.rename(target)
        target.chmod(_mode(content.mode))
        sync(target)
        tree.files.add(content.file)
        tree.size = content.size
    else:
        with _explained(content.file):
            for name, member, data in _members(packed, tree, content.unpacked, check):
                _write(into, name, member, data, check)
        for name, target_name in tree.links.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).symlink_to(target_name)
        if len(tree) > _LONE_SYNCS:
            os.sync()
        else:
            for name in tree.files:
                sync(into / name)
            for name in tree.folders:
                sync(into / name)
    sync(into)
    return tree


def _write(into: Path, name: str, member: tarfile.TarInfo, data: IO[bytes] | None, check: Check) -> None:
    path = into / name
    if member.issym():
        return  # made last
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        path.mkdir(exist_ok=True)
    elif member.islnk():
        path.hardlink_to(into / _clean(member.linkname))
    elif data is not None:
        with path.open("xb") as file:
            while piece := data.read(_PIECE):
                file.write(piece)
                check()
            os.fchmod(file.fileno(), _mode(member.mode))


def _mode(mode: int) -> int:
    """Nobody writes to what slices share; a set-user-id bit is never kept."""
    return mode & _KEPT & 0o555 | 0o400


def scan(folder: Path) -> Tree:
    """What an unpacked artifact consists of."""
    tree = Tree()
    for at, folders, files in os.walk(folder):
        prefix = Path(at).relative_to(folder)
        for names, found in ((folders, tree.folders), (files, tree.files)):
            for name in names:
                path, relative = Path(at, name), (prefix / name).as_posix()
                if path.is_symlink():
                    tree.links[relative] = os.readlink(path)  # noqa: PTH115
                else:
                    found.add(relative)
                    tree.size += path.lstat().st_size if found is tree.files else 0
    return tree


def sync(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# Archives


class _Rationed:
    """Bytes of an archive, no more of them than were allowed: a long name must not take all memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = 0

    def read(self, size: int) -> bytes:
        piece = self._file.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise InvalidContent("holds more between two files than any archive needs")
        return piece


_HeaderError = tarfile.HeaderError


class _Strict(tarfile.TarInfo):
    """A header that cannot be read is an error; tarfile takes it for the archive's end, and loses what follows."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise InvalidContent(f"is a broken archive: {error}") from None


Member = tuple[str, tarfile.TarInfo, IO[bytes] | None]


def _members(path: Path, tree: Tree, limit: int, check: Check) -> Iterator[Member]:
    """An archive's members, checked and noted in the tree: path, description, and the bytes of a file."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if compressed else raw as plain:
            ration = _Rationed(plain)  # type: ignore[arg-type]  # both can read
            ration.left = _OVERHEAD
            with tarfile.open(fileobj=ration, mode="r|", tarinfo=_Strict) as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # it would keep them all
                    check()
                    name = _clean(member.name)
                    if not name:
                        continue
                    _admit(member, name, tree, limit)
                    ration.left = member.size + _OVERHEAD
                    yield name, member, archive.extractfile(member) if member.isreg() else None
            while ration.read(_PIECE):  # to its end, where gzip has its checksum
                pass


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", ".")) if not path.startswith("/") else path


def _admit(member: tarfile.TarInfo, name: str, tree: Tree, limit: int) -> None:
    _check_name(name)
    parents = ["/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]
    for parent in parents:
        if parent in tree.files or parent in tree.links:
            raise InvalidContent(f"{name!r} lies below {parent!r}, which is no folder")
    tree.folders.update(parents)
    if name in tree.files or name in tree.links or (name in tree.folders and not member.isdir()):
        raise InvalidContent(f"{name!r} is there twice")
    if member.isdir():
        tree.folders.add(name)
    elif member.issym():
        _check_link(name, member.linkname)
        tree.links[name] = member.linkname
    elif member.islnk():
        if _clean(member.linkname) not in tree.files:
            raise InvalidContent(f"{name!r} is a link to {member.linkname!r}, which is no file before it")
        tree.files.add(name)
    elif member.isreg() and not member.issparse():
        _count(tree, name, member.size, limit)
        tree.files.add(name)
    else:
        raise InvalidContent(f"{name!r} is no plain file, folder or link")
    if len(tree) > MAX_ENTRIES:
        raise InvalidContent(f"holds more than {MAX_ENTRIES:,} files")


def _count(tree: Tree, name: str, size: int, limit: int) -> None:
    tree.size += size
    if size < 0 or tree.size > limit:
        raise InvalidContent(f"unpacks to more than {limit:,} bytes (at {name!r})")
    if len(tree) >= MAX_ENTRIES:
        raise InvalidContent(f"holds more than {MAX_ENTRIES:,} files")


def _check_name(name: str) -> None:
    if name.startswith("/"):
        raise InvalidContent(f"{name[:80]!r} is an absolute path")
    for part in name.split("/"):
        if problem := problem_with_name(part):
            raise InvalidContent(f"{name[:80]!r}: {part[:80]!r} {problem}")
    if len(os.fsencode(name)) > MAX_PATH:
        raise InvalidContent(f"{name[:80]!r}… is longer than {MAX_PATH:,} bytes")


def _check_link(name: str, target: str) -> None:
    """Refuse a symbolic link that might lead outside.

    It may climb only at its beginning: from there on every step goes down, or through another link that was checked.
    """
    problem = ""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    if not target or target.startswith("/") or climbs > name.count("/"):
        problem = "leads outside"
    elif ".." in parts[climbs:]:
        problem = "climbs in mid-path"
    else:
        problem = next(filter(None, map(problem_with_name, parts[climbs:])), "")
    if problem or len(target) > MAX_PATH:
        raise InvalidContent(f"symbolic link {name!r} -> {target[:80]!r} {problem or 'is too long'}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever the readers of archives raise, as `InvalidContent`."""
    try:
        yield
    except InvalidContent as error:
        raise InvalidContent(f"{what}: {error}") from None
    except _BROKEN as error:
        raise InvalidContent(f"{what} is no tar archive, or a broken one: {error}") from None


# What is run


def completed(manifest: Manifest, tree: Tree) -> Manifest:
    """The manifest with its entry filled in.

    Raises:
        InvalidManifest: what it names is not in the content.
        InvalidContent: the only file cannot be named in a manifest.
    """
    if not tree.is_folder(manifest.directory):
        raise InvalidManifest(f"directory: there is no folder {manifest.directory!r} in the content")
    entry = manifest.entry
    if not entry:
        if len(tree.files) != 1:
            raise InvalidManifest(f"entry: is empty, and the content has {len(tree.files):,} files; name one of them")
        (only,) = tree.files
        if only != _readable(only):
            raise InvalidContent(f"{only!r}, the only file, has a name that is not UTF-8; rename it")
        return msgspec.structs.replace(manifest, entry=only)
    if not tree.is_file(entry) and program_of(manifest, tree) is None:
        kind = "a folder" if tree.is_folder(entry) else "not in the content"
        hint = "" if "/" in entry else ", and no program on this machine's PATH"
        raise InvalidManifest(f"entry: {entry!r} is {kind}{hint}")
    return manifest


def problem_with_program(packed: Packed, manifest: Manifest) -> str:
    """Why no node could run a lone file as the program that it is; empty: it could.

    It may be meant for another runtime, for which it is no program; so may what is in a folder or an archive, which is
    left to the nodes.
    """
    if not packed.tree.is_file(manifest.entry) or packed.form is not Form.FILE or packed.file.endswith(PYTHON_SUFFIXES):
        return ""
    with packed.path.open("rb") as file:
        head = file.read(max(map(len, PROGRAMS)))
    if not head.startswith(PROGRAMS):
        return (
            f"{packed.path} begins neither with #! nor with an ELF header; give it a first line such as #!/bin/sh, or "
            "push it with a --manifest whose entry is a program that runs it, or as .tar.gz"
        )
    return "" if packed.mode & 0o111 else f"{packed.path} is not executable; chmod +x it"


def program_of(manifest: Manifest, tree: Tree) -> Literal["inside", "path"] | None:
    """Where the manifest's entry is found: inside the artifact, on this machine's PATH, or nowhere."""
    if tree.is_file(manifest.entry):
        return "inside"
    if "/" in manifest.entry or "\0" in manifest.entry or tree.is_folder(manifest.entry):
        return None
    return "path" if which(manifest.entry) else None
