"""What a cache does on its disk. All of it may take long, and is called in threads; `free_bytes` is not."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from anyio import from_thread

from cdm.artifacts.seal import Seal
from cdm.artifacts.tree import runnable, scan
from cdm.artifacts.unpacking import unpack
from cdm.model.content import Content
from cdm.model.manifest import Manifest

TEMPORARY = "tmp-"
"""How the names of folders begin that are removed at the start."""
_SEAL = ".seal"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to a folder, which somebody may have removed."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def survey(folder: Path) -> list[tuple[str, int, Seal | None]]:
    """Contents of the folder, the one that was not asked for longest first: digest, bytes, seal."""
    folder.mkdir(parents=True, exist_ok=True)
    found, seals = list[tuple[int, str]](), set[str]()
    for path in folder.iterdir():
        if path.name.startswith(TEMPORARY):
            discard(path)
        elif path.suffix == _SEAL and _DIGEST.fullmatch(path.stem):
            seals.add(path.stem)
        elif _DIGEST.fullmatch(path.name):
            found.append((path.lstat().st_mtime_ns, path.name))
    for name in seals - {name for _, name in found}:
        seal_of(folder, name).unlink(missing_ok=True)
    contents = [(name, Seal.load(seal_of(folder, name))) for _, name in sorted(found)]
    return [(name, seal.tree.size if seal else scan(folder / name).size, seal) for name, seal in contents]


def seal_of(folder: Path, digest: str) -> Path:
    """Where a content's seal is."""
    return folder / f"{digest}{_SEAL}"


def unpack_into(temporary: Path, content: Content, manifest: bytes) -> Seal:
    """Unpack what was downloaded, and seal it with its manifest. Errors: see `unpack`."""
    seal = unpack(temporary / "packed", content, temporary / "content", from_thread.check_cancelled)
    seal.manifest = manifest
    seal.save(temporary / "seal")
    return seal


def install(temporary: Path, target: Path) -> None:
    """Give what was unpacked its name."""
    with suppress(FileNotFoundError):  # there may be something left of a content that somebody altered
        target.rename(temporary / "before")
    (temporary / "content").rename(target)
    (temporary / "seal").rename(seal_of(target.parent, target.name))


def check(folder: Path, seal: Seal, remove_others: bool) -> list[str]:
    """Make sure that a content is whole; returns what was removed. Errors: see `Seal.check`."""
    return seal.check(folder, from_thread.check_cancelled, remove_others=remove_others)


def make_runnable(folder: Path, manifest: Manifest, seal: Seal) -> None:
    """Note that a content was asked for, and let its entry be run by whoever may read it."""
    os.utime(folder)
    entry = seal.tree.resolve(manifest.entry)
    if entry in seal.tree.files:
        program = folder / entry
        mode = program.stat().st_mode & 0o777
        if mode != runnable(mode):
            program.chmod(runnable(mode))
            seal.changed(folder, entry)


def discard(path: Path) -> None:
    """Remove a folder, or what somebody put in its place, as far as that is possible."""
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
