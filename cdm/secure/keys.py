"""Keys of NATS users (nkeys): a seed, which its user keeps, and the public key, which the server is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A new key."""

    public: str
    seed: bytes

    def __repr__(self) -> str:
        return f"Pair({self.public})"


def new_pair() -> Pair:
    """Make a user's key."""
    import nkeys  # noqa: PLC0415  # who makes no key does not wait for it

    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    pair = nkeys.from_seed(bytearray(seed))
    public = bytes(pair.public_key).decode()
    pair.wipe()
    return Pair(public, bytes(seed))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; whoever reads it meanwhile finds the old content or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as output:
            output.write(content)
            output.flush()
            os.fsync(output.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
