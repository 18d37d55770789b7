"""Contexts of the ``nats`` command line tool: named sets of connection options, read where that tool keeps them."""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import UsageError
from cdm.store.access import Access, api_of

_FILES = ("creds", "nkey", "ca", "cert", "key")
_CREDS = "use creds instead, a file with a JWT and its seed (in the context, or by --creds, NATS_CREDS)"
_UNSUPPORTED = {
    "user_jwt": _CREDS,
    "user_seed": _CREDS,
    "nsc": _CREDS,
}
"""Fields that say who to be, which cdm does not support, and what to do instead."""
_SUBJECT = r"[^\s.*>]+(\.[^\s.*>]+)*"
_LISTED = r",(?=\s*(?:nats|tls|wss?)://)"


class NatsContext(Struct, frozen=True):
    """The fields of a context that cdm uses or refuses; others are ignored."""

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
    user_jwt: str = ""
    user_seed: str = ""
    nsc: str = ""
    jetstream_domain: str = ""
    jetstream_api_prefix: str = ""


def config_home() -> Path:
    """Where the ``nats`` tool keeps its configuration."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base:
        return Path(base) / "nats"
    # The nats tool asks the password database for the home folder; cdm prefers $HOME where it has a configuration.
    homes = [Path.home()]
    with suppress(KeyError):  # in a container the user may have no entry
        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    folders = [home / ".config" / "nats" for home in homes]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def selected_context() -> str | None:
    """The context that ``nats context select`` chose, if any.

    Raises:
        UsageError: the file with the selection cannot be read.
    """
    path = config_home() / "context.txt"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is damaged: {error}; see `nats context select`, or give --context") from None


def access_of(context: str | None, *, identified: bool = False) -> Access:
    """How to connect according to a context.

    Args:
        context: its name; None: a server on this machine.
        identified: whether options say who to be, so that its fields about that do not matter.

    Raises:
        UsageError: there is no such context, it cannot be read, or it has a field that cdm does not support.
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"nats context {context!r} in {path} is damaged: {error}") from None
    for field, instead in _UNSUPPORTED.items():
        if getattr(loaded, field) and not identified:
            raise UsageError(f"nats context {context!r} in {path}: cdm does not support its {field}; {instead}")
    return replace(
        Access(),
        **({"servers": servers_of(loaded.url)} if loaded.url else {}),
        **({"inbox_prefix": loaded.inbox_prefix} if loaded.inbox_prefix else {}),
        **({"api": api} if (api := api_named(loaded.jetstream_domain, loaded.jetstream_api_prefix)) else {}),
        tls_first=loaded.tls_first,
        **{name: getattr(loaded, name) or None for name in ("user", "password", "token")},
        **{name: expanded(Path(path)) for name in _FILES if (path := getattr(loaded, name))},
    )


def api_named(domain: str | None, prefix: str | None) -> str:
    """What the subjects of JetStream's API begin with; empty: nothing is said. Of both the domain counts, as to `nats`.

    Raises:
        UsageError: it cannot be the name of a domain, or the beginning of a subject.
    """
    if domain:
        if not is_subject(domain) or "." in domain:
            raise UsageError(f"JetStream domain {domain!r} (--js-domain, CDM_JS_DOMAIN) is not one word of a subject")
        return api_of(domain)
    api = (prefix or "").removesuffix(".")
    if api and not is_subject(api):
        raise UsageError(f"--js-api-prefix {api!r} (CDM_JS_API_PREFIX) is not the beginning of a subject")
    return api


def is_subject(text: str) -> bool:
    """Whether it is a subject, or the beginning of one, without wildcards."""
    return re.fullmatch(_SUBJECT, text) is not None


def servers_of(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of servers.

    A comma before an ``@`` may belong to a password: it stays, so that no part of a password is taken for a server.
    """
    found: list[str] = []
    for group in re.split(_LISTED, text):
        who, at, hosts = group.rpartition("@")
        first, *others = hosts.split(",")
        found += [f"{who}{at}{first}", *others]
    return tuple(part.strip() for part in found if part.strip())


def expanded(path: Path) -> Path:
    """The path with ``~`` replaced by the home folder.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such home folder") from None
