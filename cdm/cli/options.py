"""Options that commands share, each also an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from cyclopts import Group, Parameter, Token
from msgspec.structs import replace

from cdm.cli.context import access_of, api_named, expanded, is_subject, selected_context, servers_of
from cdm.cli.http_server import HttpFiles
from cdm.errors import InvalidBlueprint, UsageError
from cdm.model.condition import problem_with_label
from cdm.model.host import is_host
from cdm.model.quantity import check_cores, memory_of, memory_text
from cdm.model.rules import NODE_LABEL
from cdm.node.machine import Machine
from cdm.store.access import Access, address_of, without_secrets

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_DURATION = "".join(f"(?:{_NUMBER}{unit})?" for unit in _UNITS)
_LONGEST = 365 * 86_400.0
"""Seconds; longer ones are taken for typing errors, and NATS limits TTLs."""
_WHOLE = r"[+-]?[0-9]{1,18}"
_WHO = ("creds", "nkey", "user", "token")
_SCHEMES = ("nats", "tls", "ws", "wss")
_PREFIX = r"[A-Za-z0-9_-]{1,32}"


def _duration(text: str, *, ttl: bool) -> float:
    """Read a duration; raises `ValueError`, which shows it as it was typed."""
    # Cyclopts reads a `timedelta` too, but takes 5M for five months and 1h1h for two hours, knows neither bare seconds
    # nor ms, and shows what is out of range as the parsed value ("-1 day, 23:59:55") and not as it was typed.
    typed = text.strip()
    shown = repr(typed[:20])
    match = re.fullmatch(_DURATION, f"{typed}s" if re.fullmatch(_NUMBER, typed) else typed)
    if match is None or not typed:
        raise ValueError(f"{shown} is not a duration: write seconds, or 500ms, 10s, 2m, 1h30m, 2d")
    numbers = (float(number or 0) for number in match.groups())
    seconds = sum(number * unit for number, unit in zip(numbers, _UNITS.values(), strict=True))
    if ttl and seconds < 1:
        raise ValueError(f"{shown} is too short: must be at least one second, as NATS requires of a TTL")
    if seconds <= 0:
        raise ValueError(f"{shown} is too short: must be more than zero")
    if seconds > _LONGEST:
        raise ValueError(f"{shown} is too long: must be at most 365 days")
    return seconds


def check_prefix(prefix: str) -> None:
    """Raise `UsageError` where it cannot be a prefix of buckets and subjects."""
    if prefix and not re.fullmatch(_PREFIX, prefix):
        raise UsageError(f"--prefix {prefix!r}: use letters, digits, '-' and '_', at most 32")


FLAG = Parameter(negative="", show_default=False)
"""An option without a value."""


def duration(env: str | None = None, *, ttl: bool = False) -> Parameter:
    """An option that is a duration, in seconds or with units.

    Args:
        env: its environment variable; an option without one shows no default.
        ttl: whether it is used as a TTL, which NATS takes from one second on.
    """

    def convert(_type: Any, tokens: Sequence[Token]) -> float:
        return _duration(tokens[0].value, ttl=ttl)

    return Parameter(
        env_var=env,
        metavar="DURATION",
        converter=convert,
        n_tokens=1,
        show_default=env is not None and (lambda seconds: f"{seconds:g}s"),
    )


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    # Cyclopts rounds 1.5, and reads 0x2 and 1_0.
    if not re.fullmatch(_WHOLE, typed := tokens[0].value.strip()):
        raise ValueError
    return int(typed)


def whole(env: str | None = None, *, least: int = 0, most: int | None = None) -> Parameter:
    """An option or argument that is a whole number.

    Args:
        env: its environment variable.
        least: the least that it may be.
        most: the most; None: there is no limit.
    """

    def validate(kind: Any, value: Any) -> None:
        from cyclopts.validators import Number  # noqa: PLC0415  # few commands need it

        Number(gte=least, lte=most)(kind, value)

    return Parameter(env_var=env, converter=_whole, n_tokens=1, validator=validate)


def _replicas(_type: Any, tokens: Sequence[Token]) -> int:
    if (count := _whole(_type, tokens)) not in get_args(Replicas):
        raise ValueError
    return count


Replicas = Literal[1, 2, 3, 4, 5]
REPLICAS = Parameter(env_var="CDM_REPLICAS", converter=_replicas, n_tokens=1)
"""An option that is a number of replicas of a bucket."""


def _size(_type: Any, tokens: Sequence[Token]) -> int:
    return _bytes(tokens[0].value)


def _bytes(text: str) -> int:
    """Read a size; raises `ValueError`, which shows it as it was typed."""
    try:
        return memory_of(text.strip())
    except InvalidBlueprint:
        raise ValueError(f"{text[:20]!r} is not a size: write bytes, or 500M (millions), 10G, 512Mi, 10Gi") from None


def size(env: str, *, show_default: bool = True) -> Parameter:
    """An option that is a number of bytes, also with a unit."""
    shown = show_default and memory_text
    return Parameter(env_var=env, metavar="SIZE", converter=_size, n_tokens=1, show_default=shown)


def _cores(text: str) -> float:
    """Read a number of cores; raises `ValueError`, which shows it as it was typed."""
    problem = ValueError(f"{text[:20]!r} is not a number of cores: write 4, or 0.5")
    if not re.fullmatch(_NUMBER, text.strip()):
        raise problem
    cores = float(text)
    try:
        check_cores("", cores)
    except InvalidBlueprint:
        raise problem from None
    return cores


def cores(env: str) -> Parameter:
    """An option that is a number of cores, or a part of one."""

    def convert(_type: Any, tokens: Sequence[Token]) -> float:
        return _cores(tokens[0].value)

    return Parameter(env_var=env, metavar="CORES", converter=convert, n_tokens=1, show_default=False)


def reserved_of(pairs: Sequence[str]) -> Machine:
    """Read what is kept back, ``cpu=0.5`` and ``memory=1Gi``; raises `UsageError`."""
    option = "--reserve, CDM_RESERVE"
    found = pairs_of(pairs, "reserve", option)
    if unknown := [name for name in found if name not in ("cpu", "memory")]:
        raise UsageError(f"reserve {unknown[0]!r}: write cpu=0.5 or memory=1Gi ({option})")
    try:
        cpu, memory = found.get("cpu"), found.get("memory")
        return Machine(None if cpu is None else _cores(cpu), None if memory is None else _bytes(memory))
    except ValueError as error:
        raise UsageError(f"reserve: {error} ({option})") from None


def node_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Read the labels of a node; raises `UsageError`."""
    option = "--label, CDM_LABEL"
    labels = pairs_of(pairs, "label", option)
    for name in labels:
        if problem := problem_with_label(name):
            raise UsageError(f"label {problem} ({option})")
    if NODE_LABEL in labels:
        raise UsageError(f"label {NODE_LABEL!r} is always the node's id (--id, CDM_ID), and cannot be set ({option})")
    return labels


