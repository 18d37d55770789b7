"""The fields of a blueprint that say where its instances go: what is refused and why, and that nothing is lost."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.condition import LabelCondition, problem_with_label
from cdm.model.node import Registration
from cdm.model.rules import (
    NO_RULES,
    Needs,
    Neighbour,
    OnViolation,
    Preference,
    Rebalance,
    Rules,
    Spread,
)
from cdm.model.rules_typed import TypedRules
from cdm.model.slice import SliceState, SliceValue
from cdm.model.template import PLAIN, Template, template_of
from tests.unit.support import parts

pytestmark = pytest.mark.quick

NAME = 'the name of a strategy: lower-case letters, digits, ".", "-" and "_" (at most 63 characters)'
LABEL = "the name of a label, without spaces (at most 200 characters)"
SPACE = (
    "require[0]: asks for a label whose name 'zo ne' has a space in it, or another character that the name of a label "
    "cannot have"
)
WISH = (
    'is a wish, which says nothing where "instances" is "each": one runs on every node that fits; leave it out, or '
    'write "hard": true'
)
CPU = "a number of cores from 0 to 10,000, in steps of 0.001"
MEMORY = 'an amount of memory: bytes, or a text like "256M", "1.5G" or "1Gi" (at most 2^60 bytes)'


def _parse(**fields: object) -> Blueprint:
    return Blueprint.parse(json.dumps({"instances": 1, **fields}).encode())


def test_everything_that_can_be_typed() -> None:
    blueprint = _parse(
        require=["gpu", "zone in(a,b)"],
        prefer=[{"if": "ssd", "weight": 10}],
        spread=[{"by": "zone", "weights": {"a": 2, "*": 1}, "max_skew": 2, "or": "wait"}, {"by": "rack"}],
        near=["acme:cache", {"with": "acme:db", "by": "zone", "hard": True}],
        apart=["acme:batch", {"from": "acme:web", "by": "rack", "hard": False}],
        needs={"cpu": 0.5, "memory": "256M"},
        max_per_node=2,
        strategy="pack",
        on_violation="move",
        rebalance="on-join",
    )
    assert blueprint == Blueprint(
        1,
        rules=Rules(
            (LabelCondition.parse("gpu"), LabelCondition.parse("zone in (a, b)")),
            (Preference(LabelCondition.parse("ssd"), 10),),
            (Spread("zone", {"a": 2.0, "*": 1.0}, 2, anyway=False), Spread("rack")),
            (Neighbour("acme:cache"), Neighbour("acme:db", "zone", hard=True)),
            (Neighbour("acme:batch", hard=True), Neighbour("acme:web", "rack")),
            Needs(0.5, 256_000_000),
            2,
            "pack",
        ),
        on_violation=OnViolation.MOVE,
        rebalance=Rebalance.ON_JOIN,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"require": []}, {"needs": {}}, {"needs": {"cpu": 0, "memory": 0}}, {"needs": None}, {"max_per_node": None},
        {"strategy": "round-robin"}, {"spread": [], "near": [], "apart": [], "prefer": []}, {"rebalance": "off"},
        {"on_violation": "stay"},
    ],
)  # fmt: skip
def test_what_says_nothing_makes_no_rules(fields: dict[str, object]) -> None:
    blueprint = _parse(**fields)
    assert blueprint.rules is NO_RULES
    assert blueprint.settings == {}


def test_one_on_every_node() -> None:
    blueprint = _parse(instances="each", require=["gpu"], needs={"cpu": 1})
    assert (blueprint.each, blueprint.instances) == (True, 0)
    assert blueprint.settings == {"instances": "each", "require": ["gpu"], "needs": {"cpu": 1.0}}
    assert Blueprint.parse(b"3") == Blueprint(3)
    for wrong in (b'"each"', b'{"instances": "all"}'):
        with pytest.raises(InvalidBlueprint, match=r'from 0 to 100,000 or "each"|from 0 to 100,000'):
            Blueprint.parse(wrong)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"require": "gpu"}, "require: must be a list of at most 100 conditions"),
        ({"require": [1]}, 'require[0]: must be a condition like "gpu", "!spot" or "zone in (a, b)"'),
        ({"require": ["a\0"]}, 'require[0]: must be a condition like "gpu", "!spot" or "zone in (a, b)"'),
        ({"require": ["gpu", "zone == a"]}, 'require[1]: "zone == a" has two signs in a row; write a single ='),
        ({"require": ["zone=a", "gpu", "zone = a"]}, "require[2]: says the same as require[0]"),
        ({"require": ["gpu"] * 101}, "require: must be a list of at most 100 conditions"),
        ({"prefer": ["gpu"]}, "prefer[0]: must be an object"),
        ({"prefer": [{"if": "gpu"}]}, "prefer[0].weight: is required"),
        (
            {"prefer": [{"if": "gpu", "weight": 0}]},
            "prefer[0].weight: must be a whole number (at least 1, at most 100)",
        ),
        (
            {"prefer": [{"if": "gpu", "weight": 1}, {"if": "not gpu", "weight": 1}]},
            'prefer[1].if: "not gpu" begins with "not"; write "!" before a label, or "zone not in (a)"',
        ),
        (
            {"prefer": [{"if": "gpu", "weight": 1}, {"if": "gpu", "weight": 2}]},
            "prefer[1].if: says the same as prefer[0].if",
        ),
        ({"prefer": [{"when": "gpu"}]}, "prefer[0].when: there is no such field (fields: if, weight)"),
        ({"spread": {"by": "zone"}}, "spread: must be a list of at most 10 spreads"),
        ({"spread": [{"by": ""}]}, f"spread[0].by: must be {LABEL}"),
        ({"spread": [{"by": "zo ne"}]}, f"spread[0].by: must be {LABEL}"),
        ({"near": [{"with": "a:b", "by": "zo\u2003ne"}]}, f"near[0].by: must be {LABEL}"),
        ({"require": ["'zo ne'"]}, SPACE),
        (
            {"spread": [{"by": "zone", "weights": {"a": 1, "b": "2"}}]},
            "spread[0].weights.b: must be a number from 0 to 1,000,000",
        ),
        (
            {"spread": [{"by": "rack"}, {"by": "zone", "weights": {"a": 1, "b": -2}}]},
            "spread[1].weights.b: must be a number from 0 to 1,000,000",
        ),
        (
            {"spread": [{"by": "zone", "weights": {"a": 0, "*": 0}}]},
            'spread[0].weights: are all 0, so there is no place at all; write "*": 1 for all others',
        ),
        (
            {"spread": [{"by": "zone", "weights": {}}]},
            "spread[0].weights: is empty; leave it out where all values have the same share",
        ),
        (
            {"spread": [{"by": "zone", "max_skew": 0}]},
            "spread[0].max_skew: must be a whole number (at least 1, at most 100,000)",
        ),
        ({"spread": [{"by": "zone", "or": "fail"}]}, 'spread[0].or: must be "anyway" or "wait"'),
        ({"spread": [{"by": "zone"}, {"by": "zone"}]}, "spread[1].by: says the same as spread[0].by"),
        (
            {"spread": [{"by": "zone", "skew": 2}]},
            "spread[0].skew: there is no such field (fields: by, weights, max_skew, or)",
        ),
        ({"near": ["cache"]}, "near[0]: service 'cache' is not of the form group:name"),
        ({"near": [3]}, "near[0]: must be a service, group:name or an object"),
        (
            {"near": ["a:b", {"with": "a:b:1"}]},
            "near[1].with: service 'a:b:1' is not of the form group:name",
        ),
        ({"near": [{"from": "a:b"}]}, "near[0].from: there is no such field (fields: with, by, hard)"),
        ({"apart": [{"with": "a:b"}]}, "apart[0].with: there is no such field (fields: from, by, hard)"),
        ({"apart": [{"from": "a:b", "hard": "yes"}]}, "apart[0].hard: must be true or false"),
        ({"apart": ["a:b", {"from": "a:b"}]}, "apart[1]: says the same as apart[0]"),
        (
            {"near": [{"with": "a:b", "hard": True}], "apart": ["c:d", "a:b"]},
            "apart[1]: a:b must be near by node, too, as near[0] says",
        ),
        ({"needs": {"cpu": -1}}, f"needs.cpu: must be {CPU}"),
        ({"needs": {"cpu": 0.0005}}, f"needs.cpu: must be {CPU}"),
        ({"needs": {"cpu": "1"}}, f"needs.cpu: must be {CPU}"),
        ({"needs": {"memory": "256MB"}}, f"needs.memory: must be {MEMORY}"),
        ({"needs": {"memory": "9999999T"}}, f"needs.memory: must be {MEMORY}"),
        ({"needs": {"gpu": 1}}, "needs.gpu: there is no such field (fields: cpu, memory)"),
        ({"max_per_node": 0}, "max_per_node: must be a whole number (at least 1, at most 100,000)"),
        (
            {"strategy": "Pack"},
            f"strategy: must be {NAME}",
        ),
        ({"on_violation": "kill"}, 'on_violation: must be "stay" or "move"'),
        ({"rebalance": True}, 'rebalance: must be "off" or "on-join"'),
        (
            {"instances": "each", "spread": [{"by": "zone"}]},
            'spread: says nothing where "instances" is "each": one runs on every node that fits; leave it out',
        ),
        (
            {"instances": "each", "max_per_node": 1},
            'max_per_node: says nothing where "instances" is "each": one runs on every node that fits; leave it out',
        ),
        *(
            ({"instances": "each", **field}, f'{name}: says nothing where "instances" is "each": {why}; leave it out')
            for name, why, field in (
                ("on_violation", "what does not fit any more goes at once", {"on_violation": "move"}),
                ("rebalance", "none can be elsewhere", {"rebalance": "on-join"}),
                ("rebalanced", "none can be elsewhere", {"rebalanced": "now"}),
            )
        ),
        *(
            (
                {"instances": "each", **field},
                f"{place}: {WISH}",
            )
            for place, field in (
                ("near[0]", {"near": ["a:b"]}),
                ("apart[1]", {"apart": ["a:b", {"from": "a:c", "hard": False}]}),
            )
        ),
        ({"instances": "some"}, 'instances: must be a whole number from 0 to 100,000 or "each"'),
    ],
)
def test_what_is_wrong_is_told_with_its_place(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        _parse(**fields)
    assert str(refused.value) == told


def test_a_service_may_be_apart_from_itself_and_need_not_be_near_itself() -> None:
    artifact = Artifact("acme", "web", "1")
    _parse(apart=[{"from": "acme:web", "by": "zone"}], near=["acme:web"]).check_for(artifact)
    with pytest.raises(InvalidBlueprint) as refused:
        _parse(near=["acme:db", {"with": "acme:web", "hard": True}]).check_for(artifact)
    assert str(refused.value) == (
        'near[1]: acme:web is this service itself, and would never start; write "hard": false'
    )


_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
_labels = _text.filter(lambda label: not problem_with_label(label))
_conditions = st.one_of(
    st.builds("{}'{}'".format, st.sampled_from(["", "!"]), _labels.map(lambda each: each.replace("'", "''"))),
    st.sampled_from(["zone = a", "class != spot", "zone in (a, b)", "zone not in (c, 'd e')", "kernel >= 6.1"]),
).map(LabelCondition.parse)
_services = st.builds(lambda group, name: f"{group}:{name}", parts, parts)
_weights = st.floats(0, 1_000_000) | st.integers(1, 9).map(float)
_spreads = st.builds(
    Spread,
    _labels,
    st.dictionaries(_text | st.just("*"), _weights, max_size=3).filter(lambda each: not each or any(each.values())),
    st.integers(1, 5),
    st.booleans(),
)
_neighbours = st.builds(Neighbour, _services, st.just("node") | _labels, st.booleans())
_needs = st.builds(
    Needs, st.integers(0, 64_000).map(lambda milli: milli / 1000), st.integers(0, 2**40) | st.just(256_000_000)
)
rules_of_all_kinds = st.builds(
    Rules,
    st.lists(_conditions, max_size=3, unique=True).map(tuple),
    st.lists(st.builds(Preference, _conditions, st.integers(1, 100)), max_size=3, unique_by=lambda x: x.condition).map(
        tuple
    ),
    st.lists(_spreads, max_size=2, unique_by=lambda each: each.by).map(tuple),
    st.lists(_neighbours, max_size=2, unique_by=lambda each: (each.service, each.by)).map(tuple),
    st.just(()),
    st.none() | _needs.filter(lambda each: each != Needs()),
    st.none() | st.integers(1, 100_000),
    st.sampled_from(["round-robin", "pack", "my.own-1"]),
) | st.builds(Rules, apart=st.lists(_neighbours, max_size=2, unique_by=lambda each: (each.service, each.by)).map(tuple))
_blueprints = st.builds(
    lambda instances, rules, on_violation, rebalance: Blueprint(
        instances,
        rules=NO_RULES if rules == NO_RULES else rules,
        on_violation=on_violation,
        rebalance=rebalance,
    ),
    st.integers(0, 9),
    rules_of_all_kinds,
    st.sampled_from(OnViolation),
    st.sampled_from(Rebalance),
)


@given(_blueprints, st.booleans())
def test_what_is_written_is_read_as_it_was_meant(blueprint: Blueprint, each: bool) -> None:
    if each:
        near = tuple(one for one in blueprint.rules.near if one.hard)
        rules = Rules(blueprint.rules.require, near=near, needs=blueprint.rules.needs)
        rules = NO_RULES if rules == NO_RULES else rules
        blueprint = Blueprint(0, each=True, rules=rules)
    written = msgspec.json.encode({"instances": blueprint.instances, **blueprint.settings})
    assert Blueprint.parse(written) == blueprint
    assert msgspec.json.decode(written) == {"instances": blueprint.instances, **blueprint.settings}


_typed_names = st.sampled_from(["by", "weights", "or", "if", "weight", "with", "from", "cpu", "memory", "*"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["zone = a", "a:b", "each"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_typed_names | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(["instances", *(name for name in TypedRules.__struct_fields__)])


@given(st.dictionaries(_fields, _json, max_size=3))
def test_whatever_is_typed_is_understood_or_refused_in_words(typed: dict[str, object]) -> None:
    try:
        blueprint = _parse(**typed)
    except InvalidBlueprint as refused:
        problem = str(refused)
        assert problem.partition(":")[0].partition("[")[0].partition(".")[0] in typed
        return
    assert _parse(**{"instances": blueprint.instances, **blueprint.settings}) == blueprint


def test_needs_make_another_template_and_other_rules_do_not() -> None:
    plain = _parse(require=["gpu"], spread=[{"by": "zone"}], max_per_node=1)
    assert template_of(plain) is PLAIN
    needs = template_of(_parse(needs={"cpu": 1, "memory": "1Gi"}))
    assert needs == Template(needs=Needs(1.0, 2**30))
    assert needs.digest == template_of(_parse(needs={"memory": 2**30, "cpu": 1.0})).digest != PLAIN.digest
    assert needs.digest == "5f86160c16fd6ec479502e03d31710737acf4f8d958192717df905a0e50dc1c6"
    assert template_of(_parse(needs={"cpu": 0.1})).digest != template_of(_parse(needs={"cpu": 0.2})).digest


def test_what_older_processes_stored_is_read() -> None:
    assert msgspec.json.decode(b"{}", type=Template) == PLAIN
    old = msgspec.json.decode(b'{"state": "ACTIVE", "term": 3}', type=SliceValue)
    assert old == SliceValue(SliceState.ACTIVE, 3)
    assert msgspec.json.encode(old) == b'{"state":"ACTIVE","term":3}'
    registration = Registration.parse(b'{"labels": {"zone": "a"}, "capacity": 4}')
    assert (registration.cpu, registration.memory, registration.load) == (None, None, None)


def test_a_slice_tells_what_it_reserves() -> None:
    value = SliceValue(SliceState.LOAD, 1, needs=Needs(0.5, 256_000_000))
    stored = msgspec.json.encode(value)
    assert msgspec.json.decode(stored)["needs"] == {"cpu": 0.5, "memory": 256_000_000}
    assert msgspec.json.decode(stored, type=SliceValue) == value
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"state": "ACTIVE", "needs": {"cpu": -1}}', type=SliceValue)


def test_load_alone_makes_no_other_registration() -> None:
    one = Registration(labels={"zone": "a"}, cpu=4, load=0.25)
    assert not one.differs_from(msgspec.structs.replace(one, load=0.5))
    assert not one.differs_from(one)
    assert one.differs_from(msgspec.structs.replace(one, load=0.5, cpu=2))
    assert one.differs_from(Registration())


def test_overrides_of_a_status_are_as_before() -> None:
    assert Blueprint(1, Overrides(args=("a",))).settings == {}
