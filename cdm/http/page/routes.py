"""The routes of the page: its files, the stream of what changes, and answers to what is asked.

Everything that is shown comes from others: names, labels, reasons, lines of output. The page makes text of it and never
markup, and the policy that is sent along leaves nothing that could become a program: no script but its own files.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from ipaddress import ip_address
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from cdm.errors import CdmError, ModelError, ServiceMissing, SliceMissing, UsageError
from cdm.http.admission import ADMITTED
from cdm.http.page.asking import Inquiries
from cdm.http.page.feed import Feed
from cdm.log import printable

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What browsers allow the page: its own files, and to hear from its own server. No markup is ever made of text."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
LINES = 200

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str
    tag: str
    """Tells it from the same file of another version."""


@cache
def page_files() -> dict[str, PageFile]:
    """The files of the page, by name."""
    found = {}
    for each in files(__package__).joinpath("files").iterdir():
        content, kind = each.read_bytes(), _TYPES.get(each.name.rpartition(".")[2])
        if kind is not None:
            tag = hashlib.sha256(content).hexdigest()[:16]
            found[each.name] = PageFile(content, f"{kind}; charset=utf-8", f'"{tag}"')
    return found


def routes(feed: Feed, asking: Inquiries) -> list[BaseRoute]:
    """The page's routes."""

    async def stream(request: Request) -> Response:
        told = feed.stream(request.headers.get("last-event-id", ""))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    async def explain(request: Request) -> Response:
        query = request.query_params
        return await _answered(partial(asking.explain, query.get("kind", ""), query.get("name", "")))

    async def logs(request: Request) -> Response:
        query = request.query_params
        lines = query.get("lines", "")
        count = int(lines) if lines.isascii() and lines.isdigit() and len(lines) < 6 else LINES
        return await _answered(partial(asking.logs, query.get("kind", ""), query.get("name", ""), count))

    async def page(request: Request) -> Response:
        return _file(request, "index.html")

    async def file(request: Request) -> Response:
        return _file(request, request.path_params["name"])

    paths: dict[str, Handler] = {
        "/": page,
        "/page/stream": stream,
        "/page/explain": explain,
        "/page/logs": logs,
        "/page/{name}": file,
    }
    return [Route(path, _guarded(handler), methods=["GET"]) for path, handler in paths.items()]


def _guarded(handler: Handler) -> Handler:
    """Answers only who names this server as people do, and has browsers do no more with it than the page needs."""

    async def guarded(request: Request) -> Response:
        if (problem := _wrong_host(request)) is not None:
            response: Response = Response(problem, 421, media_type="text/plain")
        else:
            response = await handler(request)
        response.headers.update(HEADERS)
        return response

    return guarded


def _wrong_host(request: Request) -> str | None:
    """Why a request is refused because of the name that it was sent to; None: it is not.

    A page of somebody else's in the same browser can have a name of its own lead here (DNS rebinding), and read then
    what this server tells. Where a token is needed, or TLS is spoken, it is told nothing. Neither addresses nor
    `localhost` are names that others can give.
    """
    if request.scope.get(ADMITTED):
        return None
    host = request.url.hostname or ""
    if host == "localhost" or host.endswith(".localhost") or host in _own_names():
        return None
    try:
        ip_address(host)
    except ValueError:
        return "the page is shown under an address, localhost or this machine's name; others need --http-token or TLS\n"
    return None


@cache
def _own_names() -> frozenset[str]:
    return frozenset({socket.gethostname().lower()})


def _file(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        return Response("there is no such file\n", 404, media_type="text/plain")
    headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


async def _answered(ask: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
    try:
        return _json(await ask())
    except (ServiceMissing, SliceMissing) as error:
        return _json({"error": printable(str(error))}, 404)
    except (UsageError, ModelError) as error:
        return _json({"error": printable(str(error))}, 400)
    except CdmError as error:
        return _json({"error": printable(str(error))}, 503)


def _json(told: dict[str, Any], code: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(told), code, headers, "application/json")