CONNECTION_GROUP = Group("Connection", show=False)
"""Left out of the commands' helps, for it is the same everywhere: `cdm help connection` shows it."""


@Parameter(name="*", group=CONNECTION_GROUP)
@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """Where NATS is, and which credentials to use."""

    server: Annotated[str | None, Parameter(name=["--server", "-s"], env_var="NATS_URL")] = None
    """NATS servers, comma-separated. [default: the context's, else nats://127.0.0.1:4222]"""
    context: Annotated[str | None, Parameter(name="--context", env_var="NATS_CONTEXT")] = None
    """A context of the nats tool. [default: the selected one, unless --server is given]"""
    creds: Annotated[Path | None, Parameter(name="--creds", env_var="NATS_CREDS")] = None
    """File with a JWT and its seed."""
    nkey: Annotated[Path | None, Parameter(name="--nkey", env_var="NATS_NKEY")] = None
    """File with an nkey's seed."""
    user: Annotated[str | None, Parameter(name="--user", env_var="NATS_USER")] = None
    """User name; without --password it is taken for a token."""
    password: Annotated[str | None, Parameter(name="--password", env_var="NATS_PASSWORD")] = field(
        default=None, repr=False
    )
    """Password. Prefer the variable: options show in the list of processes."""
    token: Annotated[str | None, Parameter(name="--token", env_var="NATS_TOKEN")] = field(default=None, repr=False)
    """Token. Prefer the variable."""
    ca: Annotated[Path | None, Parameter(name="--tlsca", env_var="NATS_CA")] = None
    """File with the CA certificates to trust. [default: the system's]"""
    cert: Annotated[Path | None, Parameter(name="--tlscert", env_var="NATS_CERT")] = None
    """File with the client certificate."""
    key: Annotated[Path | None, Parameter(name="--tlskey", env_var="NATS_KEY")] = None
    """File with the client certificate's key."""
    inbox_prefix: Annotated[str | None, Parameter(name="--inbox-prefix", env_var="CDM_INBOX_PREFIX")] = None
    """Prefix of reply subjects, where permissions require one. [default: the context's, else _INBOX]"""
    js_domain: Annotated[str | None, Parameter(name="--js-domain", env_var="CDM_JS_DOMAIN")] = None
    """JetStream domain to work in. [default: the context's, else that of the server]"""
    js_api_prefix: Annotated[str | None, Parameter(name="--js-api-prefix", env_var="CDM_JS_API_PREFIX")] = None
    """What the JetStream API's subjects begin with, where it is imported. [default: the context's, else $JS.API]"""
    prefix: Annotated[str, Parameter(name="--prefix", env_var="CDM_PREFIX", show_default=False)] = ""
    """Prefix of buckets (PREFIX_blueprints) and subjects (PREFIX.cdm…), for several clusters on one NATS."""

    def access(self) -> Access:
        """How to connect, according to the options and the context.

        Raises:
            UsageError: a context or file cannot be used.
        """
        check_prefix(self.prefix)
        server = self.server
        if self.context and self.context != os.environ.get("NATS_CONTEXT") and server == os.environ.get("NATS_URL"):
            server = None  # a context that is typed takes precedence over a server from the environment
        context = self.context or (None if server else selected_context())
        access = access_of(context, identified=bool(self._given(*_WHO)))
        if server:
            access = replace(access, servers=servers_of(server))
        check_servers(access.servers)
        access = replace(access, **self._identity(access), **self._given("ca", "cert", "key", "inbox_prefix"))
        if self.js_domain and self.js_api_prefix:
            raise UsageError("--js-domain (CDM_JS_DOMAIN) and --js-api-prefix (CDM_JS_API_PREFIX): choose one")
        if api := api_named(self.js_domain, self.js_api_prefix):
            access = replace(access, api=api)
        if not is_subject(access.inbox_prefix):
            raise UsageError(f"--inbox-prefix {access.inbox_prefix!r} is not the beginning of a subject")
        if access.key and not access.cert:
            raise UsageError("--tlskey (NATS_KEY) without --tlscert (NATS_CERT)")
        for name in ("creds", "nkey", "ca", "cert", "key"):
            path = getattr(access, name)
            if path is not None and not path.is_file():
                raise UsageError(f"{name} file {path} does not exist")
        return access

    def _given(self, *names: str) -> dict[str, Any]:
        """The options that are given; an empty variable counts as not given."""
        given = {name: getattr(self, name) for name in names}
        paths = {name: expanded(value) for name, value in given.items() if isinstance(value, Path)}
        return {name: value for name, value in {**given, **paths}.items() if value and str(value) != "."}

    def _identity(self, access: Access) -> dict[str, Any]:
        """Who to be: what is given replaces everything that the context says of it."""
        given = self._given(*_WHO)
        password = self._given("password")
        if len(given) > 1:
            options = " and ".join(f"--{name} (NATS_{name.upper()})" for name in given)
            raise UsageError(f"{options}: choose one way to say who you are")
        if password and not (given.get("user") or (access.user and not given)):
            raise UsageError("--password (NATS_PASSWORD) without --user (NATS_USER)")
        cleared = dict.fromkeys(("creds", "nkey", "user", "password", "token")) if given else {}
        return {**cleared, **given, **password}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Who is answered over HTTP."""

    token: Annotated[Path | None, Parameter(name="--http-token", env_var="CDM_HTTP_TOKEN")] = None
    """File with a token that must be shown, as a bearer's or as a password. [default: none is needed]"""
    cert: Annotated[Path | None, Parameter(name="--http-cert", env_var="CDM_HTTP_CERT")] = None
    """File with the server's certificate: HTTPS is served. [default: HTTP is]"""
    key: Annotated[Path | None, Parameter(name="--http-key", env_var="CDM_HTTP_KEY")] = None
    """File with its key. [default: the certificate's]"""
    ca: Annotated[Path | None, Parameter(name="--http-ca", env_var="CDM_HTTP_CA")] = None
    """File with authorities' certificates: clients must show one that they have signed. [default: none is needed]"""

    def files(self) -> HttpFiles:
        """The same without what reads options."""
        return HttpFiles(self.token, self.cert, self.key, self.ca)


