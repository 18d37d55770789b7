from __future__ import annotations

import math

import msgspec
import pytest

from cdm.errors import InvalidBlueprint, InvalidValue
from cdm.model.duration import duration_text, seconds
from cdm.model.node import Intent, Registration, Schedule


@pytest.mark.parametrize(
    "raw",
    [
        b'{"schedule":"drain"}',
        b'{"schedule": "of a later version", "ttl": 10}',
        b'{"schedule":null}',
        b'{"incarnation":"","schedule":"cordon"}',
    ],
)
def test_an_intent_under_the_wrong_key_is_no_registration(raw: bytes) -> None:
    with pytest.raises(InvalidValue, match=r"\.intent"):
        Registration.parse(raw)


@pytest.mark.parametrize(
    ("raw", "registration"),
    [
        (b"{}", Registration()),
        (b'{"ttl":600}', Registration(ttl=600.0)),
        (b'{"ttl":10,"planned":{"schedule":"drain"}}', Registration(ttl=10.0)),
        (b'{"incarnation":"a","schedule":"x"}', Registration(incarnation="a")),
        (b'{"labels":{"schedule":"nightly"}}', Registration(labels={"schedule": "nightly"})),
    ],
)
def test_other_peoples_registrations_are_read_whatever_else_they_say(raw: bytes, registration: Registration) -> None:
    assert Registration.parse(raw) == registration


@pytest.mark.parametrize("raw", [b"", b"[]", b"drain", b'{"ttl":"soon"}'])
def test_what_is_no_registration_at_all_is_refused_as_before(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Registration.parse(raw)


def test_an_intent_may_begin_with_a_byte_order_mark_and_other_encodings_are_named() -> None:
    assert Intent.parse(b'\xef\xbb\xbf{"schedule": "drain"}') == Intent(Schedule.DRAIN)
    with pytest.raises(InvalidValue, match="is UTF-16 or UTF-32"):
        Intent.parse('{"schedule": "drain"}'.encode("utf-16"))


def test_an_intent_is_read_with_all_that_is_said_of_a_drain_and_what_is_unknown_is_told() -> None:
    raw = b'{"schedule":"drain","deadline":"1h30m","force":true,"reason":"kernel","by":"me","unknown":["x"]}'
    found = Intent.parse(raw)
    assert found == Intent(Schedule.DRAIN, "1h30m", True, "kernel", ("by", "unknown"))
    assert found.due == 5400
    assert (Intent(Schedule.DRAIN).due, Intent(Schedule.DRAIN, force=True).due) == (math.inf, 0)
    assert Intent.parse(b'{"schedule": "drain", "deadline": 90}').due == 90
    for wrong in (b'{"schedule": "drain", "deadline": "soon"}', b'{"schedule": "drain", "force": "yes"}', b"{}"):
        with pytest.raises(msgspec.ValidationError):
            Intent.parse(wrong)
    with pytest.raises(InvalidBlueprint, match="deadline: must be at most 30 days"):
        Intent.parse(b'{"schedule": "drain", "deadline": "31d"}')


@pytest.mark.parametrize("text", ["1h30m", "2d", "500ms", "1m1s", "0s"])
def test_durations_are_written_as_people_do(text: str) -> None:
    assert duration_text(seconds(text)) == text
