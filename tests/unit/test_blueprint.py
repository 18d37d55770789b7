from __future__ import annotations

import sys
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE, MAX_BYTES, MAX_INSTANCES, Blueprint, Overrides

MALFORMED: list[tuple[bytes, str]] = [
    (b"", ""),
    (b" \n\t", ""),
    (b"three", ""),
    (b"3 4", ""),
    (b"3,", ""),
    (b"+3", ""),
    (b"03", ""),
    (b"0x3", ""),
    (b"3\x00", ""),
    (b"\xef\xbb\xbf", ""),
    (b"\xef\xbb\xbf\xef\xbb\xbf3", ""),
    (b"NaN", ""),
    (b"Infinity", ""),
    (b"-Infinity", ""),
    (b"{instances: 3}", ""),
    (b"{'instances': 3}", ""),
    (b'{"instances": 3', ""),
    (b'{"instances": 3,}', ""),
    (b'{"instances": }', ""),
    (b'{"instances": NaN}', ""),
    (b'{"instances": Infinity}', ""),
    (b"\xff\xfe3\x00", ""),
    (b'{"instances": "\xff"}', ""),
    (b'{"\xff": 3}', ""),
    (b'"\\ud800"', ""),
    (b"1e400", "instances"),
    (b"1" + b" " * (1024 * 1024), ""),
    (b'{"instances": 3, "x": "' + b"y" * (1024 * 1024) + b'"}', ""),
    (b"[" * 20_000, ""),
    (b"[" * 20_000 + b"]" * 20_000, ""),
    (b'{"instances":' * 4_000 + b"1" + b"}" * 4_000, ""),
    (b"null", "instances"),
    (b"true", "instances"),
    (b"false", "instances"),
    (b'"3"', "instances"),
    (b'""', "instances"),
    (b"[]", "instances"),
    (b"[3]", "instances"),
    (b"3.0", "instances"),
    (b"3.5", "instances"),
    (b"3e0", "instances"),
    (b"-1", "instances"),
    (b"100001", "instances"),
    (b"18446744073709551616", "instances"),
    (b"-9223372036854775809", "instances"),
    (b"9" * 4_000, "instances"),
    (b"9" * 5_000, "instances"),
    (b"{}", "instances"),
    (b'{"instances": null}', "instances"),
    (b'{"instances": true}', "instances"),
    (b'{"instances": "3"}', "instances"),
    (b'{"instances": 3.0}', "instances"),
    (b'{"instances": -1}', "instances"),
    (b'{"instances": 100001}', "instances"),
    (b'{"instances": [3]}', "instances"),
    (b'{"instances": {"instances": 3}}', "instances"),
    (b'{"instence": 3}', "instence"),
    (b'{"Instances": 3}', "Instances"),
    (b'{"instances": 3, "instence": 3}', "instence"),
    (b'{"instances": 3, "replicas": 3}', "replicas"),
    (b'{"instances": 3, "a`b": 1}', "a`b"),
]


