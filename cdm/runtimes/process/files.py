"""Folders that programs of others wrote to: opened, handed over and removed without being led elsewhere.

What is in them was put there by programs that nobody trusts, and some may still run. So nothing is reached by a path of
more than one name, no link is followed, and it does not matter how deep it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

PASSAGE = 0o711
"""Permissions of a folder that others may pass through, and whose names they cannot list."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_ROUNDS = 100_000
"""Deeper than any folder that a program makes in earnest."""
_DEEPEST = 100
"""How deep a folder is handed over; each level takes a file descriptor."""


def make_passage(path: Path) -> None:
    """Make a folder, and those above it, where they are missing, so that others may pass through. Raises `OSError`."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
            each.chmod(PASSAGE)


def open_folder(name: str | Path, parent: int | None = None) -> int:
    """Open a folder, and nothing that a link leads to. Raises `OSError`."""
    return os.open(name, _FOLDER, dir_fd=parent)


def own_folder(name: str, parent: int, mode: int) -> int:
    """Open a folder that only this process's user can have made, and make it where there is none such.

    Raises:
        OSError: the file system refuses.
    """
    for _ in range(3):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        try:
            found = open_folder(name, parent)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
        else:
            if os.fstat(found).st_uid == os.geteuid():
                os.fchmod(found, mode)
                return found
            os.close(found)
        remove(name, parent)
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), name)


def remove(name: str, parent: int) -> None:
    """Remove a folder with all that is in it, or whatever has that name.

    What is inside of its folders is moved up, until there is only one level: so it takes two file descriptors.

    Raises:
        OSError: the file system refuses.
    """
    top = _unlinked(name, parent)
    if top is None:
        return
    try:
        count = 0
        for _ in range(_MOST_ROUNDS):
            empty = True
            with os.scandir(top) as found:
                for entry in found:
                    empty = False
                    inner = _unlinked(entry.name, top)
                    if inner is None:
                        continue
                    try:
                        with os.scandir(inner) as below:
                            for each in below:
                                count += 1
                                _lift(each.name, inner, top, f".{secrets.token_hex(8)}-{count}")
                    finally:
                        os.close(inner)
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(entry.name, dir_fd=top)
            if empty:
                break
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _lift(name: str, inner: int, top: int, new: str) -> None:
    try:
        os.unlink(name, dir_fd=inner)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        os.rename(name, new, src_dir_fd=inner, dst_dir_fd=top)


def _unlinked(name: str, parent: int) -> int | None:
    """Remove what is no folder; returns the folder, opened, where it is one."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        return open_folder(name, parent)
    return None


def hand_over(folder: int, before: int, uid: int, gid: int) -> None:
    """Give all that a user has in a folder to another one; the folder itself last.

    Only what that user has, and no file with a second name: it may be one that lies elsewhere. What is very deep, too,
    stays as it is.

    Raises:
        OSError: the file system refuses.
    """
    _hand_over(folder, before, uid, gid, _DEEPEST)
    os.fchown(folder, uid, gid)


def _hand_over(folder: int, before: int, uid: int, gid: int, deepest: int) -> None:
    with os.scandir(folder) as found:
        names = [entry.name for entry in found]
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            state = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if state.st_uid != before:
                continue
            if not stat.S_ISDIR(state.st_mode):
                if state.st_nlink == 1:
                    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
                continue
            if deepest:
                inner = open_folder(name, folder)
                try:
                    _hand_over(inner, before, uid, gid, deepest - 1)
                    os.fchown(inner, uid, gid)
                finally:
                    os.close(inner)
