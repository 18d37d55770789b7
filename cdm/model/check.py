"""The checks of a rollout: what is asked, of whom, and which answer is a good one. Pure.

A check is asked again and again while its rollout is under way; `cdm.manager.gates` judges what came of it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from enum import StrEnum, unique
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from msgspec import Meta, Struct

from cdm.errors import InvalidBlueprint
from cdm.model.artifact import Service
from cdm.model.duration import Duration, seconds

PLACEHOLDERS = ("service", "group", "name", "version", "from", "phase", "step", "instance")
"""What may stand in braces in an address, a subject or a query."""
INTERVAL_RANGE = (1.0, 86_400.0)
"""Least and most seconds between two requests of a check."""
TIMEOUT_RANGE = (0.1, 60.0)
"""Least and most seconds that a check waits for its answer."""
_SHOWN = 80
"""Most characters of an address, subject or query that are shown."""
_HOST = r"[0-9A-Za-z][0-9A-Za-z.-]{0,252}|[0-9A-Fa-f:.]{2,45}"
_PLACEHOLDER = r"\{([^{}]*)\}"
_NUMBER = r"-?(?:[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?"
_COMPARISON = rf"\s*(<=|>=|==|!=|<|>)\s*({_NUMBER}|true|false)\s*"
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}

_ADDRESS = 'an address like "http://host:9090/path" (at most 2,000 characters)'
_SUBJECT = "a subject without white space and wildcards (at most 200 characters)"
Address = Annotated[str, Meta(pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[!-~]{1,1990}\Z", description=_ADDRESS)]
Subject = Annotated[str, Meta(pattern=r"^(?:[^\s.*>\0]+\.)*[^\s.*>\0]+\Z", max_length=200, description=_SUBJECT)]
Query = Annotated[
    str, Meta(pattern=r"\S", max_length=4_000, description="a query in PromQL (at most 4,000 characters)")
]
JsonPath = Annotated[
    str,
    Meta(
        pattern=r"^[^.]+(?:\.[^.]+)*\Z",
        max_length=200,
        description='a path like "errors.rate" or "shards.0.lag" (at most 200 characters)',
    ),
]
Wanted = Annotated[
    str,
    Meta(
        pattern=rf"^{_COMPARISON}\Z",
        description='a comparison like "< 0.01", ">= 99" or "== 1" (<, <=, >, >=, ==, != and a number, true or false)',
    ),
]
Times = Annotated[int, Meta(ge=1, le=100)]
Tolerated = Annotated[int, Meta(ge=0, le=100)]


@unique
class CheckOutcome(StrEnum):
    """What one request of a check came to."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    """It was answered, and the answer is not a good one."""
    ERROR = "error"
    """There was no answer, or none that can be understood: nothing can be said."""
    NO_DATA = "no data"
    """The answer is that there is nothing to measure: no traffic, for example."""


class HttpCheck(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A GET of an address. Without ``ok`` a status from 200 to 399 passes; with it the body is read as a number.

    Raises:
        InvalidBlueprint: nothing can be asked there.
    """

    url: Address
    json: JsonPath | None = None
    """Where in the body, as JSON, the number is; None: it is the whole body."""

    def __post_init__(self) -> None:
        _check_address("url", self.url)

    @property
    def shown(self) -> str:
        """For people."""
        return f"GET {_shortened(self.url)}"


