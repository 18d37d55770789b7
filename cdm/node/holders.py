"""Which processes of a node had its folder, for those who give the node up when all of them are dead."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

HOLDERS = "holders"
"""The file in the node's folder."""
MOST = 20
"""Processes that are remembered: of those that began last one alone can be registered, and few end before they are."""


class Holders(Struct, frozen=True):
    """What is remembered of the processes that had a folder to themselves."""

    incarnations: tuple[str, ...] = ()
    """Theirs, the last one's last."""
    ttl: float | None = None
    """The last one's: seconds for which its registration stands without a heartbeat."""
    settled: bool = False
    """Whether the last one knew that nothing which must not run twice runs where others had begun it, in other folders:
    only then may its registration end before its time."""


def holders_of(folder: Path) -> Holders:
    """Who had the folder, as far as its file tells.

    Args:
        folder: a node's.
    """
    try:
        return msgspec.json.decode((folder / HOLDERS).read_bytes(), type=Holders)
    except (OSError, msgspec.MsgspecError):
        return Holders()


def note_holder(folder: Path, incarnation: str, ttl: float, *, settled: bool = False) -> None:
    """Remember one more, before it registers, or what it knows since. Raises `OSError`.

    Args:
        folder: the node's; this process has it to itself.
        incarnation: of this process.
        ttl: of its registration, in seconds.
        settled: see `Holders.settled`.
    """
    before = (each for each in holders_of(folder).incarnations if each != incarnation)
    noted = Holders((*before, incarnation)[-MOST:], ttl, settled)
    draft = folder / f"{HOLDERS}.new"
    draft.unlink(missing_ok=True)
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as writing:
        writing.write(msgspec.json.encode(noted))
    draft.replace(folder / HOLDERS)


def forget_holders(folder: Path) -> None:
    """Remember none any more: the node leaves, and nothing of it is to be taken back."""
    with suppress(OSError):
        (folder / HOLDERS).unlink()
