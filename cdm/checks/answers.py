"""What an answer says: whether it passes, fails, has nothing to measure, or cannot be understood. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from cdm.model.check import Check, CheckOutcome, Comparison
from cdm.model.problems import UNREADABLE

MAX_BODY = 64 * 1024
"""Longest answer that is read, in bytes."""
SHOWN = 120
"""Most characters of an answer that are told."""
SERVICE_ERROR = "Nats-Service-Error"
"""Header with which a NATS service says that it could not do what it was asked."""
_TOO_LONG = f"the answer is longer than {MAX_BODY // 1024} KiB"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]?Inf", re.ASCII)


class Answer(Struct, frozen=True):
    """What came of making a check once."""

    outcome: CheckOutcome
    reason: str
    """In plain words and one line."""
    value: float | None = None
    """What was measured; None: no number."""
    asked: str = ""
    """The request, for people, where it is another one each time: to one of several instances."""


def error(reason: str) -> Answer:
    """Nothing can be said, for this reason."""
    return Answer(CheckOutcome.ERROR, reason)


def of_http(check: Check, status: int, body: bytes | None, location: str = "") -> Answer:
    """What an HTTP server's answer says.

    Args:
        check: a check of kind ``http``.
        status: of the answer.
        body: None: not read, as nothing is measured; or longer than `MAX_BODY`.
        location: where the answer says to look instead; nobody does.
    """
    if check.ok is None:
        passed = 200 <= status < 400
        return Answer(CheckOutcome.PASS if passed else CheckOutcome.FAIL, f"status {status}")
    if problem := _unusable(status, location):
        return problem
    return _measured(check, body)


def of_nats(check: Check, body: bytes, headers: Mapping[str, str]) -> Answer:
    """What the answer to a NATS request says."""
    if problem := headers.get(SERVICE_ERROR) or headers.get(f"{SERVICE_ERROR}-Code"):
        return error(f"the service answers with an error: {shown(problem)}")
    if len(body) > MAX_BODY:
        return error(_TOO_LONG)
    return _judged_by_itself(body) if check.ok is None else _measured(check, body)


def of_prometheus(check: Check, status: int, body: bytes | None, location: str = "") -> Answer:
    """What the answer of Prometheus's ``/api/v1/query`` says."""
    if body is not None and status // 100 in (4, 5):
        told = _json(body)
        if isinstance(told, dict) and isinstance(told.get("error"), str):
            return error(f"Prometheus refuses the query: {shown(told['error'])}")
    if problem := _unusable(status, location):
        return problem
    if body is None:
        return error(
            f"the answer is longer than {MAX_BODY // 1024} KiB; write a query that has one sample, with sum(…)"
        )
    return _of_samples(check, body)


def shown(text: str | bytes) -> str:
    """What somebody else said, fit to be told: in one line, and not long."""
    if isinstance(text, bytes):
        text = text[: 4 * SHOWN].decode(errors="replace")
    text = " ".join(text.split())
    if not text.isprintable():
        text = repr(text[:SHOWN])
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _unusable(status: int, location: str) -> Answer | None:
    """What is wrong with an answer that was to be read; None: nothing."""
    if 200 <= status < 300:
        return None
    if 300 <= status < 400 and location:
        return error(f"status {status}, which leads to {shown(location)}: write that address")
    return error(f"status {status}")


def _of_samples(check: Check, body: bytes) -> Answer:
    """What the result of a query says, which has to be one number."""
    match _json(body):
        case {"status": "success", "data": {"resultType": "vector" | "scalar" as kind, "result": list(result)}}:
            samples = [{"value": result}] if kind == "scalar" else result
        case {"status": "success", "data": {"resultType": "matrix" | "string" as kind}}:
            return error(f"the query is of type {kind}; write one that has a single number")
        case _:
            samples = [None]
    match samples:
        case []:
            return Answer(CheckOutcome.NO_DATA, "no data: the query has no sample")
        case [{"value": [_, str(text)]}] if _NUMBER.fullmatch(text):
            return _compared(check, text)
        case [{"histogram": _}]:
            return error("the query has a histogram; write one that has a number, with histogram_quantile(…)")
        case [_, _, *_]:
            return error(f"the query has {len(samples)} samples; write one that has a single one, with sum(…)")
    return error(f"the answer is not Prometheus's: {shown(body)}")


def _judged_by_itself(body: bytes) -> Answer:
    """The answer of a service that knows how it is: true, false, null or ``{"ok": …, "reason": …}``; or ``ok``."""
    text = body.strip()
    if text.lower() == b"ok":
        return Answer(CheckOutcome.PASS, "ok")
    said = _json(text)
    reason = ""
    if isinstance(said, dict) and "ok" in said:
        reason = shown(said["reason"]) if isinstance(said.get("reason"), str) else ""
        said = said["ok"]
    if said is True:
        return Answer(CheckOutcome.PASS, reason or "ok")
    if said is False:
        return Answer(CheckOutcome.FAIL, reason or "not ok")
    if said is None:
        return Answer(CheckOutcome.NO_DATA, f"no data: {reason}" if reason else "no data")
    return error(f'the answer is neither "ok" nor true, false or null: {shown(body) or "it is empty"}')


def _measured(check: Check, body: bytes | None) -> Answer:
    """Read a number out of a body, and compare it."""
    if body is None:
        return error(_TOO_LONG)
    source = check.source
    path = getattr(source, "json", None)
    if path is None:
        text = body.strip()
        if not text:
            return Answer(CheckOutcome.NO_DATA, "no data: the answer is empty")
        if _NUMBER.fullmatch(decoded := text.decode(errors="replace")):
            return _compared(check, decoded)
        return _of_value(check, _json(text), body)
    found = _json(body)
    if found is _UNREADABLE:
        return error(f"the answer is not JSON: {shown(body)}")
    for step in path.split("."):
        match found:
            case dict() if step in found:
                found = found[step]
            case list() if step.isascii() and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            case None:
                return Answer(CheckOutcome.NO_DATA, f"no data: {path} is null")
            case _:
                return error(f"the answer has no {path}: {shown(body)}")
    return _of_value(check, found, body, f"{path} is ")


def _of_value(check: Check, value: object, body: bytes, named: str = "") -> Answer:
    match value:
        case None:
            return Answer(CheckOutcome.NO_DATA, f"no data: {named or 'the answer is '}null")
        case bool() | int() | float():
            return _compared(check, value)
        case str() if _NUMBER.fullmatch(value.strip()):
            return _compared(check, value.strip())
    return error(f"{named or 'the answer is '}no number: {shown(body)}")


def _compared(check: Check, told: str | float) -> Answer:
    """Whether a number is as it should be. That there is none, NaN, means that there was nothing to measure."""
    assert check.ok is not None
    try:
        value = float(told)
    except OverflowError:  # an integer beyond all floats
        value = math.inf if told > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(value):
        return Answer(CheckOutcome.NO_DATA, "no data: NaN")
    wanted = Comparison.parse(check.ok)
    if wanted.holds(value):
        return Answer(CheckOutcome.PASS, f"{value:g} is {wanted}", value)
    return Answer(CheckOutcome.FAIL, f"{value:g} is not {wanted}", value)


_UNREADABLE: Any = object()


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UNREADABLE:
        return _UNREADABLE
