"""What commands that write have in common: who types, and how often it is tried."""

from __future__ import annotations

import socket

TRIES = 5
"""How often an edit is made anew where the blueprint was written meanwhile, or the server could not write."""
PAUSE = 0.2
"""Seconds between two tries, at most."""


def typist() -> str:
    """Who types, as told in a header: user and host, in printable ASCII."""
    import getpass  # noqa: PLC0415  # many commands write nothing

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container the user may have no entry
        user = "unknown"
    text = f"{user}@{socket.gethostname()}"
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text)[:100]
