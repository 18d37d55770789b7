"""As whom slices run: the choice, and whether it can be had on this machine."""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cdm.errors import UsageError
from cdm.runtimes.keeper.identity import become

_HIGHEST = 2**32 - 2
_NOBODY = (65534, 65535)
"""What ids that are not mapped look like, and what old programs take for "none"."""
_RANGE = re.compile(r"([0-9]{1,10})-([0-9]{1,10})", re.ASCII)


class Same(NamedTuple):
    """As the node itself."""


class OneUser(NamedTuple):
    """All as one user."""

    uid: int
    gid: int


class UserRange(NamedTuple):
    """Each slice as a user of its own, between these, both included; none of them has to have a name."""

    first: int
    last: int

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.first <= number <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


RunAs = Same | OneUser | UserRange
SAME = Same()

USUAL = (UserRange(1_900_000_000, 1_900_065_535), UserRange(50_000, 59_999))
"""The ranges that are taken where none is named: the first that can be. The first is free by all that distributions and
systemd say; the second is for containers that have no more than 65,536 ids."""


class Ids(NamedTuple):
    """What this machine says about users and groups, or about one of the two."""

    mapped: tuple[UserRange, ...]
    """Those that exist here at all: a container may have few."""
    lent: tuple[UserRange, ...]
    """Those that users may give to their own containers (/etc/subuid, /etc/subgid)."""
    named: tuple[int, ...]
    """Those with a name."""

    @classmethod
    def read(cls, kind: str, root: Path = Path("/")) -> Ids:
        """Read them.

        Args:
            kind: "uid" or "gid".
            root: where ``proc`` and ``etc`` are.
        """
        mapped = tuple(
            UserRange(int(inside), int(inside) + int(count) - 1)
            for inside, _, count in map(str.split, _lines(root / f"proc/self/{kind}_map"))
        )
        lent = tuple(
            UserRange(int(first), int(first) + int(count) - 1)
            for _, first, count in _fields(root / f"etc/sub{kind}", 3)
            if first.isdecimal() and count.isdecimal() and int(count)
        )
        names = root / ("etc/passwd" if kind == "uid" else "etc/group")
        named = tuple(int(fields[2]) for fields in _fields(names) if len(fields) > 2 and fields[2].isdecimal())
        return cls(mapped, lent, named)

    def problem(self, wanted: UserRange) -> str | None:
        """Why a range cannot be had; None: it can."""
        if self.mapped and not any(wanted.first in each and wanted.last in each for each in self.mapped):
            return f"only {', '.join(map(str, self.mapped))} exist here (/proc/self/uid_map)"
        for each in self.lent:
            if wanted.first <= each.last and each.first <= wanted.last:
                return f"{each} belong to users' own containers (/etc/subuid, /etc/subgid)"
        for number in (0, *_NOBODY, *self.named):
            if number in wanted:
                return f"{number} is somebody else's"
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _fields(path: Path, count: int | None = None) -> Iterator[list[str]]:
    for line in _lines(path):
        fields = line.strip().split(":")
        if count in (None, len(fields)):
            yield fields


def parse_range(text: str) -> UserRange:
    """Read ``FIRST-LAST``; raises `UsageError`."""
    found = _RANGE.fullmatch(text.strip())
    if not found or not 0 < int(found[1]) <= int(found[2]) <= _HIGHEST:
        raise UsageError(f"{text!r} is no range of users (--run-as-range, CDM_RUN_AS_RANGE): write FIRST-LAST")
    return UserRange(int(found[1]), int(found[2]))


def parse_user(text: str) -> OneUser:
    """Find a user by name or number; raises `UsageError`."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
        user = OneUser(entry.pw_uid, entry.pw_gid)
    except (KeyError, OverflowError):
        if not text.isdecimal() or int(text) > _HIGHEST:
            raise UsageError(f"there is no user {text!r} (--run-as, CDM_RUN_AS)") from None
        user = OneUser(int(text), int(text))
    if 0 in user:
        raise UsageError(f"{text} is no user for slices (--run-as, CDM_RUN_AS); to run them as root, write same")
    return user


def chosen(user: str | None, users: str | None, root: Path = Path("/")) -> RunAs:
    """What is meant by the options, in which an empty text counts as none.

    Args:
        user: of ``--run-as``.
        users: of ``--run-as-range``.
        root: where ``proc`` and ``etc`` are.

    Raises:
        UsageError: it cannot be meant.
    """
    if user and users:
        raise UsageError("--run-as (CDM_RUN_AS) and --run-as-range (CDM_RUN_AS_RANGE): choose one of them")
    if user:
        if user == "same":
            return SAME
        one = parse_user(user)
        return SAME if one.uid == os.geteuid() else one
    known = Ids.read("uid", root), Ids.read("gid", root)
    if users:
        wanted = parse_range(users)
        for ids in known:
            if problem := ids.problem(wanted):
                raise _unavailable(f"users {wanted}: {problem}")
        return wanted
    if os.geteuid() != 0:
        return SAME
    for each in USUAL:
        if not any(ids.problem(each) for ids in known):
            return each
    told = "; ".join(f"{each}: {next(filter(None, (ids.problem(each) for ids in known)))}" for each in USUAL)
    raise _unavailable(f"no range of users is free ({told})")


def check(run_as: RunAs, folder: Path) -> None:
    """Try whether slices can be run like this by this process, before it has threads.

    Args:
        run_as: as whom.
        folder: the node's.

    Raises:
        UsageError: they cannot.
    """
    match run_as:
        case Same():
            return
        case OneUser(uid, gid):
            users = {uid: gid}
        case UserRange(first, last):
            users = {first: first, last: last}
    above = _existing(folder.parent)
    for uid, gid in users.items():
        if problem := _tried(uid, gid, above):
            raise _unavailable(problem)


def runs_python(run_as: RunAs) -> bool:
    """Whether slices can run this node's own Python, as artifacts that end in .py are."""
    match run_as:
        case Same():
            return True
        case OneUser(uid, gid):
            pass
        case UserRange(uid):
            gid = uid
    return _tried(uid, gid, Path(sys.executable).resolve(), os.X_OK) is None


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _tried(uid: int, gid: int, path: Path, access: int = os.X_OK) -> str | None:
    """What keeps a process from becoming a user and from entering a folder; None: nothing does."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            problem = ""
            try:
                become(uid, gid)
            except OSError as error:
                problem = f"user {uid} cannot be had: {error.strerror}"
            else:
                barred = [each for each in (*reversed(path.parents), path) if not os.access(each, access)]
                if barred:
                    problem = f"{barred[0]} may not be entered by user {uid}"
            os.write(write, problem.encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as told:  # noqa: PTH123  # a descriptor
        problem = told.read().decode()
    _, status = os.waitpid(pid, 0)
    if status and not problem:
        problem = f"a process that was to become user {uid} ended with {os.waitstatus_to_exitcode(status)}"
    return problem or None


def _unavailable(problem: str) -> UsageError:
    return UsageError(
        f"slices cannot have users of their own: {problem}; choose others (--run-as-range, --run-as), another --folder,"
        " or run slices as this node's own user (--run-as same), who can read its credentials"
    )
