"""What people write under ``rollout.checks``, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model.artifact import Service
from cdm.model.blueprint import Blueprint
from cdm.model.check import (
    Check,
    CheckRun,
    Comparison,
    HttpCheck,
    NatsCheck,
    PrometheusCheck,
    filled_address,
    filled_query,
    filled_subject,
)
from tests.unit.support import parts

SHOP = Service("org.example", "shop")
HTTP = {"http": "http://shop/health"}
PROMETHEUS = {"url": "http://prometheus:9090", "query": "sum(errors)"}


def parse(*checks: Any) -> tuple[Check, ...]:
    return Blueprint.parse(json.dumps({"instances": 1, "rollout": {"checks": checks}}).encode()).rollout.checks


def test_a_check_says_what_to_ask_and_what_a_good_answer_is() -> None:
    assert parse() == ()
    assert parse(HTTP)[0].source == HttpCheck("http://shop/health")
    (check,) = parse({"http": {"url": "HTTPS://shop/metrics", "json": "errors.rate"}, "ok": "<0.01"})
    assert check.source == HttpCheck("HTTPS://shop/metrics", "errors.rate")
    assert parse({"nats": "shop.health"})[0].source == NatsCheck("shop.health")
    assert parse({"nats": {"subject": "{name}.health"}})[0].source == NatsCheck("{name}.health")
    (check,) = parse({"prometheus": PROMETHEUS, "ok": ">= 99", "interval": "1m", "timeout": "500ms"})
    assert check.source == PrometheusCheck("http://prometheus:9090", "sum(errors)")
    assert (check.interval_seconds, check.timeout_seconds) == (60.0, 0.5)


def test_what_is_not_said_is_cautious() -> None:
    (check,) = parse(HTTP)
    assert (check.count, check.failures, check.errors, check.no_data) == (3, 1, 1, "hold")
    assert (check.interval_seconds, check.timeout_seconds) == (10.0, 5.0)


ADDRESS = 'must be an address like "http://host:9090/path" (at most 2,000 characters)'
ONE_KIND = 'must have exactly one of "http", "nats" and "prometheus"'
COMPARISON = 'must be a comparison like "< 0.01", ">= 99" or "== 1" (<, <=, >, >=, ==, != and a number, true or false)'
FIELDS = "http, nats, prometheus, ok, interval, timeout, count, failures, errors, no_data"
ALL = "{service}, {group}, {name}, {version}, {from}, {phase}, {step}"


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("http://shop", "checks[0]: must be an object"),
        ({}, f"checks[0]: {ONE_KIND}"),
        ({"ok": "< 1"}, f"checks[0]: {ONE_KIND}"),
        ({**HTTP, "nats": "a"}, f"checks[0]: {ONE_KIND}"),
        (
            {"htpp": "http://shop"},
            f"checks[0].htpp: there is no such field (fields: {FIELDS})",
        ),
        ({"http": 1}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "shop/health"}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "ftp://shop/health"}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "http://shop/a b"}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "http://shöp/"}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "http://shop/\r\nX: y"}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "http://s/" + "x" * 2_000}, f"checks[0].http: {ADDRESS} or an object"),
        ({"http": "http:///health"}, f"checks[0].http: {ADDRESS}"),
        ({"http": "http://[::1/"}, f"checks[0].http: {ADDRESS}"),
        ({"http": "http://shop:99999/"}, f"checks[0].http: {ADDRESS}"),
        ({"http": "http://shop:0/"}, f"checks[0].http: {ADDRESS}"),
        ({"http": "http://shop:http/"}, f"checks[0].http: {ADDRESS}"),
        (
            {"http": "http://me:secret@shop/"},
            "checks[0].http: must have no user and password: whoever may read blueprints could read them",
        ),
        ({"http": "http://shop/#a"}, 'checks[0].http: must have no "#": what follows it is not sent'),
        (
            {"http": "http://shop/{versoin}"},
            f"checks[0].http: {{versoin}} stands for nothing here (there are: {ALL}, {{instance}})",
        ),
        ({"http": "http://shop/{version"}, "checks[0].http: has a brace too many"),
        ({"http": "http://shop/{{version}}"}, "checks[0].http: has a brace too many"),
        ({"http": {"url": "http://shop/{x}"}}, None),
        ({"http": {}}, "checks[0].http.url: is required"),
        ({"http": {"url": "http://s", "jsn": "a"}}, "checks[0].http.jsn: there is no such field (fields: url, json)"),
        (
            {"http": {"url": "http://s", "json": "a..b"}, "ok": "< 1"},
            'checks[0].http.json: must be a path like "errors.rate" or "shards.0.lag" (at most 200 characters)',
        ),
        (
            {"http": {"url": "http://s", "json": "a"}},
            'checks[0].ok: is required to judge a number; write a comparison like "< 0.01"',
        ),
        ({"nats": "a.*"}, None),
        ({"nats": "a.>"}, None),
        ({"nats": "a b"}, None),
        ({"nats": "a..b"}, None),
        ({"nats": ".a"}, None),
        ({"nats": ""}, None),
        ({"nats": "a" * 201}, None),
        (
            {"nats": "{instance}.health"},
            f"checks[0].nats: {{instance}} stands for nothing here (there are: {ALL})",
        ),
        ({"nats": "$JS.API.INFO"}, "checks[0].nats: subjects that begin with $ or _ are NATS's own"),
        ({"nats": {"subject": "_INBOX.a"}}, "checks[0].nats.subject: subjects that begin with $ or _ are NATS's own"),
        ({"prometheus": "http://p"}, "checks[0].prometheus: must be an object"),
        ({"prometheus": {"url": "http://p"}}, "checks[0].prometheus.query: is required"),
        (
            {"prometheus": PROMETHEUS},
            'checks[0].ok: is required to judge a number; write a comparison like "< 0.01"',
        ),
        (
            {"prometheus": {**PROMETHEUS, "query": " "}, "ok": "< 1"},
            "checks[0].prometheus.query: must be a query in PromQL (at most 4,000 characters)",
        ),
        (
            {"prometheus": {**PROMETHEUS, "url": "http://p/?x=1"}, "ok": "< 1"},
            'checks[0].prometheus.url: must be the address of the server, without "?"',
        ),
        *(({**HTTP, "ok": ok}, f"checks[0].ok: {COMPARISON}") for ok in ("", "1", "= 1", "<", "< x", "< 1%", "< 1 2")),
        *(
            ({**HTTP, "ok": ok}, f"checks[0].ok: {COMPARISON}")
            for ok in (1, "< 1_0", "< nan", "< \u0661", "=> 1", "< 1\n;")
        ),
        ({**HTTP, "interval": "10"}, None),
        ({**HTTP, "interval": 0.5}, "checks[0].interval: must be from 1 to 86,400 seconds"),
        ({**HTTP, "interval": "2d"}, "checks[0].interval: must be from 1 to 86,400 seconds"),
        ({**HTTP, "timeout": 0}, "checks[0].timeout: must be from 0.1 to 60 seconds"),
        ({**HTTP, "timeout": "61s"}, "checks[0].timeout: must be from 0.1 to 60 seconds"),
        ({**HTTP, "count": 0}, "checks[0].count: must be a whole number (at least 1, at most 100)"),
        ({**HTTP, "failures": -1}, "checks[0].failures: must be a whole number (at least 0, at most 100)"),
        ({**HTTP, "errors": 1.5}, "checks[0].errors: must be a whole number (at least 0, at most 100)"),
        ({**HTTP, "no_data": "ignore"}, 'checks[0].no_data: must be "fail", "hold" or "pass"'),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_with_a_check_is_told_with_its_place(check: Any, told: str | None) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        parse(check)
    assert refused.value.field.startswith("rollout.checks[0]")
    assert len(str(refused.value)) < 300
    if told is not None:
        assert str(refused.value) == f"rollout.{told}"


def test_the_place_is_that_of_the_check() -> None:
    with pytest.raises(InvalidBlueprint, match=r"^rollout\.checks\[1\]\.ok: is required"):
        parse(HTTP, {"prometheus": PROMETHEUS})


def test_there_are_no_more_checks_than_one_can_look_at() -> None:
    assert len(parse(*[HTTP] * 20)) == 20
    with pytest.raises(InvalidBlueprint) as refused:
        parse(*[HTTP] * 21)
    assert str(refused.value) == "rollout.checks: must be a list of at most 20 checks"


@pytest.mark.parametrize(
    ("ok", "good", "bad"),
    [
        ("< 0.01", [0.0, -1.0, 0.00999], [0.01, 1.0, float("inf")]),
        ("<=5", [5.0, 4.0], [5.1]),
        (" > -1.5e3 ", [-1499.0, float("inf")], [-1500.0, float("-inf")]),
        (">= .5", [0.5], [0.4]),
        ("==1", [1.0], [0.0, 1.1]),
        ("!= 0", [1.0], [0.0]),
        ("== true", [1.0], [0.0]),
        ("== false", [0.0], [1.0]),
    ],
)
def test_a_comparison_says_which_numbers_are_good(ok: str, good: list[float], bad: list[float]) -> None:
    (check,) = parse({**HTTP, "ok": ok})
    comparison = Comparison.parse(check.ok or "")
    assert all(comparison.holds(value) for value in good)
    assert not any(comparison.holds(value) for value in [*bad, float("nan")])


# Placeholders

RUN = CheckRun((), "1", "1.1.0", "1.0.0", "paused", 2, (("10.0.0.1", 8080), ("fd00::1", 80)))


def test_placeholders_are_replaced() -> None:
    values = RUN.values(SHOP, 0)
    assert filled_address("http://{instance}/{group}/{name}?v={version}&was={from}", values) == (
        "http://10.0.0.1:8080/org.example/shop?v=1.1.0&was=1.0.0"
    )
    assert filled_subject("{service}.{phase}.{step}", values) == "org.example:shop.paused.2"
    assert filled_query('sum(rate(errors{version="{version}", job=~"a{1,2}"}[5m]))', values) == (
        'sum(rate(errors{version="1.1.0", job=~"a{1,2}"}[5m]))'
    )


def test_the_instances_have_their_turns() -> None:
    told = [filled_address("http://{instance}/", RUN.values(SHOP, turn)) for turn in range(3)]
    assert told == ["http://10.0.0.1:8080/", "http://[fd00::1]:80/", "http://10.0.0.1:8080/"]
    assert "instance" not in CheckRun((), "1", "1.1.0", "1.0.0").values(SHOP, 0)


@pytest.mark.parametrize(
    "address",
    ["", "h/latest?x=", "h@i", "h#", "h?", "h:80", "[::1]", "h\r\n", "a b", "é", "::1%eth0", "h\\i", "-h", "x" * 300],
)
def test_a_node_that_lies_about_its_address_leads_nobody_elsewhere(address: str) -> None:
    only = CheckRun((), "1", "1.1.0", "1.0.0", instances=((address, 80),))
    assert "instance" not in only.values(SHOP, 0)
    both = CheckRun((), "1", "1.1.0", "1.0.0", instances=((address, 80), ("good", 80), ("good", 0), ("good", 70_000)))
    assert {both.values(SHOP, turn)["instance"] for turn in range(8)} == {"good:80"}


@given(parts, parts, parts)
def test_no_name_breaks_out_of_where_it_stands(group: str, name: str, version: str) -> None:
    values = CheckRun((), "1", version, version).values(Service(group, name), 0)
    address = filled_address("http://h/{version}/{service}", values)
    assert address.isascii()
    assert address.count("/") == 4
    assert not set("?#@ ") & set(address)
    query = filled_query('a{v="{version}"}', values)
    assert query.count('"') == 2
    assert "\\" not in query.replace("\\x", "")


@given(st.text(max_size=30), parts)
def test_a_value_is_replaced_once_and_not_read_again(text: str, version: str) -> None:
    values = {"version": "{name}", "name": version}
    assert filled_subject("{version}", values) == "{name}"
    assert filled_subject(text.replace("{", ""), values) == text.replace("{", "")
