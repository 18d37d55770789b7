"""A node's folder: where it is, and what keeps it to one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from cdm import clock
from cdm.errors import FolderTaken, UsageError
from cdm.log import Lasting, Log
from cdm.model.artifact import NodeId
from cdm.model.keys import encode_node
from cdm.runtimes.process.files import PASSAGE, make_passage, open_folder, own_folder

log = Log("cdm.node")

ARTIFACTS, RUNTIME = "artifacts", "runtime"
"""What is in it, besides a lock: what was fetched, and the runtime's own."""

LOCK = "lock"
"""The file that is locked."""

CHECK_INTERVAL = 5.0
"""Seconds between two looks whether the folder is still there."""
BACKLOG = 4096
"""How many others may ask who has a name: they are never accepted."""
NOBODY = -1
_CREDENTIALS = struct.Struct("3i")


def state_folder(prefix: str, node: NodeId) -> Path:
    """Where a node keeps what it fetched and what its slices wrote, unless it is told."""
    base = Path("/var/lib") if os.geteuid() == 0 else Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return base.expanduser() / "cdm" / (prefix or "default") / encode_node(node)


def chosen_folder(chosen: Path | None, prefix: str, node: NodeId) -> Path:
    """A node's folder, absolute: slices are started in folders of their own."""
    return (chosen or state_folder(prefix, node)).expanduser().absolute()


class Space(NamedTuple):
    """What a file system has for its user, in bytes; None: not known."""

    free: int | None
    size: int | None


class Folder:
    """A folder that this process has to itself from `take` until `free`.

    Two locks keep others out. One is on a file in the folder: it holds against everybody who sees the same files. The
    other is a socket without a file, named after the folder: it also holds when the folder is deleted and made anew.

    Nobody else can enter it; or, where slices run as others, all can pass through, and can list nothing: what is in it
    has permissions of its own.

    Args:
        path: where it is.
        shared: whether slices run as others.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._shared = shared
        self._file: int | None = None
        self._name: socket.socket | None = None
        self.space = Space(None, None)
        """What there is where it is; it is looked at again and again while `watch` runs."""

    def take(self) -> None:
        """Lock the folder, and make it where it is missing.

        Raises:
            FolderTaken: another process has it.
            OSError: it cannot be used.
            UsageError: it is another user's.
        """
        self._file = self._lock()
        try:
            self._name = _bound(_name_of(self.path)) if sys.platform == "linux" else None
            self._close()
            self.space = self._space()
        except OSError as error:
            self.free()
            raise self._taken() if error.errno == errno.EADDRINUSE else error from None
        except UsageError:
            self.free()
            raise

    def free(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
        if self._name is not None:
            self._name.close()
        self._file = self._name = None

    async def watch(self) -> None:
        """Tell when somebody deletes the folder, and lock what is made in its place; until cancelled."""
        is_gone = False
        lacks = Lasting(log, "the node's folder is there again", level="error")
        while True:
            await anyio.sleep(CHECK_INTERVAL)
            if await anyio.to_thread.run_sync(self._look):
                is_gone = False
                lacks.over(clock.now(), folder=str(self.path))
                continue
            if not is_gone:
                is_gone = True
                log.error(
                    "the node's folder was deleted while the node runs: what its slices wrote is lost, and artifacts"
                    " are fetched again; restart the node",
                    folder=str(self.path),
                )
            try:
                old, self._file = self._file, await anyio.to_thread.run_sync(self._lock)
                await anyio.to_thread.run_sync(self._close)
            except (FolderTaken, OSError, UsageError) as error:
                told = {"folder": str(self.path), "reason": str(error)}
                lacks.goes_on(clock.now(), "the node's folder cannot be made anew", **told)
            else:
                if old is not None:
                    os.close(old)

    def _lock(self) -> int:
        make_passage(self.path)
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise self._taken() if isinstance(error, BlockingIOError) else error from None
        return file

    def _close(self) -> None:
        """Close it to others, but for those who pass through; and close what was fetched, until it is let in there."""
        state = self.path.stat()
        if not self._shared:
            if state.st_uid == os.geteuid():
                self.path.chmod(0o700)
            return
        if state.st_uid != os.geteuid():
            raise UsageError(
                f"{self.path} belongs to user {state.st_uid}, whose programs may have left traps in it; remove it,"
                " choose another --folder (CDM_FOLDER), or run slices as the node itself (--run-as same)"
            )
        self.path.chmod(PASSAGE)
        top = open_folder(self.path.resolve())
        try:
            for name in (ARTIFACTS, RUNTIME):
                inner = own_folder(name, top, PASSAGE)
                try:
                    if name == ARTIFACTS:
                        _close_all(inner)
                finally:
                    os.close(inner)
        finally:
            os.close(top)

    def _look(self) -> bool:
        """Whether the folder is still there, and what space there is."""
        there = self._is_there()
        if there:
            self.space = self._space()
        return there

    def _is_there(self) -> bool:
        """Whether the file that is locked is still the one in the folder."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), (self.path / LOCK).stat())
        except OSError:
            return False

    def _space(self) -> Space:
        try:
            found = os.statvfs(self.path)
        except OSError:
            return Space(None, None)
        # What is kept back for root is no use to a node that is not root, and counts neither as free nor as taken.
        used = found.f_blocks - found.f_bfree
        return Space(found.f_bavail * found.f_frsize, (used + found.f_bavail) * found.f_frsize)

    def _taken(self) -> FolderTaken:
        return FolderTaken(
            f"{self.path} is used by another process; if that is not a node of this name, choose another --folder"
        )


def _close_all(folder: int) -> None:
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # no folder, or a link
            inner = open_folder(name, folder)
            try:
                os.fchmod(inner, 0o700)
            finally:
                os.close(inner)


def _name_of(folder: Path) -> bytes:
    """A name for the folder that stays when it is deleted: where it is in the file system that is mounted there.

    Containers that share the host's network, and with it such names, each have file systems of their own.
    """
    path = folder.resolve()
    mount = next(parent for parent in (path, *path.parents) if os.path.ismount(parent))
    root = mount.stat()
    where = f"{root.st_dev}:{root.st_ino}:{path.relative_to(mount)}"
    return b"\0cdm.folder." + hashlib.sha256(os.fsencode(where)).hexdigest()[:40].encode()


def _bound(name: bytes) -> socket.socket | None:
    """Take a name; None where a stranger has it, who must not be able to keep this node from its folder.

    Raises:
        OSError: a process of the same user, or of root, has it.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(name)
        bound.listen(BACKLOG)
        return bound
    except OSError:
        bound.close()
        if _holder(name)[1] in (0, os.geteuid()):
            raise
        return None


def holder(folder: Path) -> int | None:
    """The process that has the folder to itself; None: none of this user or root, or it cannot be told."""
    if sys.platform != "linux" or not folder.exists():
        return None
    pid, user = _holder(_name_of(folder))
    return pid if pid > 0 and user in (0, os.geteuid()) else None


def _holder(name: bytes) -> tuple[int, int]:
    """The process that has a name, and its user."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
        except OSError:
            return NOBODY, NOBODY  # it does not listen, or its backlog is full
        pid, user, _ = _CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(user)
