"""What an answer to a check says, on invented answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.checks.answers import SHOWN, Answer, of_http, of_nats, of_prometheus, shown
from cdm.model.check import Check, CheckOutcome, HttpCheck, NatsCheck, PrometheusCheck

P, F, E, N = CheckOutcome.PASS, CheckOutcome.FAIL, CheckOutcome.ERROR, CheckOutcome.NO_DATA
PLAIN = Check(http="http://shop/health")
NUMBER = Check(http="http://shop/rate", ok="< 0.01")
IN_JSON = Check(http=HttpCheck("http://shop/rate", "errors.0.rate"), ok="< 0.01")
ASKED = Check(nats="shop.health")
ASKED_NUMBER = Check(nats=NatsCheck("shop.health", "lag"), ok="<= 5")
QUERY = Check(prometheus=PrometheusCheck("http://prometheus", "sum(errors)"), ok="< 0.01")


def vector(*values: Any) -> bytes:
    samples = [
        {"metric": {"job": f"j{index}"}, "value": [1_700_000_000.1, value]} for index, value in enumerate(values)
    ]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}}).encode()


# HTTP


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, P), (204, P), (302, P), (399, P), (400, F), (404, F), (503, F), (199, F)]
)
def test_a_status_says_enough_where_no_number_is_wanted(status: int, outcome: CheckOutcome) -> None:
    assert of_http(PLAIN, status, None) == Answer(outcome, f"status {status}")


@pytest.mark.parametrize(
    ("body", "outcome", "reason"),
    [
        (b"0.001", P, "0.001 is < 0.01"),
        (b" 0\n", P, "0 is < 0.01"),
        (b"-1e3", P, "-1000 is < 0.01"),
        (b"false", P, "0 is < 0.01"),
        (b'"0.001"', P, "0.001 is < 0.01"),
        (b"0.01", F, "0.01 is not < 0.01"),
        (b"+Inf", F, "inf is not < 0.01"),
        (b"9" * 400, F, "inf is not < 0.01"),
        (b"-" + b"9" * 400, P, "-inf is < 0.01"),
        (b"1e999", F, "inf is not < 0.01"),
        (b"", N, "no data: the answer is empty"),
        (b" \r\n", N, "no data: the answer is empty"),
        (b"NaN", N, "no data: NaN"),
        (b"null", N, "no data: the answer is null"),
        (b"1_000", E, "the answer is no number: 1_000"),
        (b"0,001", E, "the answer is no number: 0,001"),
        (b"1 2", E, "the answer is no number: 1 2"),
        (b"<html>\n<b>", E, "the answer is no number: <html> <b>"),
        (b"{}", E, "the answer is no number: {}"),
        (b"\xff\xfe", E, "the answer is no number: \ufffd\ufffd"),
        (None, E, "the answer is longer than 64 KiB"),
    ],
)
def test_a_body_is_a_number(body: bytes | None, outcome: CheckOutcome, reason: str) -> None:
    answer = of_http(NUMBER, 200, body)
    assert (answer.outcome, answer.reason) == (outcome, reason)
    assert (answer.value is not None) == (outcome in (P, F))


@pytest.mark.parametrize(
    ("body", "outcome", "reason"),
    [
        (b'{"errors": [{"rate": 0.001}]}', P, "0.001 is < 0.01"),
        (b'{"errors": [{"rate": "0.5"}]}', F, "0.5 is not < 0.01"),
        (b'{"errors": {"0": {"rate": 0}}}', P, "0 is < 0.01"),
        (b'{"errors": [{"rate": ' + b"9" * 400 + b"}]}", F, "inf is not < 0.01"),
        (b'{"errors": [{"rate": null}]}', N, "no data: errors.0.rate is null"),
        (b'{"errors": null}', N, "no data: errors.0.rate is null"),
        (b"null", N, "no data: errors.0.rate is null"),
        (b'{"errors": []}', E, 'the answer has no errors.0.rate: {"errors": []}'),
        (b'{"error": 1}', E, 'the answer has no errors.0.rate: {"error": 1}'),
        (b"3", E, "the answer has no errors.0.rate: 3"),
        (b'{"errors": [{"rate": "high"}]}', E, 'errors.0.rate is no number: {"errors": [{"rate": "high"}]}'),
        (b'{"errors": [{"rate": {}}]}', E, 'errors.0.rate is no number: {"errors": [{"rate": {}}]}'),
        (b"{", E, "the answer is not JSON: {"),
        (b"[" * 10_000, E, f"the answer is not JSON: {'[' * (SHOWN - 1)}…"),
    ],
)
def test_a_number_is_found_in_json(body: bytes, outcome: CheckOutcome, reason: str) -> None:
    answer = of_http(IN_JSON, 200, body)
    assert (answer.outcome, answer.reason) == (outcome, reason)


def test_no_number_is_read_from_an_answer_that_is_not_about_it() -> None:
    assert of_http(NUMBER, 204, b"") == Answer(N, "no data: the answer is empty")
    assert of_http(NUMBER, 404, b"0") == Answer(E, "status 404")
    assert of_http(NUMBER, 302, b"0", "https://shop/login") == Answer(
        E, "status 302, which leads to https://shop/login: write that address"
    )


# NATS


@pytest.mark.parametrize(
    ("body", "outcome", "reason"),
    [
        (b"ok", P, "ok"),
        (b"OK\n", P, "ok"),
        (b"true", P, "ok"),
        (b'{"ok": true}', P, "ok"),
        (b'{"ok": true, "reason": "all shards", "more": 1}', P, "all shards"),
        (b"false", F, "not ok"),
        (b'{"ok": false, "reason": "shard 3\\nis behind"}', F, "shard 3 is behind"),
        (b'{"ok": false, "reason": 3}', F, "not ok"),
        (b"null", N, "no data"),
        (b'{"ok": null, "reason": "no orders yet"}', N, "no data: no orders yet"),
        (b"", E, 'the answer is neither "ok" nor true, false or null: it is empty'),
        (b"okay", E, 'the answer is neither "ok" nor true, false or null: okay'),
        (b"1", E, 'the answer is neither "ok" nor true, false or null: 1'),
        (b'{"ok": "yes"}', E, 'the answer is neither "ok" nor true, false or null: {"ok": "yes"}'),
        (b"{}", E, 'the answer is neither "ok" nor true, false or null: {}'),
        (b"\x1b[2J", E, "the answer is neither \"ok\" nor true, false or null: '\\x1b[2J'"),
    ],
)
def test_a_service_may_say_itself_how_it_is(body: bytes, outcome: CheckOutcome, reason: str) -> None:
    assert of_nats(ASKED, body, {}) == Answer(outcome, reason)


def test_a_services_answer_is_read_as_a_number_where_one_is_wanted() -> None:
    assert of_nats(ASKED_NUMBER, b'{"lag": 5}', {}) == Answer(P, "5 is <= 5", 5.0)
    assert of_nats(ASKED_NUMBER, b'{"lag": 6}', {}) == Answer(F, "6 is not <= 5", 6.0)
    assert of_nats(Check(nats="shop.lag", ok="<= 5"), b"7", {}).outcome is F
    assert of_nats(ASKED_NUMBER, b" " * 65_537, {}) == Answer(E, "the answer is longer than 64 KiB")
    assert of_nats(ASKED, b" " * 65_537 + b"true", {}).outcome is E


def test_a_service_that_answers_with_an_error_says_nothing() -> None:
    headers = {"Nats-Service-Error": "not now", "Nats-Service-Error-Code": "503"}
    assert of_nats(ASKED, b"ok", headers) == Answer(E, "the service answers with an error: not now")
    assert of_nats(ASKED, b"ok", {"Nats-Service-Error-Code": "500"}).outcome is E


# Prometheus


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        (200, vector("0.001"), P, "0.001 is < 0.01"),
        (200, vector("0.2"), F, "0.2 is not < 0.01"),
        (200, vector("+Inf"), F, "inf is not < 0.01"),
        (200, vector(), N, "no data: the query has no sample"),
        (200, vector("NaN"), N, "no data: NaN"),
        (200, vector("1", "2"), E, "the query has 2 samples; write one that has a single one, with sum(…)"),
        (200, vector("0x1"), E, None),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{"count":"1"}]}]}}',
            E,
            "the query has a histogram; write one that has a number, with histogram_quantile(…)",
        ),
        (200, vector(0.001), E, None),
        (200, b'{"status":"success","data":{"resultType":"scalar","result":[1,"0"]}}', P, "0 is < 0.01"),
        (
            200,
            b'{"status":"success","data":{"resultType":"matrix","result":[]}}',
            E,
            "the query is of type matrix; write one that has a single number",
        ),
        (
            400,
            b'{"status":"error","errorType":"bad_data","error":"1:5: parse error: unclosed left parenthesis"}',
            E,
            "Prometheus refuses the query: 1:5: parse error: unclosed left parenthesis",
        ),
        (503, b"no healthy upstream", E, "status 503"),
        (503, b'{"error": {}}', E, "status 503"),
        (200, b"<html>", E, "the answer is not Prometheus's: <html>"),
        (200, b'{"status":"success"}', E, None),
        (200, b'{"status":"success","data":{"resultType":"vector","result":{}}}', E, None),
        (200, b'{"status":"error","data":{"resultType":"vector","result":[]}}', E, None),
        (200, None, E, "the answer is longer than 64 KiB; write a query that has one sample, with sum(…)"),
        (503, None, E, "status 503"),
    ],
)
def test_a_query_has_one_sample(status: int, body: bytes | None, outcome: CheckOutcome, reason: str | None) -> None:
    answer = of_prometheus(QUERY, status, body)
    assert answer.outcome is outcome
    assert reason is None or answer.reason == reason


def test_a_server_that_has_moved_says_where_to() -> None:
    assert of_prometheus(QUERY, 301, b"", "https://prometheus/") == Answer(
        E, "status 301, which leads to https://prometheus/: write that address"
    )
    assert of_prometheus(QUERY, 304, b"") == Answer(E, "status 304")


# Anything at all

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ok", "reason", "errors", "lag", "status", "data", "result", "resultType", "value"]), inner
        )
    ),
    max_leaves=8,
)


@given(
    st.sampled_from([PLAIN, NUMBER, IN_JSON, ASKED, ASKED_NUMBER, QUERY]),
    st.integers(100, 599),
    st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()) | st.none(),
    st.text(max_size=20),
)
def test_whatever_is_answered_something_is_said_in_one_line(
    check: Check, status: int, body: bytes | None, location: str
) -> None:
    match check.source:
        case HttpCheck():
            answer = of_http(check, status, body, location)
        case NatsCheck():
            answer = of_nats(check, body or b"", {})
        case PrometheusCheck():
            answer = of_prometheus(check, status, body, location)
    assert answer.reason.isprintable()
    assert 0 < len(answer.reason) < 3 * SHOWN
    if check.ok is not None:
        assert (answer.value is None) == (answer.outcome in (E, N))


@given(st.text() | st.binary())
def test_what_somebody_else_says_is_told_in_one_line_and_not_at_length(text: str | bytes) -> None:
    told = shown(text)
    assert told.isprintable()
    assert len(told) <= SHOWN
