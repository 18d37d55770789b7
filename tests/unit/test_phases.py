"""What ends the search for the first connection, and in which words."""

from __future__ import annotations

import ssl

import pytest

from cdm.errors import AccessDenied, Unreachable, Untrusted
from cdm.store import phases
from cdm.store.access import Access
from cdm.store.phases import Opening

pytestmark = pytest.mark.anyio

ONE = Access(servers=("tls://one:4222",), user="me", password="s3cr3t")
TWO = Access(servers=("tls://one:4222", "tls://two:4222"), user="me", password="s3cr3t")


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed certificate."
    return error


REFUSAL = "'Authorization Violation'"


@pytest.mark.parametrize("timeout", [5.0, None])
async def test_credentials_that_are_refused_by_the_only_server_end_it_at_once(timeout: float | None) -> None:
    opening = Opening(ONE, timeout)
    opening.failed(ConnectionRefusedError(), "refused", "tls://one:4222", ONE.servers)
    assert not opening.hopeless.done()
    for _ in range(2):
        opening.failed(Exception(), REFUSAL, "tls://one:4222", ONE.servers)
    told = opening.hopeless.result()
    assert type(told) is AccessDenied
    assert str(told).startswith("tls://one:4222 refused the credentials")
    assert "user me" in str(told)
    assert "s3cr3t" not in str(told)


@pytest.mark.parametrize("timeout", [5.0, None])
async def test_credentials_that_are_refused_end_it_only_where_no_server_is_left(timeout: float | None) -> None:
    """They reach the servers of a cluster one by one; what a server tells of is asked, too, but not counted."""
    opening = Opening(TWO, timeout)
    for server in ("tls://one:4222", "tls://told-of:4222", "tls://one:4222"):
        opening.failed(Exception(), REFUSAL, server, TWO.servers)
        opening.failed(ConnectionRefusedError(), "refused", "tls://two:4222", TWO.servers)
        assert not opening.hopeless.done()
    opening.failed(Exception(), REFUSAL, "tls://two:4222", TWO.servers)
    told = opening.hopeless.result()
    assert type(told) is AccessDenied
    assert str(told).startswith("tls://one:4222, tls://told-of:4222, tls://two:4222 refused the credentials")


async def test_when_the_time_is_over_a_refusal_is_told_rather_than_that_another_server_is_down() -> None:
    opening = Opening(TWO, 5.0)
    opening.failed(Exception(), REFUSAL, "tls://one:4222", TWO.servers)
    opening.failed(ConnectionRefusedError(), "refused", "tls://two:4222", TWO.servers)
    assert not opening.hopeless.done()
    told = opening.too_late("refused")
    assert type(told) is AccessDenied
    assert str(told).startswith("tls://one:4222 refused the credentials")


async def test_who_seeks_for_ever_tells_once_of_each_server_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(phases.log, "warning", lambda line, **about: told.append(about["server"]), raising=False)
    opening = Opening(TWO, None)
    for _ in range(3):
        opening.failed(Exception(), REFUSAL, "tls://one:4222", TWO.servers)
    assert told == ["tls://one:4222"]
    assert not opening.hopeless.done()


async def test_a_refusal_and_a_certificate_leave_no_server() -> None:
    opening = Opening(TWO, 5.0)
    opening.failed(untrusted(), "certificate verify failed", "tls://one:4222", TWO.servers)
    opening.failed(Exception(), REFUSAL, "tls://two:4222", TWO.servers)
    assert type(opening.hopeless.result()) is AccessDenied


async def test_a_certificate_ends_it_only_where_no_server_is_left() -> None:
    opening = Opening(TWO, 5.0)
    for _ in range(3):
        opening.failed(untrusted(), "certificate verify failed", "tls://one:4222", TWO.servers)
        assert not opening.hopeless.done()
    assert type(opening.too_late("no answer")) is Untrusted
    opening.failed(untrusted(), "certificate verify failed", "tls://two:4222", TWO.servers)
    assert str(opening.hopeless.result()).startswith("the certificate of tls://two:4222 is not trusted (self-signed")


async def test_who_seeks_for_ever_waits_for_a_certificate_that_is_mended() -> None:
    opening = Opening(TWO, None)
    for server in TWO.servers:
        opening.failed(untrusted(), "certificate verify failed", server, TWO.servers)
    assert not opening.hopeless.done()


async def test_when_the_time_is_over_the_last_problem_is_told() -> None:
    told = Opening(TWO, 2.5).too_late("connection refused")
    assert type(told) is Unreachable
    assert "within 2.5 s (connection refused)" in str(told)
