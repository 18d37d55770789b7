"""Makes what is pushed out of a file, a folder or an archive.

A folder becomes a tar archive that depends on nothing but names, contents and permissions, so that the same folder has
the same digest on every machine. For that reason it is not compressed: what a compressor makes of the same bytes
changes with its version. The server compresses what it stores.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

from msgspec import Struct

from cdm.artifacts.archive import explained, members
from cdm.artifacts.sparse import SparseFile
from cdm.artifacts.tree import MAX_UNPACKED, Tree, name_of, readable, runnable
from cdm.errors import InvalidContent
from cdm.model.content import Content, Form, problem_with_name
from cdm.model.manifest import Manifest
from cdm.runtimes.process.command import PYTHON_SUFFIXES

SUFFIXES = (".tar.gz", ".tgz", ".tar")
"""Files of these names are archives, and unpacked on the nodes."""
PROGRAMS = (b"#!", b"\x7fELF")
"""How a file begins that Linux runs by itself, as scripts and programs do."""
_PIECE = 1024 * 1024
_KEPT = 0o755
"""Permissions that are kept: none for others to write, or the digest would depend on the umask of whoever pushes."""


class Packed(Struct, frozen=True):
    """A file that is ready to be pushed."""

    path: Path
    form: Form
    file: str
    mode: int
    digest: Any
    """SHA-256 of its bytes, to be gone on with."""
    size: int
    tree: Tree

    @property
    def sha256(self) -> str:
        """That digest, in hexadecimal."""
        return str(self.digest.hexdigest())

    def content(self, manifest: Manifest, *, inside: bool = True) -> Content:
        """What describes it in the store, with a manifest.

        Args:
            manifest: how it is run.
            inside: whether the manifest is a part of what is stored, which nodes of earlier versions cannot read.
        """
        data, whole, tail = self.sha256, self.digest.copy(), manifest.stored if inside else b""
        whole.update(tail)
        return Content(
            form=self.form,
            file=self.file,
            sha256=whole.hexdigest(),
            size=self.size + len(tail),
            unpacked=self.tree.size,
            manifest=manifest,
            mode=self.mode,
            tail=len(tail),
            data=data if inside else "",
        )


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
    found, name = path.stat(), name_of(path.resolve().name) or "root"
    tree, mode = Tree(MAX_UNPACKED), 0
    if stat.S_ISDIR(found.st_mode):
        form, source = Form.TREE, folder / "packed.tar"
        try:
            with (
                SparseFile(source, "wb") as file,
                tarfile.TarFile(
                    fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=_PIECE
                ) as archive,
            ):
                _add(archive, path, "", tree)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            needed = sum(each.lstat().st_size for each in path.rglob("*"))
            told = f"no room for its archive of some {needed:,} bytes; TMPDIR can name another folder"
            raise OSError(error.errno, told, str(path)) from None
    elif not stat.S_ISREG(found.st_mode):
        raise InvalidContent(f"{path} is not a file, folder or archive")
    elif path.name.endswith(SUFFIXES):
        form, source = Form.TREE, path
        with explained(str(path)):
            for _ in members(path, tree):
                pass
    else:
        form, source, mode = Form.FILE, path, runnable(found.st_mode & _KEPT)
        if problem := problem_with_name(name):
            raise InvalidContent(f"{path} {problem}")
        if name != readable(name):
            raise InvalidContent(f"{path}: its name is not UTF-8; rename it")
        tree.add_file(name, found.st_size)
    if not tree.files or (form is Form.FILE and not found.st_size):
        raise InvalidContent(f"{path} is empty")
    size, digest = _digest(source)
    return Packed(path=source, form=form, file=readable(name), mode=mode, digest=digest, size=size, tree=tree)


def _add(archive: tarfile.TarFile, folder: Path, prefix: str, tree: Tree) -> None:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        name = prefix + name_of(entry.name)
        info = tarfile.TarInfo(name)  # no owner, no times
        if entry.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, name_of(os.readlink(entry.path))  # noqa: PTH115
            tree.add_link(name, info.linkname)
            info.mode = 0o777
            archive.addfile(info)
        elif entry.is_dir():
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tree.add_folder(name)
            archive.addfile(info)
            _add(archive, Path(entry.path), f"{name}/", tree)
        elif entry.is_file():
            with Path(entry.path).open("rb") as file:
                known = os.fstat(file.fileno())
                info.size, info.mode = known.st_size, known.st_mode & _KEPT
                tree.add_file(name, info.size)
                archive.addfile(info, file)
        else:
            raise InvalidContent(f"{entry.path} is not a file, folder or symbolic link")


def _digest(path: Path) -> tuple[int, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return os.fstat(file.fileno()).st_size, digest


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
    return ""
