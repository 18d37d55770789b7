"""What ends the search for the first connection, and in which words."""

from __future__ import annotations

import ssl

import pytest

from cdm.errors import AccessDenied, Unreachable, Untrusted
from cdm.store.access import Access
from cdm.store.phases import Opening

pytestmark = pytest.mark.anyio

TWO = Access(servers=("tls://one:4222", "tls://two:4222"), user="me", password="s3cr3t")


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed certificate."
    return error


@pytest.mark.parametrize("timeout", [5.0, None])
async def test_credentials_that_are_refused_end_it_at_once(timeout: float | None) -> None:
    opening = Opening(TWO, timeout)
    opening.failed(ConnectionRefusedError(), "refused", "tls://one:4222")
    assert not opening.hopeless.done()
    for _ in range(2):  # several servers may say so
        opening.failed(Exception(), "'Authorization Violation'", "tls://one:4222")
    told = opening.hopeless.result()
    assert type(told) is AccessDenied
    assert "user me" in str(told)
    assert "s3cr3t" not in str(told)


async def test_a_certificate_ends_it_only_where_no_server_is_left() -> None:
    opening = Opening(TWO, 5.0)
    for _ in range(3):
        opening.failed(untrusted(), "certificate verify failed", "tls://one:4222")
        assert not opening.hopeless.done()
    assert type(opening.too_late("no answer")) is Untrusted
    opening.failed(untrusted(), "certificate verify failed", "tls://two:4222")
    assert str(opening.hopeless.result()).startswith("the certificate of tls://two:4222 is not trusted (self-signed")


async def test_who_seeks_for_ever_waits_for_a_certificate_that_is_mended() -> None:
    opening = Opening(TWO, None)
    for server in TWO.servers:
        opening.failed(untrusted(), "certificate verify failed", server)
    assert not opening.hopeless.done()


async def test_when_the_time_is_over_the_last_problem_is_told() -> None:
    told = Opening(TWO, 2.5).too_late("connection refused")
    assert type(told) is Unreachable
    assert "within 2.5 s (connection refused)" in str(told)
