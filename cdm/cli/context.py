"""Contexts of the ``nats`` command line tool: named sets of connection options, read where that tool keeps them."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import UsageError
from cdm.store.access import Access

_LISTED = re.compile(r",(?=\s*(?:nats|tls|wss?)://)")


class NatsContext(Struct, frozen=True):
    """The fields of a context that cdm uses; others are ignored."""

    url: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    tls_first: bool = False
    inbox_prefix: str = ""


def config_home() -> Path:
    """Where the ``nats`` tool keeps its configuration."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base:
        return Path(base) / "nats"
    # That tool asks the password database for the home folder; cdm takes $HOME where there is something.
    homes = [Path.home(), Path(pwd.getpwuid(os.getuid()).pw_dir)]
    folders = [home / ".config" / "nats" for home in homes]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def selected_context() -> str | None:
    """The context that ``nats context select`` chose, if any."""
    try:
        return (config_home() / "context.txt").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def access_of(context: str | None) -> Access:
    """How to connect according to a context; None: a server on this machine.

    Raises:
        UsageError: there is no such context, or it cannot be read.
    """
    if context is None:
        return Access()
    if "/" in context:
        raise UsageError(f"nats context {context!r}: give its name, not a path")
    path = config_home() / "context" / f"{context}.json"
    try:
        loaded = msgspec.json.decode(path.read_bytes(), type=NatsContext)
    except OSError as error:
        raise UsageError(f"nats context {context!r} cannot be read: {error}; see `nats context ls`") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"nats context {context!r} in {path} is damaged: {error}") from None
    return replace(
        Access(),
        **({"servers": servers_of(loaded.url)} if loaded.url else {}),
        **({"inbox_prefix": loaded.inbox_prefix} if loaded.inbox_prefix else {}),
        tls_first=loaded.tls_first,
        **{name: getattr(loaded, name) or None for name in ("user", "password", "token")},
        **{name: _path(getattr(loaded, name)) for name in ("creds", "nkey", "ca", "cert", "key")},
    )


def servers_of(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of servers.

    A comma before an ``@`` may be one in a password: it stays, so that no part of a password is taken for a server.
    """
    found: list[str] = []
    for group in _LISTED.split(text):
        who, at, hosts = group.rpartition("@")
        first, *others = hosts.split(",")
        found += [f"{who}{at}{first}", *others]
    return tuple(part.strip() for part in found if part.strip())


def _path(text: str) -> Any:
    return Path(text).expanduser() if text else None
