"""What tells a node's folder from every other one that its node has had, or may have on another machine.

A number that is drawn once, and kept in the folder with what the folder was then: a copy of it, or one that another
machine has by now, is another folder, and gets a number of its own.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

IDENTITY = "identity"
"""The file that it is kept in."""
MACHINE = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
"""What tells machines apart: where the first says nothing, as in many containers, each start of the machine counts as
another one."""


class _Kept(Struct, frozen=True):
    """A folder's number, and what it is of."""

    number: str
    machine: str
    inode: int


def identity_of(folder: Path) -> str:
    """The folder's number, which is on the disk by the time that this returns. Raises `OSError`.

    Args:
        folder: a node's; this process has it to itself.
    """
    file, machine, inode = folder / IDENTITY, _machine(), folder.stat().st_ino
    with suppress(FileNotFoundError, msgspec.MsgspecError):
        kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        if kept.number and (kept.machine, kept.inode) == (machine, inode):
            return kept.number
    made = _Kept(secrets.token_hex(8), machine, inode)
    draft = file.with_suffix(".new")
    with draft.open("wb") as writing:
        writing.write(msgspec.json.encode(made))
        writing.flush()
        os.fsync(writing.fileno())
    draft.replace(file)
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(within)
    finally:
        os.close(within)
    return made.number


def _machine() -> str:
    for file in MACHINE:
        with suppress(OSError):
            if found := file.read_text().strip():
                return found
    return ""
