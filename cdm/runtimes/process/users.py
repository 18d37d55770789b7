"""As which user each slice runs, and what it has of its own: a folder, and a way into its artifact.

A slice's number is the user of its folder (``HOME``, and ``TMPDIR`` inside), and its own for as long as that folder is
there: also when the node's process ends and comes back. Its group is that of its artifact's content, which all slices
of that content share: nobody else can enter the content's folder, and nobody but the node can write there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from msgspec import Struct

from cdm.errors import SliceFailed
from cdm.log import Log
from cdm.runtimes.keeper.protocol import RunUser
from cdm.runtimes.process.claims import ALL, Claims
from cdm.runtimes.process.files import PASSAGE, hand_over, open_folder, own_folder, remove
from cdm.runtimes.run_as import OneUser, RunAs, Same, UserRange

log = Log("cdm.process")

HOMES = "slices"
"""The folder, inside the runtime's own, that holds those of the slices."""
TEMPORARY = "tmp"
_FOR_ITS_GROUP = 0o750


class Lodging(Struct, frozen=True):
    """What a slice has of its own."""

    user: RunUser
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell the slice where it may write."""
        return {"HOME": str(self.home), "TMPDIR": str(self.home / TEMPORARY)}


def taken_in(folder: Path, registry: Path) -> set[int]:
    """The users that slices of a runtime have, and nobody else, whatever range the runtime was given.

    Args:
        folder: the runtime's own.
        registry: where the claims are.
    """
    return Users(folder, ALL, Claims(ALL, registry)).taken()


class Users:
    """The users of one runtime's slices. Its methods are for threads, several at a time.

    Args:
        folder: the runtime's own.
        run_as: as whom slices run.
        claims: which numbers are taken; None: no slice has one for itself.
    """

    def __init__(self, folder: Path, run_as: RunAs, claims: Claims | None) -> None:
        self._folder = folder
        self._homes = folder / HOMES
        self._run_as = run_as
        self._claims = claims
        self._changing = threading.Condition()
        self._busy: set[str] = set()
        """Slices whose folders are being made or removed."""
        self._lodged: set[str] = set()
        self._groups: dict[Path, int] = {}
        """By content: a folder may be made anew while slices run that have its group."""

    @classmethod
    def of(cls, folder: Path, run_as: RunAs) -> Users:
        """Those of a runtime, with numbers that no other node of this machine gives."""
        return cls(folder, run_as, Claims(run_as) if isinstance(run_as, UserRange) else None)

    @property
    def others(self) -> bool:
        """Whether slices are others than the node."""
        return not isinstance(self._run_as, Same)

    def start(self, closed: Collection[str] = (), passages: Collection[str] = ()) -> None:
        """Make the place for the slices' folders, and more folders of the runtime.

        Args:
            closed: those that are closed to slices.
            passages: those that they pass through.

        Raises:
            OSError: the runtime's folder cannot be used.
        """
        if self.others:
            with self._opened(self._folder) as parent:
                os.fchmod(parent, PASSAGE)
                modes = {**dict.fromkeys(closed, 0o700), **dict.fromkeys((HOMES, *passages), PASSAGE)}
                for name, mode in modes.items():
                    os.close(own_folder(name, parent, mode))
        elif self._homes.exists():
            with contextlib.suppress(OSError), self._opened(self._folder) as parent:  # perhaps they are root's
                remove(HOMES, parent)
        if self._claims is not None:
            self._claims.open()

    def taken(self) -> set[int]:
        """The users that slices of this runtime have, and nobody else."""
        found = set()
        if self._claims is not None and self._homes.exists():
            for home in self._homes.iterdir():
                with contextlib.suppress(OSError):
                    uid = home.lstat().st_uid
                    if self._claims.has(uid, home):
                        found.add(uid)
        return found

    def lodge(self, name: str, content: Path) -> Lodging:
        """Give a slice what it has of its own, or what it had before; only where slices are `others`.

        Args:
            name: the slice's.
            content: the folder of its artifact.

        Raises:
            SliceFailed: there is no user left, or the file system refuses.
        """
        try:
            with self._alone_with(name), self._opened(self._homes) as homes:
                gid = self._let_in(content)
                self._lodged.add(name)
                own = self._home(name, homes)
                try:
                    uid = self._user(self._homes / name, own, gid)
                    os.fchmod(own, 0o700)
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(TEMPORARY, 0o700, dir_fd=own)
                        os.chown(TEMPORARY, uid, gid, dir_fd=own, follow_symlinks=False)
                finally:
                    os.close(own)
        except OSError as error:
            raise SliceFailed(f"cannot be given a user and a folder of its own: {error}") from error
        return Lodging(RunUser(uid, gid, isinstance(self._run_as, UserRange)), self._homes / name)

    def clear(self, name: str) -> None:
        """Remove what a slice has of its own; its user may be another's then. No process of it lives any more."""
        with self._alone_with(name):
            self._lodged.discard(name)
            path = self._homes / name
            try:
                with self._opened(self._homes) as homes:
                    uid = path.lstat().st_uid
                    if isinstance(self._run_as, OneUser):  # whose other slices go on
                        os.chown(name, 0, 0, dir_fd=homes, follow_symlinks=False)
                    remove(name, homes)
                    if self._claims is not None and self._claims.has(uid, path):
                        self._claims.release(uid)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("what a slice had of its own cannot be removed", folder=str(path), reason=str(error))

    def clear_all_but(self, names: Collection[str]) -> None:
        """Remove what is left of slices that are no more: an earlier process of this node had them."""
        with contextlib.suppress(FileNotFoundError):
            for name in {home.name for home in self._homes.iterdir()} - self._lodged - {*names}:
                self.clear(name)

    @contextlib.contextmanager
    def _alone_with(self, name: str) -> Iterator[None]:
        with self._changing:
            self._changing.wait_for(lambda: name not in self._busy)
            self._busy.add(name)
        try:
            yield
        finally:
            with self._changing:
                self._busy.discard(name)
                self._changing.notify_all()

    @contextlib.contextmanager
    def _opened(self, folder: Path) -> Iterator[int]:
        found = open_folder(folder)
        try:
            yield found
        finally:
            os.close(found)

    def _home(self, name: str, homes: int) -> int:
        """A slice's folder: what it had before, unless that is none that a slice can have had."""
        try:
            found = open_folder(name, homes)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
        else:
            if os.fstat(found).st_uid != os.geteuid():
                return found
            os.close(found)
        remove(name, homes)
        os.mkdir(name, 0o700, dir_fd=homes)
        return open_folder(name, homes)

    def _user(self, home: Path, opened: int, gid: int) -> int:
        """The user of a slice's folder, from now on if it was another's."""
        before = os.fstat(opened).st_uid
        match self._run_as:
            case OneUser(uid):
                pass
            case _:
                assert self._claims is not None
                uid = before if self._claims.has(before, home) else self._claims.claim(home, opened)
        if before == uid:
            os.fchown(opened, uid, gid)
        else:
            hand_over(opened, before, uid, gid)
        return uid

    def _let_in(self, content: Path) -> int:
        """Open a content to its group, and to nobody else; returns the group."""
        with self._changing, self._opened(content) as opened:
            state = os.fstat(opened)
            if state.st_uid != os.geteuid():
                raise SliceFailed(f"{content} belongs to user {state.st_uid}, who can change it; remove it", fatal=True)
            match self._run_as:
                case OneUser(_, gid):
                    pass
                case _:
                    assert self._claims is not None
                    gid = self._groups.get(content, state.st_gid)
                    if not self._claims.has(gid, content):
                        gid = self._claims.claim(content, opened)
            self._groups[content] = gid
            if state.st_gid != gid:
                os.fchown(opened, -1, gid)
            os.fchmod(opened, _FOR_ITS_GROUP)
            return gid
