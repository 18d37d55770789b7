"""What was unpacked, noted so that a later look tells whether it is still there unaltered.

A seal says of every file its digest, size and permissions. It is kept in a file beside the content. What the file
system says of a file that is known to be whole (size, times, inode) is remembered only while the process lives: where
it says the same again, the file is not read again. So nothing of it waits for the disk: what a power cut left half
written is not what the seal says, and a seal that is half written itself is none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.artifacts.tree import Tree, runnable, shared

_PIECE = 1024 * 1024
_ENTERED = 0o555
"""Permissions that each folder has: slices may be other users than the node."""


class Altered(Exception):
    """Raised when a content is not what was unpacked; says how."""


class Sum(Struct, frozen=True, array_like=True):
    """A file as it was unpacked."""

    size: int
    mode: int
    """Permissions."""
    sha256: bytes


class _Stored(Struct, array_like=True):
    """A seal as it is kept in its file; names are bytes, since they need not be UTF-8."""

    files: dict[bytes, Sum]
    folders: list[bytes]
    links: dict[bytes, bytes]
    manifest: bytes = b""
    sha256: bytes = b""
    """Of the same without it; empty: earlier versions had none, and waited for the disk."""

    def digest(self) -> bytes:
        """What `sha256` is to be. Fields that come after it are none of its business: stored seals are to stay good."""
        told = (self.files, self.folders, self.links, self.manifest)
        return hashlib.sha256(msgspec.msgpack.encode(told)).digest()


_Stamp = tuple[int, int, int, int, int]
"""Size, time of the last write, time of the last change, inode, mode."""


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode


class Seal:
    """What a content consists of, down to the bytes of its files.

    Args:
        tree: its names.
        sums: its files.
        manifest: as it was stored at the end of the content; empty: it was not.
    """

    def __init__(self, tree: Tree, sums: Mapping[str, Sum], manifest: bytes = b"") -> None:
        self.tree = tree
        self.manifest = manifest
        self._sums = sums
        self._whole: dict[str, _Stamp] = {}
        """Files that this process knows to be whole."""

    def save(self, path: Path) -> None:
        """Write the seal to a new file."""
        stored = _Stored(
            {os.fsencode(name): found for name, found in self._sums.items()},
            [os.fsencode(name) for name in self.tree.folders],
            {os.fsencode(name): os.fsencode(target) for name, target in self.tree.links.items()},
            self.manifest,
        )
        with path.open("xb") as file:
            file.write(msgspec.msgpack.encode(replace(stored, sha256=stored.digest())))

    @classmethod
    def load(cls, path: Path) -> Seal | None:
        """Read a seal; None: there is none, or not all of it."""
        try:
            stored = msgspec.msgpack.decode(path.read_bytes(), type=_Stored)
        except (OSError, msgspec.MsgspecError):
            return None
        if stored.sha256 and stored.sha256 != stored.digest():
            return None
        sums = {os.fsdecode(name): found for name, found in stored.files.items()}
        tree = Tree()
        tree.files = set(sums)
        tree.folders = {os.fsdecode(name) for name in stored.folders}
        tree.links = {os.fsdecode(name): os.fsdecode(target) for name, target in stored.links.items()}
        tree.size = sum(found.size for found in sums.values())
        return cls(tree, sums, stored.manifest)

    def check(self, folder: Path, check: Callable[[], None], *, remove_others: bool) -> list[str]:
        """Make sure that a folder holds what was unpacked; returns the names of what was removed.

        Permissions that were changed are put right.

        Args:
            folder: where it was unpacked.
            check: called between two pieces of a long work; what it raises ends the work.
            remove_others: remove what was not unpacked.

        Raises:
            Altered: the folder holds something else.
            OSError: it cannot be read.
        """
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise Altered("its folder is not a folder")
        files, others, folders, links = dict[str, os.stat_result](), list[str](), set[str](), 0
        for name, entry in _entries(folder, "", self.tree.folders):
            check()
            if name in self.tree.links:
                if not entry.is_symlink() or os.readlink(entry.path) != self.tree.links[name]:  # noqa: PTH115
                    raise Altered(f"{name!r} is not the link that it was")
                links += 1
            elif name in self._sums:
                files[name] = entry.stat(follow_symlinks=False)
            elif name in self.tree.folders and entry.is_dir(follow_symlinks=False):
                folders.add(name)
            else:
                others.append(name)
        missing = (self._sums.keys() - files.keys()) | (self.tree.folders - folders)
        if missing or links != len(self.tree.links):
            raise Altered(f"{min(missing, default='a link')!r} is missing")
        _open(folder / name for name in folders)
        for name, found in files.items():
            if self._whole.get(name) != _stamp(found):
                check()
                self._whole[name] = self._examined(folder / name, name, found, check)
        if not remove_others:
            return []
        for name in others:
            path = folder / name
            shutil.rmtree(path) if stat.S_ISDIR(path.lstat().st_mode) else path.unlink()
        return others

    def changed(self, folder: Path, name: str) -> None:
        """The permissions of a file were changed by the node itself."""
        self._whole[name] = _stamp((folder / name).lstat())

    def _examined(self, path: Path, name: str, found: os.stat_result, check: Callable[[], None]) -> _Stamp:
        wanted = self._sums[name]
        mode = shared(wanted.mode)  # earlier versions noted those that it was pushed with
        if not stat.S_ISREG(found.st_mode) or found.st_size != wanted.size:
            raise Altered(f"{name!r} is not the file that it was")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                check()
        if digest.digest() != wanted.sha256:
            raise Altered(f"{name!r} has other bytes than it had")
        if stat.S_IMODE(found.st_mode) not in (mode, runnable(mode)):
            path.chmod(mode)
            found = path.lstat()
        return _stamp(found)


def _open(folders: Iterable[Path]) -> None:
    """Let everybody enter them who can enter the content's folder; earlier versions left that to the umask."""
    for folder in folders:
        if folder.lstat().st_mode & _ENTERED != _ENTERED:
            folder.chmod(0o755)


def _entries(folder: Path, prefix: str, inside: set[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything in a folder, and in those below it that are known; paths are relative to the first."""
    with os.scandir(folder) as found:
        for entry in found:
            name = prefix + entry.name
            yield name, entry
            if name in inside and entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path), f"{name}/", inside)