WHOEVER = HttpOptions()
"""Whoever asks is answered, if no option says otherwise."""


def check_servers(servers: Sequence[str]) -> None:
    """Raise `UsageError` where these cannot be addresses of servers."""
    if not servers:
        raise UsageError("no NATS server is named (--server, NATS_URL, or the context)")
    for server in servers:
        try:
            address = address_of(server)
            usable = address.scheme in _SCHEMES and bool(address.hostname) and address.port != 0
            # What follows the port has no meaning: most likely it is the rest of a password, and so is a comma.
            usable &= not (address.path.strip("/") or address.query or address.fragment or "," in server)
        except ValueError:
            usable = False
        if not usable:
            hint = "; percent-encode / ? # [ ] , in a user or password (%2F for /), or use --user and --password"
            raise UsageError(
                f"NATS address {without_secrets(server)!r} (--server, NATS_URL, or the context): "
                f"write host, host:port or nats://host:port{hint if '@' in server else ''}"
            )


def address_of_slices(text: str) -> str:
    """Check where a node's slices are said to be reached: a host name, or an IP address; raises `UsageError`."""
    address = text.strip()
    if not is_host(address):
        raise UsageError(
            f"address {text!r} (--address, CDM_ADDRESS): write a host name or an IP address, without a port"
        )
    return address


def check_url(text: str, option: str = "--metadata-url, CDM_METADATA_URL") -> None:
    """Check what an option says, which is the beginning of a URL; raises `UsageError`."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or url.query or url.fragment:
        raise UsageError(f"{text!r} is not the beginning of a URL: write http://HOST[:PORT] ({option})")


def pairs_of(pairs: Sequence[str], what: str, option: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` pairs, each a label, or whatever else, of an option; raises `UsageError`."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{what} {pair!r} is not of the form NAME=VALUE ({option})")
        if name in found:
            raise UsageError(f"{what} {name!r} is given twice ({option})")
        found[name] = value
    return found
