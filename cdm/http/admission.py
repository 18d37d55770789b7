"""Who is answered: whoever asks, or who shows a token, or a certificate of an authority that is trusted."""

from __future__ import annotations

import base64
import hmac
import ssl
from binascii import Error as NotBase64
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cdm.errors import UsageError

LEAST = 16
"""Fewest characters of a token: shorter ones can be guessed."""
OPEN = frozenset({"/livez", "/readyz"})
"""What whoever starts this process asks without being anybody; it tells nothing of the cluster."""
ADMITTED = "cdm.admitted"
"""In a request's scope, whether whoever sends it has shown who that is, or knows whom it is sent to."""


@dataclass(frozen=True)
class Admission:
    """What must be shown, and what this server shows."""

    token: str | None = None
    """To be sent as a bearer's token, or as the password of anybody; None: none is needed."""
    certificate: Path | None = None
    """The server's certificate, with those between it and its authority's; None: there is no TLS."""
    key: Path | None = None
    """Its key; None: it is in the same file."""
    authority: Path | None = None
    """Certificates of authorities, one of which must have signed the client's; None: clients need none."""

    def __post_init__(self) -> None:
        if self.certificate is None and (self.key is not None or self.authority is not None):
            raise UsageError("--http-key and --http-ca need --http-cert: without a certificate there is no TLS")
        if self.certificate is not None:
            self.context()

    def context(self) -> ssl.SSLContext | None:
        """How TLS is spoken; None: it is not.

        Raises:
            UsageError: a file cannot be used.
        """
        if self.certificate is None:
            return None
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            made.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            which = f"--http-cert {self.certificate}" + (f", --http-key {self.key}" if self.key else "")
            raise UsageError(f"{which}: {_why(error, 'no certificate with its key')}") from None
        if self.authority is not None:
            try:
                made.load_verify_locations(self.authority)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"--http-ca {self.authority}: {_why(error, 'no certificates')}") from None
            made.verify_mode = ssl.CERT_REQUIRED
        return made


def token_of(path: Path) -> str:
    """The token in a file; raises `UsageError` where there is none, or one that can be guessed."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--http-token {path}: {_why(error, 'no token')}") from None
    if len(text) < LEAST or not text.isprintable() or " " in text:
        raise UsageError(
            f"--http-token {path}: a token is one word of at least {LEAST} characters, as of `openssl rand -hex 24`"
        )
    return text


def _no_password() -> str:
    raise OSError(0, "the key has a password")


def _why(error: Exception, otherwise: str) -> str:
    told = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else None
    return str(told or otherwise)


class Admitting:
    """Hands on only requests that may be answered.

    Args:
        app: who answers.
        admission: what must be shown.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._token = admission.token.encode() if admission.token is not None else None
        # Where there is TLS, a browser sends nothing here that is meant for another name.
        self._known = self._token is not None or admission.certificate is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and self._token is not None and scope["path"] not in OPEN:
            shown = _shown(Headers(scope=scope).get("authorization", ""))
            if not hmac.compare_digest(shown, self._token):
                headers = {"WWW-Authenticate": 'Basic realm="cdm: any name, the token as password", charset="UTF-8"'}
                await PlainTextResponse("the token of --http-token is needed\n", 401, headers)(scope, receive, send)
                return
        scope[ADMITTED] = self._known
        await self._app(scope, receive, send)


def _shown(header: str) -> bytes:
    """The token that a request shows."""
    scheme, _, told = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return told.strip().encode(errors="replace")
        case "basic":
            try:
                return base64.b64decode(told.strip().encode(errors="replace"), validate=True).partition(b":")[2]
            except (NotBase64, ValueError):
                return b""
    return b""
