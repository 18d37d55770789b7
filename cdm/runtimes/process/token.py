"""What marks all that is one runtime's: processes, units, containers. It is kept in the runtime's own folder."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

_FILE = "token"
_BYTES = 8


def token_of(folder: Path) -> str | None:
    """The one that is there; None: there is none, or it is damaged, so nothing that runs could be known by it.

    Args:
        folder: the runtime's own.

    Raises:
        OSError: there may be one, and it cannot be read.
    """
    with suppress(FileNotFoundError, ValueError):
        token = (folder / _FILE).read_text().strip()
        if len(bytes.fromhex(token)) == _BYTES:
            return token
    return None


def new_token(folder: Path) -> str:
    """Make one, in place of any other. Raises `OSError`."""
    token, path = secrets.token_hex(_BYTES), folder / _FILE
    draft = path.with_suffix(".new")
    draft.write_text(token)
    draft.replace(path)
    return token
