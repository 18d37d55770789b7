"""Makes files on a node out of an artifact's stored bytes.

No file is written through a link: links are made last, and point to what lies inside.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cdm.artifacts.seal import Seal, Sum
from cdm.artifacts.sparse import SparseFile
from cdm.artifacts.tree import Tree, runnable, shared
from cdm.errors import InvalidContent
from cdm.model.content import Content, Form

_PIECE = 1024 * 1024
_FOLDER = 0o755
"""Permissions of folders, whatever the umask: slices may be other users than the node."""

Check = Callable[[], None]
"""Called between two pieces of a long work; what it raises ends the work."""


def _go_on() -> None:
    pass


def unpack(packed: Path, content: Content, into: Path, check: Check = _go_on) -> Seal:
    """Bring an artifact's files into a new folder. Returns what there is.

    Args:
        packed: the stored bytes, verified. A file is moved.
        content: what describes them.
        into: the folder, which must not exist.
        check: called between two pieces.

    Raises:
        InvalidContent: the archive is not one, or holds what must not be unpacked.
        OSError: for example, the disk is full.
    """
    tree, sums = Tree(content.unpacked), dict[str, Sum]()
    into.mkdir(mode=0o700)  # whoever runs a slice from it opens it
    if content.form is Form.FILE:
        _check_locale(content.file)
        target = into / content.file
        packed.rename(target)
        mode = runnable(shared(content.mode))  # whatever runs it: where it was pushed from it need not have been
        target.chmod(mode)
        tree.add_file(content.file, content.data_size)
        sums[content.file] = Sum(content.data_size, mode, bytes.fromhex(content.data_sha256))
    else:
        # Many artifacts are one file: 0.4 MiB of readers of archives are for nodes that get others.
        from cdm.artifacts.archive import clean, explained, members  # noqa: PLC0415

        with explained(content.file):
            for name, member, data in members(packed, tree):
                check()
                _check_locale(name)
                path = into / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if member.isdir():
                    path.mkdir(exist_ok=True)
                elif member.islnk():
                    target_name = clean(member.linkname)
                    path.hardlink_to(into / target_name)
                    sums[name] = sums[target_name]
                elif data is not None:
                    sums[name] = _write(path, data, shared(member.mode), check)
        for name in tree.folders:
            (into / name).chmod(_FOLDER)
        for name, target_name in tree.links.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            _check_locale(target_name)
            (into / name).symlink_to(target_name)
    return Seal(tree, sums)


def _write(path: Path, data: IO[bytes], mode: int, check: Check) -> Sum:
    digest, size = hashlib.sha256(), 0
    with SparseFile(path) as file:
        while piece := data.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
            check()
        os.fchmod(file.fileno(), mode)
    return Sum(size, mode, digest.digest())


def _check_locale(name: str) -> None:
    """Refuse a name whose bytes would be others on this node."""
    if not name.isascii() and sys.getfilesystemencoding() != "utf-8":
        raise InvalidContent(
            f"{name!r} cannot be written in this node's locale ({sys.getfilesystemencoding()}); "
            "start the node with LC_ALL=C.UTF-8"
        )
