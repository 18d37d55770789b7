"""How to reach NATS, and with which credentials.

The files with credentials are read here. Nothing secret leaves this module, except to the client.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult, unquote, urlparse

from msgspec import Struct

from cdm.errors import AccessDenied

API = "$JS.API"
"""What the subjects of JetStream's API begin with, where nothing else is said."""

_JWT = rb"BEGIN NATS USER JWT-+\s+(\S+)"
_SEED = rb"BEGIN USER NKEY SEED-+\s+(\S+)"
_SCHEME = r"[A-Za-z]+://"


class Address(ParseResult):
    """A server's address; its user and password are read percent-decoded."""

    @property
    def username(self) -> str | None:
        """The user, or without a password a token."""
        return _decoded(super().username)

    @property
    def password(self) -> str | None:
        """The password."""
        return _decoded(super().password)


def address_of(server: str) -> Address:
    """Parse a server's address; without a scheme it is of ``nats``.

    Raises:
        ValueError: it is not an address. The text of the error may hold what is secret.
    """
    return Address(*urlparse(server if "://" in server else f"nats://{server}"))


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text)


class Access(Struct, frozen=True):
    """How to reach NATS and who to be there.

    One of ``creds``, ``nkey``, ``user`` (with ``password``) and ``token`` says who; else an address may.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    creds: Path | None = None
    """File with a JWT and its seed."""
    nkey: Path | None = None
    """File with a seed."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    ca: Path | None = None
    """File with the certificates to trust; None: those of the system. Any of the three: no connection without TLS."""
    cert: Path | None = None
    key: Path | None = None
    tls_first: bool = False
    """Begin with the handshake; the server must be set up for it."""
    inbox_prefix: str = "_INBOX"
    """First tokens of the subjects that answers come to."""
    api: str = API
    """What the subjects of JetStream's API begin with: of another domain, ``$JS.{domain}.API``."""

    def __repr__(self) -> str:
        return f"Access({self.shown})"

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that hold something secret."""
        return tuple(path for path in (self.creds, self.nkey, self.key) if path is not None)

    @property
    def shown(self) -> str:
        """The servers, without anything secret."""
        return ", ".join(without_secrets(server) for server in self.servers)

    @property
    def who(self) -> str:
        """Whom the server sees, without anything secret."""
        if self.creds or self.nkey:
            return f"credentials {self.creds}" if self.creds else f"nkey {self.nkey}"
        if self.user and self.password is not None:
            return f"user {self.user}"
        if self.user or self.token:
            return "token"
        inline = [address for address in map(address_of, self.servers) if address.username]
        named = next((address.username for address in inline if address.password is not None), None)
        return f"user {named}" if named else "token" if inline else "no user"

    @property
    def encrypted(self) -> bool:
        """Whether TLS is required."""
        schemes = {server.partition("://")[0] for server in self.servers if "://" in server}
        return bool(self.ca or self.cert or self.tls_first or schemes & {"tls", "wss"})


def api_of(domain: str) -> str:
    """What the subjects of JetStream's API begin with in a domain."""
    return f"$JS.{domain}.API"


def credentials_of(access: Access) -> dict[str, Any]:
    """The client's options that say who one is.

    Raises:
        AccessDenied: a file cannot be used.
    """
    if access.creds:
        content = _content(access.creds)
        seed = re.search(_SEED, content)
        if not (re.search(_JWT, content) and seed):
            raise AccessDenied(f"{access.creds} cannot be used: there is no JWT with its seed in it")
        _check_seed(access.creds, seed[1])
        return {"user_credentials": str(access.creds)}
    if access.nkey:
        _check_seed(access.nkey, _content(access.nkey).strip())
        return {"nkeys_seed": str(access.nkey)}
    if access.user and access.password is None:
        return {"token": access.user}  # as the nats tool does
    if access.user:
        return {"user": access.user, "password": access.password}
    return {"token": access.token}


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise AccessDenied(f"{file} cannot be used: {error.strerror}") from None


def _check_seed(file: Path, seed: bytes) -> None:
    import nkeys  # noqa: PLC0415  # who has no seed does not wait for it

    try:
        nkeys.from_seed(bytearray(seed)).wipe()
    except Exception:  # noqa: BLE001  # many kinds, some with the seed in them
        raise AccessDenied(f"{file} cannot be used: the seed in it is damaged") from None


def without_secrets(url: str) -> str:
    """A server's address without user and password: everything before the last ``@`` is left out, except the scheme."""
    scheme = re.match(_SCHEME, url)
    return f"{scheme[0] if scheme else 'nats://'}{url[scheme.end() if scheme else 0 :].rpartition('@')[2]}"
