"""Endpoints, as proxies and monitoring ask for them: Envoy, Traefik, Prometheus, and whoever reads a catalogue."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from msgspec import DecodeError, Struct, ValidationError, json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdm import clock
from cdm.dispatch.messages import Message
from cdm.http.answers import ASSIGNMENT, CLUSTER, AnswerBody, Answers, Services, discovery, scraped
from cdm.http.desk import Desk, Section
from cdm.http.sending import Whole
from cdm.manager.pools import Pools
from cdm.model.duration import PATTERN, seconds

BETWEEN = 0.1
"""Seconds between two looks at what is new at least: in a large cluster something is new all the time."""
LONGEST_WAIT = 600.0
"""Seconds that a question may wait for something new."""
USUAL_WAIT = 30.0
LONGEST_BODY = 1024 * 1024
"""Most bytes of a question."""
BODY_PATIENCE = 10.0
"""Seconds within which it has to come in."""
RELEVANT = frozenset({"slices", "nodes"})
"""The buckets that tell whether nodes can be heard."""

_DURATION = re.compile(PATTERN)

Handler = Callable[[Request], Awaitable[Response]]


def section(desk: Desk) -> Section:
    """What it adds."""
    board = Board(desk)
    return Section(board.routes(), (board.take,), (board.keep,))


class Refused(Exception):
    """A question that cannot be answered: with which status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class EnvoyRequest(Struct, frozen=True):
    """What Envoy asks, as far as it matters."""

    version_info: str = ""
    """Of the answer that it has."""
    resource_names: frozenset[str] = frozenset()


class Board:
    """Keeps the pools, and answers from them.

    Args:
        desk: what is at hand.
    """

    def __init__(self, desk: Desk) -> None:
        self._sight = desk.sight
        self._pools = Pools()
        self._answers = Answers(self._pools)
        self._hearing = False
        self._changed = anyio.Event()

    def routes(self) -> list[Route]:
        """Where it answers."""
        gets: dict[str, Callable[[Services], AnswerBody]] = {
            "/v1/traefik": self._answers.traefik,
            "/v1/sd/prometheus": self._answers.targets,
        }
        return [
            *(Route(path, _refusing(partial(self._get, made))) for path, made in gets.items()),
            Route("/v1/sd/prometheus/nodes", _refusing(self._nodes)),
            Route("/v1/services", _refusing(self._catalogue)),
            Route("/v3/discovery:endpoints", self._envoy(self._answers.assignments, ASSIGNMENT), methods=["POST"]),
            Route("/v3/discovery:clusters", self._envoy(self._answers.clusters, CLUSTER), methods=["POST"]),
        ]

    def take(self, message: Message) -> None:
        """Take in a message of the buckets."""
        self._hear()
        self._pools.take(message)

    async def keep(self) -> None:
        """Have what waits for something new hear of it, also where only time has passed."""
        while not self._sight.closing:
            seen, changes = self._sight.changes, self._pools.changes
            self._refresh()
            if self._pools.changes != changes:
                self._changed.set()
                self._changed = anyio.Event()
            due = self._pools.wake_at()
            with anyio.move_on_after(None if due is None else max(due - clock.now(), 0)):
                await self._sight.after(seen)
            await anyio.sleep(BETWEEN)
        self._changed.set()

    def _hear(self) -> None:
        hearing = not RELEVANT & self._sight.behind
        if hearing is not self._hearing:
            self._hearing = hearing
            if hearing:
                self._pools.connected(clock.now())
            else:
                self._pools.disconnected()

    def _refresh(self) -> None:
        self._hear()
        if self._sight.listed:
            self._pools.refresh(clock.now())

    def _now(self) -> None:
        """Be up to date; raises `Refused` while nothing is known."""
        if not self._sight.listed:
            why = self._sight.problem or "NATS was not heard so far"
            raise Refused(503, f"the cluster is not known{'' if self._sight.problem else ' yet'}: {why}")
        self._refresh()

    def _age(self, answer: AnswerBody) -> int:
        """For how many seconds the answer may have been another one."""
        now = clock.now()
        return int(max(self._sight.age(now), 0.0 if answer.since is None else now - answer.since))

    def _response(self, request: Request, answer: AnswerBody, body: bytes | None = None) -> Response:
        tag = f'"{answer.digest}"'
        headers = {"ETag": tag, "Age": str(self._age(answer)), "Cache-Control": "no-cache"}
        if answer.stale:
            headers["Cdm-Stale"] = answer.stale[:1000]
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Whole(answer.body if body is None else body, "application/json", headers)

    async def _get(self, made: Callable[[Services], AnswerBody], request: Request) -> Response:
        self._now()
        return self._response(request, made(_services(request)))

    async def _nodes(self, request: Request) -> Response:
        self._now()
        return self._response(request, scraped(self._sight))

    async def _catalogue(self, request: Request) -> Response:
        services, index = _services(request), request.query_params.get("index", "")
        wait = _wait(request.query_params.get("wait", f"{USUAL_WAIT}s" if index else "0s"))
        self._now()
        answer = self._answers.catalogue(services)
        if index:
            with anyio.move_on_after(wait):
                while answer.digest == index and not self._sight.closing:
                    await self._changed.wait()
                    self._refresh()
                    answer = self._answers.catalogue(services)
        body = b'{"index":"%s","services":%s}\n' % (answer.digest.encode(), answer.body)
        return self._response(request, answer, body)

    def _envoy(self, made: Callable[[Services], AnswerBody], kind: str) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                asked = json.decode(await _body(request) or b"{}", type=EnvoyRequest)
            except (DecodeError, ValidationError) as error:
                raise Refused(400, f"this is no request for discovery: {error}") from None
            self._now()
            answer = made(asked.resource_names)
            if answer.digest == asked.version_info:
                return Response(status_code=304, headers={"Age": str(self._age(answer))})
            return self._response(request, answer, discovery(answer, kind))

        return _refusing(handle)


def _refusing(handle: Handler) -> Handler:
    async def handled(request: Request) -> Response:
        try:
            return await handle(request)
        except Refused as refused:
            headers = {"Retry-After": "1"} if refused.status == 503 else None
            return PlainTextResponse(f"{refused}\n", refused.status, headers)

    return handled


def _services(request: Request) -> frozenset[str]:
    return frozenset(request.query_params.getlist("service"))


def _wait(text: str) -> float:
    if text.isascii() and text.isdigit():
        found = float(text)
    elif _DURATION.fullmatch(text):
        found = seconds(text)
    else:
        raise Refused(400, f"wait={text[:20]!r} is no duration: write 30s, or 2m")
    return min(found, LONGEST_WAIT)


async def _body(request: Request) -> bytes:
    found = bytearray()
    try:
        with anyio.fail_after(BODY_PATIENCE):
            async for part in request.stream():
                found += part
                if len(found) > LONGEST_BODY:
                    raise Refused(413, f"a request of more than {LONGEST_BODY:,} bytes")
    except TimeoutError:
        raise Refused(408, "the request did not come in within time") from None
    except ClientDisconnect:
        raise Refused(400, "the request ended early") from None
    return bytes(found)
