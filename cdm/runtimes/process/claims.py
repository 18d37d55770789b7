"""Which number of a range is taken, and by what: one place for all nodes of a machine, so that no two slices share one.

It is a folder of links: the name of each is a number, and it points to the folder that has the number for its user or
group. A number is taken for as long as that folder is there and has it: whoever removes the folder gives it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import random
from collections.abc import Iterator
from pathlib import Path

from cdm.errors import SliceFailed
from cdm.runtimes.keeper.processes import all_users
from cdm.runtimes.process.files import make_passage
from cdm.runtimes.run_as import UserRange

REGISTRY = Path("/var/lib/cdm/.users")
"""No node's folder is here by default: prefixes have no dots."""
ALL = UserRange(1, 2**32 - 2)
"""Whoever a slice can be for itself, for those who only look whose a number is."""
_TRIES = 64
"""Numbers that are drawn before all are looked at one by one."""


class Claims:
    """The numbers of a range. All methods may be called from several threads and processes at the same time.

    Args:
        users: the range.
        registry: where the links are.
    """

    def __init__(self, users: UserRange, registry: Path = REGISTRY) -> None:
        self.users = users
        self.registry = registry

    def open(self) -> None:
        """Make the place for the links, and free numbers of folders that are gone. Raises `OSError`."""
        make_passage(self.registry.parent)
        self.registry.mkdir(mode=0o700, exist_ok=True)
        self._free_stale()

    def has(self, number: int, folder: Path) -> bool:
        """Whether a folder has a number by right."""
        return number in self.users and self._target(number) == str(folder)

    def claim(self, folder: Path, descriptor: int) -> int:
        """Take a number for a folder, and make it the folder's group; whoever wants it for its user sets that.

        Numbers are drawn: so it is long until one is given again, and nodes in containers that cannot see each other
        hardly ever take the same.

        Args:
            folder: its path.
            descriptor: the folder itself, opened.

        Raises:
            SliceFailed: none is free.
            OSError: the file system refuses.
        """
        for attempt in (1, 2):
            for number in self._drawn():
                if _is_somebodys(number):  # a directory may take its time: nobody else waits for its answer
                    continue
                with self._locked(), contextlib.suppress(FileExistsError):
                    (self.registry / str(number)).symlink_to(folder)
                    # Before the lock is gone: who frees stale numbers must see that it is taken.
                    os.chown(descriptor, -1, number)
                    return number
            if attempt == 1:
                self._free_stale()
        raise SliceFailed(f"all users of --run-as-range {self.users} are taken; name a larger one")

    def release(self, number: int) -> None:
        """Give a number back whose folder is gone, or has another."""
        with contextlib.suppress(FileNotFoundError), self._locked():
            (self.registry / str(number)).unlink()

    def _drawn(self) -> Iterator[int]:
        first, last = self.users
        for _ in range(_TRIES):
            yield random.randint(first, last)
        taken = self._taken()
        yield from (number for number in range(first, last + 1) if number not in taken)

    def _taken(self) -> set[int]:
        return {int(name) for name in os.listdir(self.registry) if name.isdigit()}  # noqa: PTH208  # only names

    def _target(self, number: int) -> str | None:
        try:
            return os.readlink(self.registry / str(number))  # noqa: PTH115
        except OSError:
            return None

    def _free_stale(self) -> None:
        """Free the numbers of folders that are gone. While a process has one as its user it stays taken."""
        with self._locked():
            stale = {number for number in self._taken() if not self._stands(number)}
            if stale:
                for number in stale - all_users():
                    (self.registry / str(number)).unlink()

    def _stands(self, number: int) -> bool:
        try:
            found = os.lstat(self._target(number) or "")
        except OSError:
            return False
        return number in (found.st_uid, found.st_gid)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        place = os.open(self.registry, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)
            yield
        finally:
            os.close(place)


def _is_somebodys(number: int) -> bool:
    """Whether a user or group has the number, also one that only a directory knows (LDAP, SSSD)."""
    for find in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            find(number)
            return True
    return False
