"""Options that commands share, each also an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from cyclopts import Parameter, Token
from msgspec.structs import replace

from cdm.cli.context import access_of, selected_context, servers_of
from cdm.errors import UsageError
from cdm.store.connection import Access, without_secrets

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SCHEMES = ("nats", "tls", "ws", "wss")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")


def _duration(_type: Any, tokens: Sequence[Token]) -> float:
    match = _DURATION.fullmatch(tokens[0].value.strip())
    if match is None:
        raise ValueError("write a duration as seconds, or as 500ms, 10s, 2m, 1h")
    return float(match[1]) * _UNITS[match[2]]


def _at_least_a_second(_type: Any, value: float) -> None:
    if value < 1:
        raise ValueError("NATS takes no TTL below one second")


def _positive(_type: Any, value: float) -> None:
    if value <= 0:
        raise ValueError("must be more than nothing")


def duration(env: str, *, ttl: bool = False) -> Parameter:
    """An option that is a duration, in seconds or with a unit."""
    return Parameter(
        env_var=env,
        converter=_duration,
        n_tokens=1,
        validator=_at_least_a_second if ttl else _positive,
        show_default=lambda seconds: f"{seconds:g}s",
    )


@Parameter(name="*", group="Connection")
@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """Where NATS is, and who to be there."""

    server: Annotated[str | None, Parameter(name=["--server", "-s"], env_var="NATS_URL")] = None
    """NATS servers, comma-separated. [default: the context's, else nats://127.0.0.1:4222]"""
    context: Annotated[str | None, Parameter(name="--context", env_var="NATS_CONTEXT")] = None
    """A context of the nats tool. [default: the selected one, unless --server is given]"""
    creds: Annotated[Path | None, Parameter(name="--creds", env_var="NATS_CREDS")] = None
    """Credentials file."""
    prefix: Annotated[str, Parameter(name="--prefix", env_var="CDM_PREFIX", show_default=False)] = ""
    """Common prefix of buckets (PREFIX_blueprints) and subjects (PREFIX.cdm…): several clusters on one NATS."""

    def access(self) -> Access:
        """What the options come to.

        Raises:
            UsageError: a context or file cannot be used.
        """
        if self.prefix and not _PREFIX.fullmatch(self.prefix):
            raise UsageError(f"--prefix {self.prefix!r}: use letters, digits, '-' and '_', at most 32")
        server = self.server
        if self.context and self.context != os.environ.get("NATS_CONTEXT") and server == os.environ.get("NATS_URL"):
            server = None  # what is typed, the context, beats what the environment says
        context = self.context or (None if server else selected_context())
        access = access_of(context)
        if server:
            access = replace(access, servers=servers_of(server))
        _check(access.servers)
        if self.creds and str(self.creds) != ".":  # a variable that is set to nothing
            access = replace(access, creds=self.creds.expanduser())
        for name in ("creds", "nkey", "ca", "cert", "key"):
            path = getattr(access, name)
            if path is not None and not path.is_file():
                raise UsageError(f"{name} file {path} does not exist")
        return access


def _check(servers: Sequence[str]) -> None:
    for server in servers:
        try:
            parts = urlsplit(server if "://" in server else f"nats://{server}")
            usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(
                f"NATS address {without_secrets(server)!r} (--server, NATS_URL, or the context): "
                "write host, host:port or nats://host:port"
            )


def labels_of(pairs: Sequence[str]) -> dict[str, str]:
    """Read ``k=v`` pairs; raises `UsageError`."""
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"label {pair!r} is not of the form name=value (--label, CDM_LABEL)")
        if name in labels:
            raise UsageError(f"label {name!r} is given twice (--label, CDM_LABEL)")
        labels[name] = value
    return labels
