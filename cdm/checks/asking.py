"""Makes a check once: asks over HTTP or NATS, within the check's time-out, and has the answer read.

Nothing that goes wrong is raised: it is an answer from which nothing can be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import errorcode
from importlib import import_module
from os import strerror
from socket import gaierror
from ssl import SSLError
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import anyio
import msgspec
from anyio import to_thread
from msgspec.structs import replace

from cdm.checks.answers import MAX_BODY, Answer, error, of_http, of_nats, of_prometheus, shown
from cdm.checks.lanes import Lanes
from cdm.errors import NoResponders, StoreError
from cdm.log import Log
from cdm.model.artifact import Service
from cdm.model.check import (
    Check,
    CheckOutcome,
    CheckRun,
    HttpCheck,
    NatsCheck,
    PrometheusCheck,
    filled_address,
    filled_query,
    filled_subject,
    reserved,
    shown_at,
    uses_instance,
)
from cdm.store.connection import Connection

log = Log("cdm.checks")


class _Web(NamedTuple):
    """What does HTTP; its types are those of a module that is imported late."""

    client: Any
    errors: tuple[type[Exception], ...]


class Asker:
    """Makes checks, not too many at once.

    Args:
        connection: to NATS.
        lanes: how many at once.
    """

    def __init__(self, connection: Connection, lanes: Lanes | None = None) -> None:
        self._connection = connection
        self._lanes = lanes or Lanes()
        self._web: _Web | None = None
        """`cdm.checks.web`, once a check needed it."""
        self._importing = anyio.Lock()

    async def ask(self, service: Service, check: Check, run: CheckRun, turn: int) -> Answer:
        """Make a check once; never raises.

        Args:
            service: whose rollout it is.
            check: what is asked.
            run: what the check is told.
            turn: how many times it was made before.
        """
        source = check.source
        values = run.values(service, turn)
        if not isinstance(source, NatsCheck) and uses_instance(source.url) and "instance" not in values:
            return Answer(CheckOutcome.NO_DATA, "no data: no new instance serves yet")
        try:
            async with self._lanes.lane(_lane_of(source, values)):
                answer = await self._ask_in_time(service, check, run, values)
        except Exception as problem:  # noqa: BLE001  # whatever a stranger's server does must not end the leader
            log.warning("a check cannot be made", check=source.shown, problem=repr(problem))
            answer = error(f"the check cannot be made: {shown(str(problem) or type(problem).__name__)}")
        if isinstance(source, NatsCheck) or not uses_instance(source.url):
            return answer
        return replace(answer, asked=shown_at(source, values))

    async def _ask_in_time(self, service: Service, check: Check, run: CheckRun, values: Mapping[str, str]) -> Answer:
        with anyio.move_on_after(check.timeout_seconds):
            return await self._ask(service, check, run, values)
        return error(f"no answer within {check.timeout_seconds:g} s")

    async def _ask(self, service: Service, check: Check, run: CheckRun, values: Mapping[str, str]) -> Answer:
        match check.source:
            case HttpCheck(url=url):
                most = None if check.ok is None else MAX_BODY
                return await self._get(check, filled_address(url, values), most, of_http)
            case PrometheusCheck(url=url, query=query):
                # Seconds as a plain number: of fractions with a unit Prometheus knows nothing.
                asked = urlencode({"query": filled_query(query, values), "timeout": f"{check.timeout_seconds:g}"})
                url = f"{filled_address(url, values).rstrip('/')}/api/v1/query?{asked}"
                return await self._get(check, url, MAX_BODY, of_prometheus)
            case NatsCheck(subject=subject):
                return await self._request(service, check, run, filled_subject(subject, values))

    async def _get(self, check: Check, url: str, most: int | None, read: Any) -> Answer:
        web = await self._import_web() if self._web is None else self._web
        try:
            answer = await web.client.get(url, check.timeout_seconds, most)
        except web.errors as problem:
            return error(_problem_of(problem))
        told: Answer = read(check, answer.status, answer.body, answer.location)
        return told

    async def _import_web(self) -> _Web:
        """Its libraries take a twentieth of a second: elsewhere than on the loop, and only where it is needed."""
        async with self._importing:
            if self._web is None:
                module = await to_thread.run_sync(import_module, "cdm.checks.web")
                self._web = _Web(module.WebClient(), (*module.WEB_ERRORS, ValueError))
            return self._web

    async def _request(self, service: Service, check: Check, run: CheckRun, subject: str) -> Answer:
        if reserved(subject) or not self._connection.may_answer(subject):
            return error(f"nothing is asked at {shown(subject)}: it is a subject of NATS, or of cdm")
        if subject.split() != [subject] or not all(subject.split(".")) or set("*>") & set(subject):
            return error(f"{shown(subject)} is not a subject that can be asked at")
        told = {
            "service": str(service),
            "group": service.group,
            "name": service.name,
            "version": run.version,
            "from": run.source,
            "phase": run.phase,
            "step": run.step,
        }
        try:
            body, headers = await self._connection.ask(
                subject, msgspec.json.encode(told), timeout=check.timeout_seconds + 1
            )
        except NoResponders:
            return error(f"nobody answers at {shown(subject)}")
        except StoreError as problem:
            return error(shown(str(problem)))
        return of_nats(check, body, headers)


def _lane_of(source: HttpCheck | NatsCheck | PrometheusCheck, values: Mapping[str, str]) -> str:
    if isinstance(source, NatsCheck):
        return f"nats:{filled_subject(source.subject, values)}"
    return urlsplit(filled_address(source.url, values)).netloc


def _problem_of(problem: Exception) -> str:
    """What is wrong with a connection, in the system's words where it has any."""
    text = str(problem) or type(problem).__name__
    error: BaseException | None = problem
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            # Where it is the system's, without what Python has put before it.
            number = 0 if isinstance(error, (SSLError, gaierror)) else error.errno or 0
            text = strerror(number) if number in errorcode else error.strerror
        error = error.__cause__ or error.__context__
    return shown(text)
