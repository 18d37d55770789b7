"""An artifact's stored bytes to files on a node.

No file is written through a link: links are made last, and point to what lies inside.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cdm.artifacts.archive import clean, explained, members
from cdm.artifacts.tree import Tree
from cdm.model.content import Content, Form

_PIECE = 1024 * 1024
_KEPT = 0o555
"""Permissions that are kept; nobody writes to what slices share, and a set-user-id bit is never kept."""
_LONE_SYNCS = 200
"""Files up to which each is brought to the disk by itself; for more of them all that the machine has yet to write."""

Check = Callable[[], None]
"""Called between two pieces of a long work; what it raises ends the work."""


def _go_on() -> None:
    pass


def unpack(packed: Path, content: Content, into: Path, check: Check = _go_on) -> Tree:
    """Bring an artifact's files into a new folder; all is on the disk when this returns.

    Args:
        packed: the stored bytes, verified. A file is moved.
        content: what describes them.
        into: the folder, which must not exist.
        check: called between two pieces.

    Raises:
        InvalidContent: the archive is no archive, or holds what must not be unpacked.
        OSError: for example, the disk is full.
    """
    tree = Tree(content.unpacked)
    into.mkdir()
    if content.form is Form.FILE:
        target = into / content.file
        packed.rename(target)
        target.chmod(_mode(content.mode))
        sync(target)
        tree.add_file(content.file, content.size)
    else:
        with explained(content.file):
            for name, member, data in members(packed, tree):
                check()
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
        path.hardlink_to(into / clean(member.linkname))
    elif data is not None:
        with path.open("xb") as file:
            while piece := data.read(_PIECE):
                file.write(piece)
                check()
            os.fchmod(file.fileno(), _mode(member.mode))


def _mode(mode: int) -> int:
    return mode & _KEPT | 0o400


def sync(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
