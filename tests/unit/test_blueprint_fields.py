"""The fields of a blueprint that say how it takes over, and how it comes back from a status."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.rollout import RolloutKind, RolloutSettings, RolloutStep
from cdm.model.status import Condition, Status
from cdm.model.template import Template
from tests.unit.support import parts

ODD = "\U000e0001" * 64


def _parse(**fields: object) -> Blueprint:
    return Blueprint.parse(json.dumps({"instances": 1, **fields}).encode())


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        (
            {"steps": [{"weight": 1, "pause": 1}]},
            'steps[0]: has both a "weight" and a "pause"; write them as two steps',
        ),
        ({"kind": "canary", "steps": [{"weight": 1}, {}]}, 'steps[1]: must have a "weight" or a "pause"'),
        ({"steps": [{"weight": 10}]}, 'steps: only a canary has steps, and kind is "rolling"'),
        ({"kind": "blue-green", "steps": [{"pause": 1}]}, 'steps: only a canary has steps, and kind is "blue-green"'),
        ({"kind": "canary"}, 'steps: a canary needs at least one step with a "weight"'),
        (
            {"kind": "canary", "steps": [{"pause": "approve"}]},
            'steps: a canary needs at least one step with a "weight"',
        ),
        (
            {"kind": "canary", "steps": [{"weight": 10}, {"pause": 1}, {"weight": 10}]},
            "steps[2].weight: must be more than 10, the weight of an earlier step",
        ),
        ({"kind": "canary", "steps": [{"pause": 1}] * 101}, "steps: must be a list of at most 100 steps"),
        (
            {"kind": "canary", "steps": [{"weight": 1}, {"pause": "soon"}]},
            'steps[1].pause: must be a duration (seconds, or a text like "5m"), or "approve"',
        ),
        ({"kind": "canary", "steps": [{"weight": 1}, {"pause": "31d"}]}, "steps[1].pause: must be at most 30 days"),
        ({"steps": [{"wait": 1}]}, "steps[0].wait: there is no such field (fields: weight, pause)"),
        ({"steps": [{"weight": 101}]}, "steps[0].weight: must be per cent of the instances, from 1 to 100"),
        (
            {"max_surge": "0%", "max_unavailable": 0},
            "max_surge: is 0, and so is max_unavailable: then nothing could ever be replaced",
        ),
        ({"max_surge": "110%"}, 'max_surge: must be a whole number, or a percentage like "25%" (at most 100%)'),
        (
            {"max_unavailable": []},
            'max_unavailable: must be a whole number, a percentage like "25%" (at most 100%), or "auto"',
        ),
        ({"kind": "bluegreen"}, 'kind: must be "rolling", "canary" or "blue-green"'),
        ({"deadline": "31d"}, "deadline: must be at most 30 days"),
        ({"deadline": 0}, "deadline: must be at least 0.1 s"),
        (
            {"deadline": "1m1h"},
            'deadline: must be a duration: seconds, or a text like "30s", "5m" or "1h30m" (at most 30 days)',
        ),
        ({"paused": 1}, "paused: must be true or false"),
        ({"approved": -1}, "approved: must be a whole number (at least 0, at most 1,000)"),
        ({"from": ""}, "from: version '' is empty"),
        (
            {"from": "1:2"},
            "from: version '1:2' contains ':'; colons, slashes, white space and control characters are not allowed",
        ),
        ({"from": "x" * 65}, 'from: must be a version like "1.0.0" (at most 64 characters)'),
        (
            {"group": "a b"},
            'group: must be a short name of letters, digits, ".", "-" and "_" (at most 63 characters)',
        ),
    ],
)
def test_what_is_wrong_with_a_rollout_is_told_in_words(rollout: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        _parse(rollout=rollout)
    assert str(refused.value) == f"rollout.{told}"


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ("a:b", "after: must be a list of at most 100 services, group:name"),
        ([3], "after[0]: must be a service, group:name"),
        (["a:b", "c"], "after[1]: service 'c' is not of the form group:name"),
        (["a:b:1"], "after[0]: service 'a:b:1' is not of the form group:name"),
        (["a:b", "c:d", "a:b"], "after[2]: a:b is given twice"),
        (["a:b"] * 101, "after: must be a list of at most 100 services, group:name"),
    ],
)
def test_after_names_services_each_once(after: object, told: str) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        _parse(after=after)
    assert str(refused.value) == told


@pytest.mark.parametrize("fields", [{"after": [f"{ODD}:{ODD}"]}, {"rollout": {"from": ODD}}])
def test_what_is_said_of_odd_names_stays_readable(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidBlueprint) as refused:
        _parse(**fields)
    assert len(str(refused.value)) <= 300


def test_a_blueprint_neither_waits_for_itself_nor_replaces_itself() -> None:
    artifact = Artifact("acme", "web", "2")
    _parse(after=["acme:api"], rollout={"from": "1"}).check_for(artifact)
    for fields, told in (
        ({"after": ["acme:api", "acme:web"]}, "after[1]: acme:web cannot wait for itself"),
        ({"rollout": {"from": "2"}}, "rollout.from: 2 is this version itself; name the one that it replaces, or none"),
    ):
        with pytest.raises(InvalidBlueprint) as refused:
            _parse(**fields).check_for(artifact)
        assert str(refused.value) == told


@pytest.mark.parametrize(
    ("surge", "unavailable", "instances", "bounds"),
    [
        (1, "auto", 5, (1, None)),
        ("25%", "25%", 10, (3, 2)),
        ("1%", "99%", 1, (1, 0)),
        ("100%", "100%", 7, (7, 7)),
        (0, "10%", 5, (0, 1)),
        ("0%", "25%", 8, (0, 2)),
        (3, 0, 2, (3, 0)),
    ],
)
def test_surge_rounds_up_and_unavailable_down(
    surge: int | str, unavailable: int | str, instances: int, bounds: tuple[int, int | None]
) -> None:
    settings = RolloutSettings(max_surge=surge, max_unavailable=unavailable)
    assert (settings.surge(instances), settings.unavailable(instances)) == bounds


def test_durations_have_units_the_largest_first() -> None:
    assert RolloutSettings(deadline="1h30m", keep_old="1.5s200ms").deadline_seconds == 5_400
    assert RolloutSettings(keep_old="1.5s200ms").keep_old_seconds == pytest.approx(1.7)
    assert _parse(rollout={"deadline": 90}).rollout.deadline_seconds == 90


_durations: st.SearchStrategy[float | str] = st.sampled_from(["5m", "1h30m", "0.5s", 30.0, 0.25])
_bounds = st.integers(1, 100_000) | st.integers(1, 100).map(lambda share: f"{share}%")
_pauses: st.SearchStrategy[float | str] = st.just("approve") | _durations
_steps = st.lists(
    st.tuples(st.integers(1, 100), st.lists(_pauses, max_size=2)),
    min_size=1,
    max_size=4,
    unique_by=lambda each: each[0],
).map(
    lambda found: tuple(
        step
        for weight, pauses in sorted(found, key=lambda each: each[0])
        for step in (RolloutStep(weight), *(RolloutStep(pause=pause) for pause in pauses))
    )
)
_kinds: st.SearchStrategy[tuple[RolloutKind, tuple[RolloutStep, ...]]] = st.tuples(
    st.sampled_from([RolloutKind.ROLLING, RolloutKind.BLUE_GREEN]), st.just(())
) | st.tuples(st.just(RolloutKind.CANARY), _steps)
_settings = st.builds(
    lambda kind, **rest: RolloutSettings(kind=kind[0], steps=kind[1], **rest),
    _kinds,
    source=st.none() | parts,
    max_surge=_bounds,
    max_unavailable=_bounds | st.sampled_from(["auto", 0, "0%"]),
    deadline=_durations,
    auto_promote=st.booleans(),
    auto_revert=st.booleans(),
    if_stable_down=st.sampled_from(["proceed", "hold"]),
    keep_old=_durations,
    group=st.none() | st.just("shop.eu-1"),
    paused=st.booleans(),
    approved=st.integers(0, 1_000),
    abort=st.booleans(),
)
_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
_names = st.from_regex(r"^[A-Za-z_][A-Za-z0-9_]{0,4}\Z")
_overrides = st.builds(
    Overrides,
    st.dictionaries(_names, _text, max_size=3),
    st.none() | st.lists(_text, max_size=3).map(tuple),
    st.none() | st.floats(1, 86_400),
)
_services = st.builds(lambda group, name: f"{group}:{name}", parts, parts)
_blueprints = st.builds(
    Blueprint,
    st.integers(0, 100),
    _overrides.map(lambda found: None if found == Overrides() else found),
    st.just(10.0) | st.floats(0, 86_400),
    st.none() | _text,
    st.just(5.0) | st.floats(0, 86_400),
    st.lists(_services, max_size=3, unique=True).map(tuple),
    st.just(RolloutSettings()) | _settings,
).filter(
    lambda found: (
        found.rollout.kind is not RolloutKind.BLUE_GREEN
        or found.overrides is None
        or found.overrides.stop_after is None
    )
)


def test_what_must_not_run_twice_is_not_rolled_out_all_beside_all() -> None:
    with pytest.raises(InvalidBlueprint, match=r"rollout\.kind: .*stop_after.*rolling"):
        _parse(stop_after=30, rollout={"kind": "blue-green"})


@given(_blueprints)
def test_a_status_gives_back_the_whole_blueprint(blueprint: Blueprint) -> None:
    status = Status(
        Condition.INVALID,
        desired=blueprint.instances,
        overrides=blueprint.overrides or msgspec.UNSET,
        min_healthy=blueprint.min_healthy,
        settings=blueprint.settings or msgspec.UNSET,
    )
    stored = msgspec.json.decode(msgspec.json.encode(status), type=Status)
    assert stored == status, "or it would be written again and again"
    assert stored.blueprint == blueprint


@given(_blueprints)
def test_what_is_typed_is_read_as_it_was_meant(blueprint: Blueprint) -> None:
    typed = {"instances": blueprint.instances, "min_healthy": blueprint.min_healthy, **blueprint.settings}
    typed |= msgspec.to_builtins(blueprint.overrides) if blueprint.overrides else {}
    assert Blueprint.parse(msgspec.json.encode(typed)) == blueprint


def test_an_old_status_is_read_and_one_of_a_later_version_is_no_error_by_itself() -> None:
    old = msgspec.json.decode(b'{"condition": "Ready", "desired": 2, "overrides": {"args": ["a"]}}', type=Status)
    assert old.blueprint == Blueprint(2, Overrides(args=("a",)))
    later = b'{"condition": "Ready", "desired": 2, "settings": {"rollout": {"unheard": 1}}, "unheard": 1}'
    with pytest.raises(InvalidBlueprint):
        _ = msgspec.json.decode(later, type=Status).blueprint


KNOWN = [
    (Template(), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    (
        Template(Overrides({"LEVEL": "debug", "A": ""})),
        "0cf08ebb0eb26bbd4374426a3a318decf6e249a516a28b5e22059dcf8586c835",
    ),
    (Template(Overrides(args=())), "3c5c082d43d0bdf951ee238c7220bdd84e90ca1a2bd4af148f12f57e724ff592"),
    (
        Template(Overrides({"Ä": 'ö\u2028\U0001f600"\\\n'}, ("-v", "é"), 30.0), "2026-11-28T08:00:00Z"),
        "d135ab946990de90130ad44dab5525af1b267a9844055b21c6af927f3f1f0d46",
    ),
    (Template(Overrides(stop_after=1.5), ""), "0e0f0a815ab9ac2840a98b8bfbdb0165099cf706d61bc541868ced80e0bb71ee"),
]
"""Another digest would replace every instance of every cluster that is upgraded."""


@pytest.mark.parametrize(("template", "digest"), KNOWN, ids=lambda value: value[:8] if isinstance(value, str) else "")
def test_the_digest_of_a_template_never_changes(template: Template, digest: str) -> None:
    assert template.digest == digest


@given(_overrides, st.none() | _text, st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order_of_what_is_typed(
    overrides: Overrides, restarted: str | None, order: Random
) -> None:
    typed = {**msgspec.to_builtins(overrides), **({} if restarted is None else {"restarted": restarted})}
    if "env" in typed:
        names = list(typed["env"])
        order.shuffle(names)
        typed["env"] = {name: typed["env"][name] for name in names}
    fields = list(typed)
    order.shuffle(fields)
    read = _parse(**{field: typed[field] for field in fields})
    shuffled = Template(read.overrides or Overrides(), read.restarted)
    assert shuffled.digest == Template(overrides, restarted).digest


@given(_overrides, _overrides, st.none() | _text, st.none() | _text)
def test_two_templates_have_one_digest_only_if_they_are_the_same(
    first: Overrides, second: Overrides, restarted: str | None, again: str | None
) -> None:
    one, other = Template(first, restarted), Template(second, again)
    assert (one.digest == other.digest) is (one == other)


@given(_blueprints, st.integers(0, 9), st.floats(0, 60))
def test_what_is_no_part_of_the_template_leaves_the_digest_alone(
    blueprint: Blueprint, instances: int, drain_delay: float
) -> None:
    changed = msgspec.structs.replace(
        blueprint, instances=instances, drain_delay=drain_delay, after=(), rollout=RolloutSettings(), min_healthy=1.0
    )
    templates = [Template(each.overrides or Overrides(), each.restarted) for each in (blueprint, changed)]
    assert templates[0].digest == templates[1].digest


@given(st.integers(1, 86_400))
def test_a_whole_number_of_seconds_has_one_digest(seconds: int) -> None:
    written = Template(Overrides(stop_after=seconds)).digest
    read = msgspec.json.decode(f'{{"stop_after": {seconds}}}', type=Overrides)
    assert Template(read).digest == written == Template(Overrides(stop_after=float(seconds))).digest