@pytest.mark.parametrize(("raw", "field"), MALFORMED, ids=lambda value: repr(value[:32]))
def test_a_malformed_blueprint_is_refused_and_its_field_named(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        Blueprint.parse(raw)
    assert caught.value.field == field
    assert caught.value.problem
    assert str(caught.value) == (f"{field}: {caught.value.problem}" if field else caught.value.problem)


@pytest.mark.parametrize(("raw", "field"), MALFORMED, ids=lambda value: repr(value[:32]))
def test_what_is_said_of_a_malformed_blueprint_stays_readable(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        Blueprint.parse(raw)
    assert len(str(caught.value)) <= 300


def test_a_field_that_is_given_twice_is_an_error_and_not_a_silent_choice() -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        Blueprint.parse(b'{"instances": 1, "instances": 2}')
    assert caught.value.field == "instances"


@pytest.mark.parametrize("field", ["[", '{"a":', '{"instances":'])
def test_no_depth_of_nesting_escapes_as_another_error(field: str) -> None:
    # Decoding and showing a value have their own limits: between them lies the trap.
    limit = sys.getrecursionlimit()
    close = "]" if field == "[" else "}"
    for depth in range(limit - 150, limit + 20):
        with pytest.raises(InvalidBlueprint):
            Blueprint.parse((field * depth + "1" + close * depth).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"3",
        b" 3 ",
        b"3\n",
        b"\xef\xbb\xbf3\r\n",
        b'\xef\xbb\xbf{"instances": 3}',
        b'{"instances": 3}',
        b'\n{ "instances" : 3 }\n',
    ],
)
def test_a_blueprint_is_a_number_or_an_object(raw: bytes) -> None:
    assert Blueprint.parse(raw) == Blueprint(3)


@given(st.integers(0, MAX_INSTANCES))
def test_every_allowed_number_of_instances_is_read_either_way(instances: int) -> None:
    assert Blueprint.parse(str(instances).encode()) == Blueprint(instances)
    assert Blueprint.parse(msgspec.json.encode(Blueprint(instances))) == Blueprint(instances)


@given(st.integers().filter(lambda i: not 0 <= i <= MAX_INSTANCES))
def test_no_other_number_of_instances_can_exist(instances: int) -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        Blueprint(instances)
    assert caught.value.field == "instances"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["instances", "instence", "", "`", "x`y"]) | st.text(max_size=4), inner)
    ),
    max_leaves=6,
)


@given(
    st.binary(max_size=64)
    | st.text(st.sampled_from('0123456789{}[]":,.-+eE instancesNaIfy\\u'), max_size=40).map(str.encode)
    | _json.map(msgspec.json.encode)
)
def test_any_bytes_are_a_valid_blueprint_or_refused_and_nothing_else(raw: bytes) -> None:
    try:
        blueprint = Blueprint.parse(raw)
    except InvalidBlueprint:
        return
    assert type(blueprint.instances) is int
    assert 0 <= blueprint.instances <= MAX_INSTANCES


def test_a_blueprint_of_the_greatest_length_is_still_read() -> None:
    assert Blueprint.parse(b"3".ljust(MAX_BYTES)) == Blueprint(3)
    with pytest.raises(InvalidBlueprint):
        Blueprint.parse(b"3".ljust(MAX_BYTES + 1))


def test_a_field_given_twice_among_thousands_is_found_in_a_moment() -> None:
    # A process that leads must not stand still over what somebody typed: comparing all with all would take a second.
    names = [f"V{number:x}" for number in range(6_000)]
    text = ",".join(f'"{name}":""' for name in [*names, names[-1]])
    began = time.process_time()
    with pytest.raises(InvalidBlueprint) as caught:
        Blueprint.parse(f'{{"instances":1,"env":{{{text}}}}}'.encode())
    assert time.process_time() - began < 0.5
    assert caught.value.field == names[-1]
    assert caught.value.problem == "is given twice"


def test_stop_after_says_when_nothing_runs_any_more() -> None:
    read = Blueprint.parse(b'{"instances": 1, "stop_after": 30}')
    assert read == Blueprint(1, Overrides(stop_after=30.0))
    assert read.overrides is not None
    assert read.overrides.gone_after == 30 + LONGEST_LAST_GRACE + LAST_MARGIN
    assert Overrides().gone_after is None


