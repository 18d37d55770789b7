from __future__ import annotations

import msgspec
import pytest

from cdm.errors import InvalidValue
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
    with pytest.raises(msgspec.ValidationError):
        Intent.parse(b'{"schedule": "drain", "scheduel": "drain"}')
