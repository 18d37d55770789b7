"""The application: the routes of all parts, and what becomes of an error in one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cdm.http import discovery, metrics, page
from cdm.http.admission import Admission, Admitting
from cdm.http.desk import Desk, Section
from cdm.log import Log

log = Log("cdm.http")

PARTS: tuple[Callable[[Desk], Section], ...] = (discovery.section, metrics.section, page.section)
"""In this order a path is looked for."""


def sections(desk: Desk) -> list[Section]:
    """What the parts add."""
    return [part(desk) for part in PARTS]


def application(parts: Sequence[Section], admission: Admission) -> ASGIApp:
    """The application with the routes of these parts, for whoever is admitted."""
    routes = [route for part in parts for route in part.routes]
    app = Starlette(routes=routes, exception_handlers={Exception: _on_error, 404: _on_missing})
    return _Guarded(Admitting(app, admission))


class _Guarded:
    """Ends here what a handler raises: it is logged, answered with 500, and nothing else comes of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # whatever it is
            log.exception("a request failed", path=scope.get("path"), reason=repr(error))


async def _on_error(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("this failed; the log says why\n", 500)


async def _on_missing(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("there is no such page\n", 404)