def test_env_and_args_override_the_manifest() -> None:
    read = Blueprint.parse(b'{"instances": 2, "env": {"LEVEL": "debug"}, "args": ["-v"]}')
    assert read == Blueprint(2, Overrides({"LEVEL": "debug"}, ("-v",)))
    assert Blueprint.parse(b'{"instances": 2, "args": []}') == Blueprint(2, Overrides({}, ()))
    assert Blueprint.parse(b'{"instances": 2, "env": {}}') == Blueprint(2)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"instances": 2, "env": ["LEVEL=debug"]}', "env"),
        (b'{"instances": 2, "env": {"LEVEL": 1}}', "env.LEVEL"),
        (b'{"instances": 2, "env": {"1LEVEL": "x"}}', "env"),
        (b'{"instances": 2, "env": {"LEVEL": "a\\u0000b"}}', "env.LEVEL"),
        (b'{"instances": 2, "env": {"LEVEL": "\\ud800"}}', "env.LEVEL"),
        (b'{"instances": 2, "min_healthy": "10"}', "min_healthy"),
        (b'{"instances": 2, "args": "-v"}', "args"),
        (b'{"instances": 2, "args": [1]}', "args[0]"),
        (b'{"instances": 2, "args": ["a", "\\u0000"]}', "args[1]"),
        (b'{"instances": 2, "env": {"A": "x", "A": "x"}}', "A"),
        (b'{"instances": 2, "stop_after": "30"}', "stop_after"),
        (b'{"instances": 2, "stop_after": true}', "stop_after"),
        (b'{"instances": 2, "stop_after": 0.5}', "stop_after"),
        (b'{"instances": 2, "stop_after": 86401}', "stop_after"),
        (b'{"instances": 2, "stop_after": 1e999}', "stop_after"),
        (b'{"instances": 2, "overrides": {}}', "overrides"),
    ],
)
def test_overrides_that_nothing_can_be_given_are_refused(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        Blueprint.parse(raw)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'"3"', "instances: must be a whole number from 0 to 100,000 or an object"),
        (b'{"instances": -1}', 'instances: must be a whole number from 0 to 100,000 or "each"'),
        (b"{}", "instances: is required"),
        (
            b'{"instence": 3}',
            (
                "instence: there is no such field (fields: require, prefer, spread, near, apart, needs, max_per_node,"
                " strategy, on_violation, rebalance, rebalanced, instances, env, args, stop_after, min_healthy,"
                " restarted, drain_delay, after, rollout)"
            ),
        ),
        (b'{"instances": 2, "stop_after": 0}', "stop_after: must be seconds from 1 to 86,400"),
        (b'{"instances": 2, "min_healthy": -1}', "min_healthy: must be seconds from 0 to 86,400"),
        (b'{"instances": 2, "args": "-v"}', "args: must be a list of strings"),
        (b'{"instances": 2, "args": [1]}', "args[0]: must be a string without NUL characters or lone surrogates"),
        (b'{"instances": 2, "env": {"A B": "x"}}', "env: each name must be the name of a variable"),
        (
            b'{"instances": 2, "env": {"B": "x", "A": 1}}',
            'env.A: must be a string without NUL characters or lone surrogates, or {"secret": "NAME"}',
        ),
        (
            b'{"instances": 2, "env": {"B": {"secret": "b"}, "A": {"secret": "a/b"}}}',
            "env.A.secret: must be the name of a secret (letters, digits, dots, dashes and underscores; at most 128)",
        ),
        (b'{"instances": 2, "env": {"A": {"secret": "a", "as": "fd"}}}', 'env.A.as: must be "env" or "file"'),
        (b'{"instances": 2, "env": {"A": {}}}', "env.A.secret: is required"),
        (b'{"instances": 2, "instances": 2}', "instances: is given twice"),
        ("3".encode("utf-16"), "is UTF-16 or UTF-32, as its byte-order mark says; write it as UTF-8"),
        (
            b"three",
            'is not JSON: Expecting value: line 1 column 1 (char 0); write a number of instances or {"instances": N}',
        ),
    ],
)
def test_what_is_expected_is_told_in_words(raw: bytes, told: str) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        Blueprint.parse(raw)
    assert str(refused.value) == told


def test_an_instance_is_healthy_after_ten_seconds_unless_something_else_is_said() -> None:
    assert Blueprint.parse(b"3").min_healthy == Blueprint.parse(b'{"instances": 3}').min_healthy == 10.0
    assert Blueprint.parse(b'{"instances": 3, "min_healthy": 0}') == Blueprint(3, None, 0.0)
