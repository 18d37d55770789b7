"""What serves HTTP, if it is installed: for ``cdm serve``, ``cdm node --http`` and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cdm.errors import UsageError

if TYPE_CHECKING:
    from cdm.http.server import HttpServer

_BROUGHT = frozenset({"prometheus_client", "starlette", "uvicorn"})
"""What the extra brings."""


class HttpFiles(NamedTuple):
    """Files that say who is answered over HTTP; None of each: whoever asks."""

    token: Path | None = None
    """With a token that must be shown."""
    cert: Path | None = None
    """With the server's certificate: HTTPS is served."""
    key: Path | None = None
    """With its key; None: it is in the same file."""
    ca: Path | None = None
    """With the authorities that have signed clients' certificates."""


def http_server(address: str, files: HttpFiles = HttpFiles()) -> HttpServer:  # noqa: B008  # it cannot change
    """What serves HTTP at this address; it listens.

    Raises:
        UsageError: the extra is not installed, a file cannot be used, or this machine cannot listen there.
        AddressTaken: another process listens there.
    """
    from cdm.http.address import http_address, listening  # noqa: PLC0415  # optional

    where = http_address(address)
    try:
        from cdm.http.admission import Admission, token_of  # noqa: PLC0415  # optional
        from cdm.http.server import HttpServer  # noqa: PLC0415  # optional, and slow to import
    except ModuleNotFoundError as missing:
        if missing.name not in _BROUGHT:
            raise
        raise UsageError(
            f"HTTP (--http, CDM_HTTP) needs {missing.name}, which is not installed: pip install 'cdm[http]'"
        ) from None
    token = None if files.token is None else token_of(files.token)
    admission = Admission(token, files.cert, files.key, files.ca)
    return HttpServer(listening(where), admission)