class NatsCheck(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A request on a subject. Without ``ok`` the answer says whether all is well; with it, it is read as a number.

    Raises:
        InvalidBlueprint: nothing is to be asked there.
    """

    subject: Subject
    json: JsonPath | None = None

    def __post_init__(self) -> None:
        _check_placeholders("subject", self.subject, (*PLACEHOLDERS[:-1],))
        if reserved(self.subject):
            raise InvalidBlueprint("subject", "subjects that begin with $ or _ are NATS's own")

    @property
    def shown(self) -> str:
        """For people."""
        return f"NATS request {_shortened(self.subject)}"


class PrometheusCheck(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An instant query, whose answer is exactly one sample.

    Raises:
        InvalidBlueprint: nothing can be asked there.
    """

    url: Address
    """Of the server, without ``/api/v1/query``."""
    query: Query

    def __post_init__(self) -> None:
        _check_address("url", self.url)
        if urlsplit(self.url).query:
            raise InvalidBlueprint("url", 'must be the address of the server, without "?"')

    @property
    def shown(self) -> str:
        """For people."""
        return f"Prometheus query {_shortened(self.query)}"


Source = HttpCheck | NatsCheck | PrometheusCheck


class Check(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, cache_hash=True):
    """One of ``rollout.checks``.

    Raises:
        InvalidBlueprint: it is not exactly one kind of check, or ``ok`` is missing or too much.
    """

    http: Address | HttpCheck | None = None
    nats: Subject | NatsCheck | None = None
    prometheus: PrometheusCheck | None = None
    ok: Wanted | None = None
    """What a good number is like."""
    interval: Duration = 10.0
    """Seconds from one request to the next."""
    timeout: Duration = 5.0
    """Seconds within which the whole answer has to be there."""
    count: Times = 3
    """Requests in a row that have to pass."""
    failures: Tolerated = 1
    """Failing answers that are put up with; one more is the end of the rollout."""
    errors: Tolerated = 1
    """Requests without a usable answer that are put up with; with one more the counting begins anew."""
    no_data: Literal["hold", "pass", "fail"] = "hold"
    """What it is taken for that there is nothing to measure."""

    def __post_init__(self) -> None:
        given = [kind for kind in ("http", "nats", "prometheus") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InvalidBlueprint("", 'must have exactly one of "http", "nats" and "prometheus"')
        source = self.source  # raises where it is a text that nothing can be asked at
        if self.ok is None and (isinstance(source, PrometheusCheck) or source.json is not None):
            raise InvalidBlueprint("ok", 'is required to judge a number; write a comparison like "< 0.01"')
        for field, given_seconds, (least, most) in (
            ("interval", self.interval_seconds, INTERVAL_RANGE),
            ("timeout", self.timeout_seconds, TIMEOUT_RANGE),
        ):
            if not least <= given_seconds <= most:
                raise InvalidBlueprint(field, f"must be from {least:g} to {most:,.0f} seconds")

    @property
    def source(self) -> Source:
        """What is asked."""
        try:
            if self.http is not None:
                return HttpCheck(self.http) if isinstance(self.http, str) else self.http
            if self.nats is not None:
                return NatsCheck(self.nats) if isinstance(self.nats, str) else self.nats
        except InvalidBlueprint as error:  # the text is the whole field
            raise InvalidBlueprint("nats" if self.http is None else "http", error.problem) from None
        assert self.prometheus is not None
        return self.prometheus

    @property
    def interval_seconds(self) -> float:
        """Seconds from one request to the next."""
        return seconds(self.interval)

    @property
    def timeout_seconds(self) -> float:
        """Seconds within which the whole answer has to be there."""
        return seconds(self.timeout)


class Comparison(Struct, frozen=True):
    """``ok``, taken apart."""

    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Comparison:
        """Read a text that `Check` has accepted."""
        found = re.fullmatch(_COMPARISON, text)
        assert found is not None
        number = {"true": 1.0, "false": 0.0}.get(found[2])
        return cls(found[1], float(found[2]) if number is None else number)

    def holds(self, value: float) -> bool:
        """Whether the value is a good one; NaN never is."""
        return value == value and _OPERATORS[self.sign](value, self.number)  # noqa: PLR0124  # NaN equals nothing

    def __str__(self) -> str:
        return f"{self.sign} {self.number:g}"


class CheckRun(Struct, frozen=True):
    """What is to be checked now for one service, and what its checks are told."""

    checks: tuple[Check, ...]
    series: str
    """Names what is being judged, such as the rollout and its step. With another one the counting begins anew."""
    version: str
    """The version that is rolled out."""
    source: str
    """The version that is replaced; the same, where only the template is another one."""
    phase: str = ""
    step: int = 0
    instances: tuple[tuple[str, int], ...] = ()
    """Address and port of each new instance that serves: ``{instance}`` is one of them, in turn."""

    def values(self, service: Service, turn: int) -> dict[str, str]:
        """What the placeholders stand for at the ``turn``-th request; without ``instance`` where there is none."""
        told = {
            "service": str(service),
            "group": service.group,
            "name": service.name,
            "version": self.version,
            "from": self.source,
            "phase": self.phase,
            "step": str(self.step),
        }
        for offset in range(len(self.instances)):
            address, port = self.instances[(turn + offset) % len(self.instances)]
            # Nodes say themselves where their instances are. What is no host must not become a path, or a login.
            if re.fullmatch(_HOST, address) and 0 < port < 2**16:
                told["instance"] = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                break
        return told

    def asks_as(self, other: CheckRun | None) -> bool:
        """Whether the same checks are made, and count for the same, as in another."""
        return other is not None and (self.checks, self.series) == (other.checks, other.series)


def filled_address(text: str, values: Mapping[str, str]) -> str:
    """An address with its placeholders replaced; what could be taken for a part of an address is encoded."""
    return _filled(text, {name: value if name == "instance" else quote(value, "") for name, value in values.items()})


def filled_subject(text: str, values: Mapping[str, str]) -> str:
    """A subject with its placeholders replaced, which need not be a valid one."""
    return _filled(text, values)


def filled_query(text: str, values: Mapping[str, str]) -> str:
    """A query with its placeholders replaced. What would end a string there is escaped; other braces are left alone."""
    return _filled(text, {name: re.sub(r"[\"'`\\]", _escaped, value) for name, value in values.items()})


def shown_at(source: HttpCheck | PrometheusCheck, values: Mapping[str, str]) -> str:
    """A request to one instance, for people: with the address that is asked, instead of the placeholder."""
    if isinstance(source, HttpCheck):
        return f"GET {_shortened(filled_address(source.url, values))}"
    return f"{source.shown} at {values['instance']}"


def uses_instance(text: str) -> bool:
    """Whether the address of an instance is needed to ask there."""
    return "{instance}" in text


def reserved(subject: str) -> bool:
    """Whether this is a subject of NATS itself: who may write blueprints need not be allowed to speak there."""
    return subject.startswith(("$", "_"))


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(_PLACEHOLDER, lambda found: values.get(found[1], found[0]), text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def _check_placeholders(field: str, text: str, known: tuple[str, ...] = PLACEHOLDERS) -> None:
    for name in re.findall(_PLACEHOLDER, text):
        if name not in known:
            there_are = ", ".join(f"{{{each}}}" for each in known)
            raise InvalidBlueprint(field, f"{{{_shortened(name)}}} stands for nothing here (there are: {there_are})")
    if "{" in (rest := re.sub(_PLACEHOLDER, "", text)) or "}" in rest:
        raise InvalidBlueprint(field, "has a brace too many")


def _check_address(field: str, text: str) -> None:
    _check_placeholders(field, text)
    try:
        parts = urlsplit(_filled(text, {**dict.fromkeys(PLACEHOLDERS, "1"), "instance": "127.0.0.1:1"}))
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets that do not match, or a port that is none
        host, port = None, None
    if not host or port == 0:
        raise InvalidBlueprint(field, f"must be {_ADDRESS}")
    if "@" in parts.netloc:
        raise InvalidBlueprint(field, "must have no user and password: whoever may read blueprints could read them")
    if parts.fragment:
        raise InvalidBlueprint(field, 'must have no "#": what follows it is not sent')


def _shortened(text: str) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
