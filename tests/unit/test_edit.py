"""An edit of a blueprint changes what it is to change, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model import edit
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.template import Template
from tests.harness.examples import examples

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
_rollout: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "from": st.just("0.9"),
        "max_surge": st.sampled_from([2, "25%"]),
        "deadline": st.sampled_from([90, "5m"]),
        "auto_revert": st.booleans(),
        "paused": st.booleans(),
        "approved": st.integers(0, 5),
        "abort": st.booleans(),
        "group": st.just("shop"),
    },
) | st.just({"kind": "canary", "steps": [{"weight": 10}, {"pause": "5m"}]})
_fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"instances": st.integers(0, 9)},
    optional={
        "env": st.none() | st.dictionaries(st.sampled_from(["A", "B", "LEVEL"]), _text),
        "args": st.none() | st.lists(_text, max_size=2),
        "stop_after": st.sampled_from([30, 1.5]),
        "min_healthy": st.sampled_from([0, 2.5]),
        "restarted": _text,
        "rebalanced": _text,
        "needs": st.sampled_from([None, {}, {"cpu": 1, "memory": "512Mi"}, {"memory": 1_000_000}]),
        "drain_delay": st.just(1),
        "after": st.just(["g:db"]),
        "rollout": st.none() | _rollout,
    },
)


@st.composite
def _typed(draw: st.DrawFn) -> bytes:
    fields = draw(_fields)
    if draw(st.booleans()):
        return str(fields["instances"]).encode()
    order = draw(st.permutations(list(fields)))
    indent = draw(st.sampled_from([None, 4]))
    raw = json.dumps({name: fields[name] for name in order}, indent=indent, ensure_ascii=draw(st.booleans())).encode()
    return raw + draw(st.sampled_from([b"", b"\n"]))


Touched = set[str]
EDITS: list[tuple[Callable[[bytes], bytes], Touched]] = [
    (lambda raw: edit.scaled(raw, 7), {"instances"}),
    (lambda raw: edit.paused(raw, True), {"rollout.paused"}),
    (lambda raw: edit.paused(raw, False), {"rollout.paused"}),
    (edit.approved, {"rollout.approved"}),
    (edit.aborted, {"rollout.abort", "rollout.paused"}),
    (lambda raw: edit.restarted(raw, "now"), {"restarted", "rollout.paused", "rollout.approved", "rollout.abort"}),
    (
        lambda raw: edit.released(raw, source="1.0", instances=7),
        {"instances", "rollout.from", "rollout.paused", "rollout.approved", "rollout.abort"},
    ),
    (
        lambda raw: edit.released(raw, source="1.0", instances="each"),
        {"instances", "rebalanced", "rollout.from", "rollout.paused", "rollout.approved", "rollout.abort"},
    ),
    (
        lambda raw: edit.released(raw, source=None, way=edit.canary_way(["10", "5m", "50"])),
        {f"rollout.{each}" for each in ("from", "paused", "approved", "abort", "kind", "steps")},
    ),
    (edit.without_stamps, {"restarted", "rebalanced"}),
    (edit.without_source, {"rollout.from"}),
    (
        lambda raw: edit.with_settings(raw, Template(Overrides({"A": "x"}))),
        {*edit.SETTINGS, "rollout.from", "rollout.paused", "rollout.approved", "rollout.abort"},
    ),
]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    rollout = fields.get("rollout") or {}
    outside = {name: value for name, value in fields.items() if name != "rollout"}
    return {**outside, **{f"rollout.{name}": value for name, value in rollout.items()}}


@settings(max_examples=examples(200))  # of a text, which is what takes time, for all edits
@given(_typed())
def test_an_edit_keeps_all_other_fields_as_they_were_typed(raw: bytes) -> None:
    for number, (change, touched) in enumerate(EDITS):
        note(f"edit {number}")
        before, after = _flat(edit.fields_of(raw)), _flat(edit.fields_of(change(raw)))
        assert {name: value for name, value in before.items() if name not in touched} == {
            name: value for name, value in after.items() if name not in touched
        }
        kept = [name for name in before if name in after and name not in touched]
        assert kept == [name for name in after if name in before and name not in touched], "in the order that they had"


@settings(max_examples=examples(200))
@given(_typed())
def test_what_an_edit_writes_is_a_valid_blueprint_and_a_number_stays_one_where_it_can(raw: bytes) -> None:
    for number, (change, _) in enumerate(EDITS):
        note(f"edit {number}")
        after = change(raw)
        Blueprint.parse(after)
        if raw.strip().isdigit() and edit.fields_of(after).keys() == {"instances"}:
            assert after.strip().isdigit()
        if edit.fields_of(after) == edit.fields_of(raw):
            assert after is raw, "what changes nothing keeps every byte"


@given(_typed())
def test_edits_do_what_they_are_called(raw: bytes) -> None:
    assert Blueprint.parse(edit.scaled(raw, 7)).instances == 7
    assert Blueprint.parse(edit.paused(raw, True)).rollout.paused
    assert not Blueprint.parse(edit.paused(raw, False)).rollout.paused
    assert Blueprint.parse(edit.approved(raw)).rollout.approved == Blueprint.parse(raw).rollout.approved + 1
    aborted = Blueprint.parse(edit.aborted(raw)).rollout
    assert (aborted.abort, aborted.paused) == (True, False)
    again = Blueprint.parse(edit.restarted(raw, "now"))
    assert (again.restarted, again.rollout.abort, again.rollout.paused, again.rollout.approved) == (
        "now",
        False,
        False,
        0,
    )
    overrides = Blueprint.parse(raw).overrides
    if overrides is not None and overrides.stop_after is not None:
        return  # which is refused together with blue-green
    new = Blueprint.parse(edit.released(raw, source="1.0", instances=3, way=edit.blue_green_way()))
    assert (new.instances, new.rollout.source, new.rollout.kind, new.rollout.steps) == (3, "1.0", "blue-green", ())


@given(_typed(), _typed())
def test_settings_go_from_one_blueprint_to_another_and_when_it_was_restarted_does_not(raw: bytes, other: bytes) -> None:
    settings, own = _template(other), _template(raw)
    restarted = Template(settings.overrides, own.restarted, settings.needs)
    assert _template(edit.with_settings(raw, settings)).digest == restarted.digest
    assert _template(edit.with_settings(raw, own)).digest == own.digest


def _template(raw: bytes) -> Template:
    blueprint = Blueprint.parse(raw)
    return Template(blueprint.overrides or Overrides(), blueprint.restarted)


def test_pausing_and_resuming_leaves_no_trace() -> None:
    for raw in (b"3", b'{"instances": 3}', b'{\n  "instances": 3,\n  "rollout": {\n    "group": "shop"\n  }\n}'):
        stopped = edit.paused(raw, True)
        assert Blueprint.parse(stopped).rollout.paused
        assert edit.fields_of(edit.paused(stopped, False)) == edit.fields_of(raw)


def test_a_blueprint_of_several_lines_stays_one() -> None:
    raw = b'{\n    "instances": 3,\n    "env": {"A": "\xc3\xa4"}\n}\n'
    assert edit.scaled(raw, 4) == '{\n  "instances": 4,\n  "env": {\n    "A": "ä"\n  }\n}'.encode()
    assert edit.scaled(b'{"instances": 3, "env": {"A": "b"}}', 4) == b'{"instances": 4, "env": {"A": "b"}}'
    assert edit.scaled(b"\xef\xbb\xbf3\r\n", 4) == b"4"


def test_a_blueprint_that_is_refused_is_not_edited_and_none_is_written_that_would_be() -> None:
    for raw in (b"", b"many", b'{"instances": 1, "replicas": 2}'):
        with pytest.raises(InvalidBlueprint):
            edit.scaled(raw, 2)
    with pytest.raises(InvalidBlueprint):
        edit.scaled(b"3", -1)
    with pytest.raises(InvalidBlueprint) as refused:
        edit.released(b"3", source="1", way=edit.canary_way(["50", "10"]))
    assert "must be more than 50" in str(refused.value)
    with pytest.raises(InvalidBlueprint) as refused:
        edit.checked(edit.released(b"3", source="1"), Artifact("g", "n", "1"))
    assert refused.value.field == "rollout.from"


def test_steps_of_a_canary_are_typed_as_shares_pauses_and_approvals() -> None:
    assert edit.canary_way(["10", " 5m", "50%", "approve"])["steps"] == [
        {"weight": 10},
        {"pause": "5m"},
        {"weight": 50},
        {"pause": "approve"},
    ]
    for text in ("", "soon", "1e2", "-1", "1000"):
        with pytest.raises(InvalidBlueprint) as refused:
            edit.canary_way([text])
        assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, b"3", ["created"]),
        (b"3", None, ["deleted"]),
        (b"3", b"three", ["refused"]),
        (b"three", b"3", ["mended"]),
        (b"3", b'{"instances": 3}', ["the same again"]),
        (b"3", b"5", ["instances 3 -> 5"]),
        (
            b'{"instances": 3, "min_healthy": 1.0, "needs": {"cpu": 0.5}}',
            b'{"instances": 3, "min_healthy": 3.0, "needs": {"cpu": 2.0}}',
            ["min_healthy 1 -> 3", "needs.cpu 0.5 -> 2"],
        ),
        (
            b'{"instances": 1, "env": {"A": "x", "B": "y"}}',
            b'{"instances": 1, "env": {"A": "z", "C": ""}}',
            ["env.A changed", "env.C set", "env.B removed"],
        ),
        (b"1", b'{"instances": 1, "restarted": "now", "min_healthy": 2}', ["restarted set", "min_healthy 2"]),
        (
            b'{"instances": 1, "rollout": {"from": "1"}}',
            b'{"instances": 1, "rollout": {"from": "2", "abort": true}}',
            ["rollout.from 1 -> 2", "rollout.abort true"],
        ),
    ],
)
def test_what_changed_is_told_and_no_variables_value_is(
    before: bytes | None, after: bytes | None, told: list[str]
) -> None:
    assert edit.changes_between(before, after) == told


@given(_typed(), _typed())
def test_of_two_blueprints_that_differ_something_is_told(before: bytes, after: bytes) -> None:
    assume(Blueprint.parse(before) != Blueprint.parse(after))
    assert edit.changes_between(before, after) not in ([], ["the same again"])
