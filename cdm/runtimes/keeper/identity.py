"""Who a process is to the kernel: made a user that may do nothing but run, or hidden from those of its own user."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64
"""No kernel has more."""

_libc = ctypes.CDLL(None, use_errno=True)
"""Loaded before any fork."""
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_HEADER = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
_NONE = (ctypes.c_uint32 * 6)()


def _prctl(what: int, *values: int) -> None:
    if _libc.prctl(what, *values, *[0] * (4 - len(values))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Bound:
    """Whether this process, or the one that it was forked from, has lost its bounding set."""

    done = False


def bind() -> None:
    """Have nothing that this process runs get capabilities from a file: its bounding set is emptied, once for all.

    What it has itself it keeps. Done before forks, it saves each of them a third of the time that `become` takes.

    Raises:
        OSError: this process may not do that.
    """
    for capability in range(0 if _Bound.done else _CAPABILITIES):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # that was the last one
    _Bound.done = True


def become(uid: int, gid: int) -> None:
    """Make this process another user's, without groups and capabilities, and without any way to get some.

    The parent-death signal and "dumpable" are reset by the kernel: whoever wants them sets them afterwards.

    Raises:
        OSError: this process may not do that, or the user is none here.
    """
    bind()
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if _libc.capset(_HEADER, _NONE):  # the inheritable ones stay when the user changes
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide() -> None:
    """Let no other process of this user look into this one: its memory, its environment, its descriptors.

    There is no core dump of it, either; root, with all capabilities, still can.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


@contextmanager
def shown() -> Iterator[None]:
    """Not hidden for a moment: only then its own files in /proc are those of its user, and may be written to."""
    _prctl(_PR_SET_DUMPABLE, 1)
    try:
        yield
    finally:
        hide()


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the parent ends. A change of the user takes that back."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants whose own parent ended, so that it can reap them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
