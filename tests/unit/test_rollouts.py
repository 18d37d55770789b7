"""Rollouts of one manager in virtual time: what becomes of a service while agents answer, fail, or are silent."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from msgspec.structs import replace

from cdm.dispatch.messages import Cause, CheckResult, LeaderChange, ValuePut
from cdm.manager.gates import Gate
from cdm.manager.health import SideHealth, judge
from cdm.manager.service import revert
from cdm.manager.standing import MAY_RUN
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.check import Check, CheckOutcome
from cdm.model.content import Description
from cdm.model.keys import ContentKey, RolloutKey, encode_artifact
from cdm.model.node import FEATURES, Registration, Role
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rollout import RolloutKind, RolloutSettings, RolloutStep
from cdm.model.rules import Needs, Rules
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status
from tests.unit.support import APP, S, n
from tests.unit.world import NEXT, World

pytestmark = pytest.mark.quick
NEXT_VERSION = Artifact("org.example", "slice", "1.1.0")
THIRD_VERSION = Artifact("org.example", "slice", "1.2.0")
MIN_HEALTHY = 5.0
FROM = RolloutSettings(source="1.0.0")


def blueprint(instances: int = 3, *, rollout: RolloutSettings | None = None, **env: Any) -> Blueprint:
    return Blueprint(instances, Overrides(env) if env else None, MIN_HEALTHY, rollout=rollout or RolloutSettings())


def running(instances: int = 3, nodes: int = 3, *, capacity: int | None = None, **env: Any) -> World:
    """A world in which `APP` runs and is healthy."""
    each = World()
    for number in range(1, nodes + 1):
        each.join(n(number), Registration(capacity=capacity))
    each.lead()
    each.apply(APP, blueprint(instances, **env))
    each.run_down()
    later(each, MIN_HEALTHY)
    return each


def later(each: World, seconds: float) -> None:
    """So much time passes, and everybody goes on."""
    each.tick(seconds)
    each.run_down()


def finish(each: World, most: float = 120.0, artifact: Artifact = APP) -> None:
    """Time passes until the rollout is over."""
    each.run_down()
    until = each.now + most
    while (found := record(each, artifact)) is not None and found.phase.under_way and each.now < until:
        later(each, MIN_HEALTHY)


def record(each: World, artifact: Artifact = APP) -> Rollout | None:
    put = each.records.get(RolloutKey(artifact.service))
    return put.value if put else None


def phase(each: World, artifact: Artifact = APP) -> RolloutPhase:
    found = record(each, artifact)
    assert found is not None
    return found.phase


def status(each: World, artifact: Artifact = APP) -> Status:
    return each.statuses[encode_artifact(artifact)]


def condition(each: World, artifact: Artifact = APP) -> tuple[Condition, str]:
    found = status(each, artifact)
    return found.condition, found.reason


def count(each: World, artifact: Artifact, state: SliceState = S.ACTIVE) -> int:
    return sum(1 for each in each.states(artifact).values() if each is state)


def env_of(each: World, artifact: Artifact = APP) -> list[dict[str, Any]]:
    puts = [put for key, put in each.slices.items() if key.artifact == artifact]
    return [dict(put.value.overrides.env) if put.value.overrides else {} for put in puts]


# Another template


def test_a_changed_variable_reaches_every_instance_one_after_another() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    assert phase(each) is RolloutPhase.ROLLING
    assert count(each, APP) == 4, "a new one comes up beside the old ones"
    assert condition(each) == (Condition.PROGRESSING, "0 of 3 new instances healthy")
    later(each, MIN_HEALTHY)
    assert sorted(map(len, env_of(each))) == [0, 0, 1, 1]
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert env_of(each) == [{"LEVEL": "debug"}] * 3
    assert condition(each) == (Condition.READY, "")


# What an older leader loaded, or an older agent tells: values without digests

DIGESTS: dict[str, Any] = {"template": None, "content": None}


def upgraded(*, changed: bool = False) -> World:
    """`APP` was loaded by an older version, and this one leads for the first time.

    Args:
        changed: whether the blueprint was changed since, which the older version let reach nobody.
    """
    each = running()
    for key, put in list(each.slices.items()):
        each.store(key, replace(put.value, **DIGESTS))
    each.blueprints[APP] = (blueprint(LEVEL="info") if changed else blueprint(), each.sequence, None)
    each.boot()
    each.lead()
    each.run_down()
    later(each, MIN_HEALTHY)
    return each


@pytest.mark.parametrize("changed", [False, True])
def test_what_runs_without_a_digest_is_not_rolled(changed: bool) -> None:
    each = upgraded(changed=changed)
    level: dict[str, Any] = {"LEVEL": "info"} if changed else {}
    before = {put.key: put.revision for put in each.slices.values()}
    each.apply(APP, blueprint(4, **level))
    each.run_down()
    later(each, 60.0)
    assert record(each) is None
    assert count(each, APP) == 4
    assert {put.key: put.revision for put in each.slices.values() if put.key in before} == before
    assert sorted(map(len, env_of(each))) == [0, 0, 0, len(level)]
    assert status(each).outdated == 0


@pytest.mark.parametrize("changed", [False, True])
def test_what_is_changed_later_reaches_what_runs_without_a_digest(changed: bool) -> None:
    each = upgraded(changed=changed)
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    assert phase(each) is RolloutPhase.ROLLING
    assert status(each).outdated == 3
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 3
    assert condition(each) == (Condition.READY, "")


def test_a_restart_reaches_what_runs_without_a_digest() -> None:
    each = upgraded()
    first = {put.revision for put in each.slices.values()}
    each.apply(APP, replace(blueprint(), restarted="today"))
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert first.isdisjoint(put.revision for put in each.slices.values())


def test_another_content_reaches_what_runs_without_a_digest() -> None:
    each = upgraded()
    key = ContentKey(base64.urlsafe_b64encode(encode_artifact(APP).encode()).decode())
    for content in ("c0ffee", "decade"):
        each.route(ValuePut(key, Description(content), 1))
        finish(each)
        assert (record(each) is not None) == (content == "decade"), content
    assert {put.value.content for put in each.slices.values()} == {"decade"}


@pytest.mark.parametrize("knows", [False, True])
def test_what_changes_while_another_one_leads_is_rolled_only_where_that_one_knows_rollouts(knows: bool) -> None:
    each = upgraded()
    leader = n(9)
    each.join(leader, Registration(Role.MANAGER, version="0.1.0", features=FEATURES if knows else ()))
    each.route(LeaderChange(leader, each.term, local_node_is_leader=False))
    each.apply(APP, blueprint(LEVEL="debug"))
    each.expire(leader, Cause.DELETED)
    each.lead()
    finish(each)
    assert (record(each) is not None) == knows
    assert env_of(each) == [{"LEVEL": "debug"} if knows else {}] * 3


def test_what_failed_before_and_tells_nothing_of_itself_takes_no_rollout_back() -> None:
    each = running()
    key = next(iter(each.slices))
    each.store(key, replace(each.slices[key].value, state=S.FAILED, fatal=True, blueprint=None, **DIGESTS))
    each.apply(APP, blueprint(LEVEL="debug"))
    each.boot()
    each.lead()
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert env_of(each) == [{"LEVEL": "debug"}] * 3


def test_a_leader_that_was_just_started_goes_on_although_agents_drop_the_digests() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    later(each, MIN_HEALTHY)
    assert sorted(map(len, env_of(each))) == [0, 0, 1, 1]
    for key, put in list(each.slices.items()):
        each.store(key, replace(put.value, **DIGESTS))
    each.boot()
    each.lead()
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert env_of(each) == [{"LEVEL": "debug"}] * 3


def test_another_number_of_instances_is_no_rollout() -> None:
    each = running()
    each.apply(APP, blueprint(5))
    each.run_down()
    assert record(each) is None
    assert count(each, APP) == 5


def test_what_changes_back_in_the_middle_goes_back() -> None:
    each = running()
    each.apply(APP, blueprint(LEVEL="debug"))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint())
    finish(each)
    assert env_of(each) == [{}] * 3
    later(each, MIN_HEALTHY)
    assert condition(each) == (Condition.READY, "")


def needing(cpu: float | None, **given: Any) -> Blueprint:
    """A blueprint whose instances reserve so many cores."""
    return replace(blueprint(**given), rules=Rules(needs=None if cpu is None else Needs(cpu)))


def reserving(cpu: float) -> World:
    """A world in which `APP` runs, and reserves so much, and no rollout was before."""
    each = World()
    for number in (1, 2, 3):
        each.join(n(number), Registration(cpu=4.0))
    each.lead()
    each.apply(APP, needing(cpu))
    each.run_down()
    later(each, MIN_HEALTHY)
    return each


@pytest.mark.parametrize("then", [0.5, 0.25, None])
def test_what_old_instances_reserve_is_theirs_when_one_is_made_up_for_and_when_they_come_back(
    then: float | None,
) -> None:
    each = reserving(0.5)
    each.apply(APP, needing(then, LEVEL="debug"))
    later(each, MIN_HEALTHY)
    each.store(next(key for key, put in each.slices.items() if put.value.overrides is None), None)
    later(each, 0.0)
    assert {put.value.needs for put in each.slices.values() if put.value.overrides is None} == {Needs(0.5)}
    each.apply(APP, needing(then, LEVEL="debug", rollout=RolloutSettings(abort=True)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert [(put.value.needs, put.value.overrides) for put in each.slices.values()] == [(Needs(0.5), None)] * 3


def test_a_restart_of_what_reserves_something_is_only_a_restart() -> None:
    each = reserving(0.5)
    each.apply(APP, replace(needing(0.5), restarted="now"))
    finish(each)
    known = record(each)
    assert known is not None
    assert known.only_restarts


# Another version


def test_a_new_version_takes_over() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    assert condition(each)[0] is Condition.SUPERSEDED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 1)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.1.0")
    assert condition(each, NEXT_VERSION) == (Condition.READY, "")
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 2)


def test_without_instances_of_the_replaced_version_it_is_complete_at_once() -> None:
    each = World()
    each.join(n(1))
    each.apply(APP, blueprint())
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.lead()
    each.run_down()
    assert phase(each) is RolloutPhase.COMPLETE
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_version_that_replaces_one_that_failed_is_rolled_out_all_the_same() -> None:
    """It is complete once it is healthy, and not before: nobody knows yet whether it comes up."""
    each = running()
    for key in list(each.slices):
        each.report(key, S.FAILED, fatal=True)
    each.settle()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.settle()
    assert phase(each) is RolloutPhase.ROLLING
    finish(each)
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.COMPLETE, 0, 3)


def test_the_last_of_the_old_instances_is_no_sign_of_a_version_that_is_down() -> None:
    """With the old ones gone, as they are to be, the approval that ends a rolling release is waited for."""
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", auto_promote=False)))
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert (phase(each), count(each, APP), count(each, NEXT_VERSION)) == (RolloutPhase.PAUSED, 0, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", auto_promote=False, approved=1)))
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE


def test_the_old_version_put_again_after_the_end_runs_beside_the_new_one() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(APP, blueprint(1))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 3)


def test_the_old_version_put_again_in_the_middle_is_an_abort() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(APP, blueprint(2))
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 0)
    assert condition(each) == (Condition.READY, "")
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1.0.0 was put again")


def test_of_both_blueprints_written_in_the_middle_the_later_one_decides() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM, LEVEL="debug"))
    each.apply(APP, blueprint(2))
    finish(each)
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 0)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1.0.0 was put again")


@pytest.mark.parametrize("order", ["2+2+1+++212+", "12+1+++2+++2+2"])
def test_blueprints_that_replace_each_other_in_turn_leave_one_version_that_serves(order: str) -> None:
    each = running()
    for what in order:
        if what == "+":
            later(each, MIN_HEALTHY)
        elif what == "1":
            each.apply(APP, blueprint(rollout=RolloutSettings(source="1.1.0")))
        else:
            each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    there = {artifact: count(each, artifact) for artifact in (APP, NEXT_VERSION)}
    assert sorted(there.values()) == [0, 3]
    (serves,) = (artifact for artifact, instances in there.items() if instances)
    assert condition(each, serves) == (Condition.READY, "")


def test_the_new_blueprint_deleted_in_the_middle_is_an_abort() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(NEXT_VERSION)
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each) == (Condition.READY, "")


def test_the_new_blueprint_deleted_after_the_end_brings_nothing_back() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.drop(NEXT_VERSION)
    each.run_down()
    later(each, 30.0)
    assert not each.slices
    assert condition(each)[0] is Condition.SUPERSEDED


def test_the_old_blueprint_deleted_in_the_middle_changes_nothing() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(APP)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_third_version_replaces_the_second_and_the_first_stays_the_one_to_go_back_to() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    each.run_down()
    found = record(each)
    assert found is not None
    assert (found.source.version, found.target.version) == ("1.0.0", "1.2.0")
    finish(each)
    assert [count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)] == [0, 0, 3]
    assert condition(each, NEXT_VERSION)[0] is Condition.SUPERSEDED


def test_a_version_that_replaces_what_does_not_run_replaces_its_own_earlier_template() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(0))
    each.apply(APP, blueprint(rollout=RolloutSettings(source="1.1.0"), LEVEL="debug"))
    each.settle()
    found = record(each)
    assert found is not None
    assert (found.source.version, found.phase) == ("1.0.0", RolloutPhase.ROLLING)
    assert condition(each, NEXT_VERSION)[0] is Condition.SUPERSEDED
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 3


def test_what_was_replaced_before_is_told_which_version_serves_though_a_later_one_was_taken_back() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    later(each, MIN_HEALTHY)
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.2.0")
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0", abort=True)))
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.1.0")


def test_what_serves_of_several_older_versions_stays_until_the_new_one_does() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(APP, blueprint(LEVEL="debug"))
    each.settle()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.apply(THIRD_VERSION, blueprint(rollout=RolloutSettings(source="1.1.0")))
    each.settle()
    assert count(each, NEXT_VERSION) == 3, "those that do not serve yet go, and not those that do"
    for _ in range(30):
        later(each, 1.0)
        assert sum(count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)) >= 3
    finish(each)
    assert [count(each, one) for one in (APP, NEXT_VERSION, THIRD_VERSION)] == [0, 0, 3]


# The operator's hand


def test_an_abort_goes_back_in_the_middle_and_after_the_end() -> None:
    for late in (False, True):
        each = running()
        each.apply(NEXT_VERSION, blueprint(rollout=FROM))
        finish(each) if late else later(each, MIN_HEALTHY)
        each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
        each.run_down()
        finish(each)
        later(each, MIN_HEALTHY)
        assert phase(each) is RolloutPhase.REVERTED
        assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0), late
        assert condition(each)[0] is Condition.READY
        assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED


def test_an_abort_goes_back_to_the_same_bytes_under_another_name() -> None:
    each = running()
    for artifact in (APP, NEXT_VERSION):
        each.manager.cluster.contents[artifact] = "c0ffee"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED, "their manifests may differ"
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


def test_a_paused_rollout_stays_and_goes_on_when_it_is_resumed() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    stopped = RolloutSettings(source="1.0.0", paused=True)
    each.apply(NEXT_VERSION, blueprint(rollout=stopped))
    each.run_down()
    before = (count(each, APP), count(each, NEXT_VERSION))
    later(each, 3_600.0)
    assert phase(each) is RolloutPhase.PAUSED
    assert (count(each, APP), count(each, NEXT_VERSION)) == before
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


# Steps


def steps(*given: float | str) -> tuple[RolloutStep, ...]:
    return tuple(RolloutStep(weight=one) if isinstance(one, int) else RolloutStep(pause=one) for one in given)


def test_a_canary_goes_step_by_step_and_waits_for_approvals() -> None:
    each = running(10, 5)
    settings: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps(10, "approve", 50, 60.0)}
    each.apply(NEXT_VERSION, blueprint(10, rollout=RolloutSettings(**settings)))
    each.run_down()
    later(each, MIN_HEALTHY)
    later(each, 600.0)
    assert phase(each) is RolloutPhase.PAUSED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (9, 1)
    found = status(each, NEXT_VERSION).rollout
    assert found
    assert (found.phase, found.step, found.steps, found.share) == ("paused", 2, 5, 10.0)
    assert found.why == "waiting for an approval: cdm rollout approve org.example:slice"
    each.apply(NEXT_VERSION, blueprint(10, rollout=RolloutSettings(**settings, approved=1)))
    each.run_down()
    for _ in range(5):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (5, 5)
    later(each, 60.0)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 10)
    assert phase(each) is RolloutPhase.COMPLETE


def test_before_the_first_share_nothing_comes_up() -> None:
    each = running()
    settings: dict[str, Any] = {"source": "1.0.0", "kind": RolloutKind.CANARY, "steps": steps("approve", 50)}
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**settings)))
    later(each, 600.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION)[1] == "waiting for an approval: cdm rollout approve org.example:slice"
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(**settings, approved=1)))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_blue_green_switches_when_all_are_there_and_keeps_the_old_ones_for_a_while() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN)))
    each.run_down()
    found = record(each)
    assert found is not None
    assert found.weights is not None
    assert (found.weights.source, found.weights.target) == (100, 0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 3)
    later(each, MIN_HEALTHY)
    found = record(each)
    assert found is not None
    assert found.weights is not None
    assert (found.phase, found.weights.source, found.weights.target) == (RolloutPhase.SWITCHED, 0, 100)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 3)
    later(each, 30.0)
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert phase(each) is RolloutPhase.COMPLETE


def test_both_sides_grow_at_once_and_take_keys_and_room_of_their_own() -> None:
    each = running(1, 2, capacity=2)
    settings = RolloutSettings(kind=RolloutKind.BLUE_GREEN)
    each.apply(APP, blueprint(2, rollout=settings, LEVEL="debug"))
    each.run_down()
    assert sorted(map(len, env_of(each))) == [0, 0, 1, 1]
    assert len({key.node for key in each.slices}) == 2
    finish(each)
    assert env_of(each) == [{"LEVEL": "debug"}] * 2


# Without the old blueprint, and aborted before it begins


def test_what_was_gone_back_to_stays_although_its_blueprint_was_deleted() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    later(each, MIN_HEALTHY)
    each.drop(APP)
    each.run_down()
    each.apply(NEXT_VERSION, blueprint(4, rollout=RolloutSettings(source="1.0.0", abort=True)))
    finish(each)
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (4, 0)
    for node in (n(1), n(2), n(3)):
        each.expire(node)
        each.join(n(4))
        later(each, 60.0)
    assert count(each, APP) == 4, "also where every instance was lost in between"
    each.drop(NEXT_VERSION)
    later(each, 60.0)
    assert not each.slices


def test_a_template_that_is_written_with_abort_never_begins_and_takes_nothing_away() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True), LEVEL="debug"))
    later(each, 60.0)
    assert env_of(each, NEXT_VERSION) == [{}] * 3
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")


def test_a_version_that_is_written_with_abort_never_begins() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    later(each, 60.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "aborted before it began")
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


# Full nodes


def test_on_full_nodes_one_is_stopped_first_and_an_abort_after_the_end_comes_back_in_the_same_way() -> None:
    each = running(3, 3, capacity=1)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.run_down()
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 2)
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


def test_what_there_is_no_room_for_does_not_keep_a_revert_from_its_end() -> None:
    each = running(1, 1, capacity=1)
    each.apply(NEXT_VERSION, blueprint(2, rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    finish(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each)[0] is Condition.UNSCHEDULABLE
    found, why = condition(each, NEXT_VERSION)
    assert found is Condition.REVERTED
    assert why.startswith("no instance became healthy for 60 s: 1 has no place, and counts as unavailable")


def test_what_must_not_run_twice_and_has_no_room_says_so() -> None:
    each = running(2, 1, capacity=1)
    exclusive = Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY)
    each.apply(APP, exclusive)
    later(each, 60.0)
    assert condition(each)[1] == (
        "0 of 2 new instances healthy; 1 has no place, and counts as unavailable, so that no other one goes: "
        "make room, or raise max_unavailable; 0 of 1 node takes it: 1 full (1 of 1 slices)"
    )


def test_blue_green_that_replaces_what_must_not_run_twice_says_so() -> None:
    """The new blueprint cannot be refused for what the old one says."""
    each = running(2, 3)
    each.apply(APP, Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY))
    finish(each)
    settings = RolloutSettings(source="1.0.0", kind=RolloutKind.BLUE_GREEN, deadline=60.0)
    each.apply(NEXT_VERSION, blueprint(2, rollout=settings))
    each.run_down()
    waits = "with stop_after none comes up beside another, and blue-green needs that"
    assert condition(each, NEXT_VERSION)[1] == f"0 of 2 new instances healthy; {waits}"
    finish(each)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, f"no instance became healthy for 60 s: {waits}")


def on_port(each: World, *artifacts: Artifact, port: int = 80) -> None:
    """The instances of these have this port, as agents tell of a fixed one, and of what they have loaded."""
    for key, put in list(each.slices.items()):
        if key.artifact in artifacts and put.value.state in (S.LOADED, S.ACTIVATE, S.ACTIVATING, S.ACTIVE, S.UNLOADING):
            each.store(key, replace(put.value, port=port))


def go_on_with_one_port(each: World) -> None:
    """Agents answer, but nothing is started while something else has the port of its node."""
    for _ in range(20):
        each.settle()
        on_port(each, APP, NEXT_VERSION)
        held = any(put.value.state in (S.ACTIVE, S.UNLOADING) for put in each.slices.values())
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT and not (put.value.state is S.ACTIVATING and held):
                each.report(key, NEXT[put.value.state])
        each.tick(1.0)


def test_on_a_fixed_port_one_is_stopped_first_both_ways() -> None:
    each = running(1, 1)
    on_port(each, APP)
    each.apply(NEXT_VERSION, blueprint(1, rollout=FROM))
    for _ in range(3):
        go_on_with_one_port(each)
    assert phase(each) is RolloutPhase.COMPLETE
    each.apply(NEXT_VERSION, blueprint(1, rollout=RolloutSettings(source="1.0.0", abort=True)))
    for _ in range(3):
        go_on_with_one_port(each)
    assert phase(each) is RolloutPhase.REVERTED
    assert (count(each, APP), count(each, NEXT_VERSION)) == (1, 0)


def test_what_must_not_run_twice_from_now_on_waits_until_what_it_replaces_has_stopped() -> None:
    """Also where that was started without ``stop_after``, and drains."""
    each = running(2, 2)
    each.apply(APP, Blueprint(2, Overrides(stop_after=5.0), MIN_HEALTHY))
    for _ in range(60):
        each.settle()
        states = [put.value.state for put in each.slices.values()]
        assert sum(state in MAY_RUN for state in states) <= 2, states
        # Of those that are to stop, one serves on for a while.
        for key, put in list(each.slices.items()):
            if put.value.state in NEXT and (put.value.state is not S.UNLOADING or put.at + 3.0 <= each.now):
                each.report(key, NEXT[put.value.state])
        each.tick(1.0)
    assert phase(each) is RolloutPhase.COMPLETE
    assert count(each, APP) == 2


def test_a_revert_that_waits_says_for_what() -> None:
    each = running(3, 3, capacity=1)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    stays = RolloutSettings(source="1.0.0", max_unavailable=0, abort=True)
    each.apply(NEXT_VERSION, blueprint(rollout=stays))
    later(each, 600.0)
    assert phase(each) is RolloutPhase.REVERTING
    found, why = condition(each, NEXT_VERSION)
    assert found is Condition.PROGRESSING
    assert why.startswith("going back to 1.0.0: aborted after it was complete; 0 of 3 old instances healthy; ")
    assert why.endswith("no room for an old one beside the new ones")


def test_a_revert_to_what_does_not_come_up_any_more_says_so_and_keeps_what_serves() -> None:
    each = running(2)
    each.apply(NEXT_VERSION, blueprint(2, rollout=FROM))
    finish(each)
    each.apply(NEXT_VERSION, blueprint(2, rollout=RolloutSettings(source="1.0.0", abort=True)))
    each.settle()
    for _ in range(4):
        each.answer()
        each.settle()
        for key in [key for key, put in each.slices.items() if key.artifact == APP and put.value.state is S.ACTIVATING]:
            each.report(key, S.FAILED, fatal=True)
        each.settle()
    later(each, 1.0)
    assert phase(each) is RolloutPhase.REVERTING
    why = condition(each, NEXT_VERSION)[1]
    assert why.endswith("; 0 of 2 old instances healthy; 1 old instance failed or restarted: it broke")
    rollout = status(each, NEXT_VERSION).rollout
    assert rollout
    assert rollout.stuck
    assert count(each, NEXT_VERSION) == 2


# What goes wrong


def fail_new(each: World, *, fatal: bool = False) -> None:
    key = next(key for key, put in each.slices.items() if key.artifact == NEXT_VERSION and put.value.state is S.ACTIVE)
    each.report(key, S.FAILED, fatal=fatal)
    each.settle()


@pytest.mark.parametrize(
    ("troubled", "troubles", "told"),
    [
        (1, 1, "1 new instance failed or restarted: it broke"),
        (1, 2, "1 new instance failed or restarted twice: it broke"),
        (1, 3, "1 new instance failed or restarted 3 times: it broke"),
        (2, 2, "2 new instances failed or restarted: it broke"),
        (2, 5, "2 new instances failed or restarted, 5 times in all: it broke"),
    ],
)
def test_how_often_instances_failed_is_told(troubled: int, troubles: int, told: str) -> None:
    new = SideHealth(live=2, troubled=troubled, troubles=troubles, troubled_since=0.0, reason="it broke")
    verdict = judge(new, SideHealth(), 10.0, 60.0)
    assert (verdict.gate, verdict.reason) == (Gate.FAIL, told)


def test_why_the_program_ended_is_told_also_of_an_instance_that_is_up_again() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    key = next(key for key, put in each.slices.items() if key.artifact == NEXT_VERSION and put.value.state is S.ACTIVE)
    for reason in ("it broke 1", "it broke 2"):
        each.end(key, reason)
        each.report(key, S.ACTIVE)
    each.settle()
    assert condition(each, NEXT_VERSION)[1] == "1 new instance failed or restarted twice: it broke 2"


def test_a_version_that_fails_twice_is_taken_back_once() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    fail_new(each)
    assert phase(each) is RolloutPhase.ROLLING
    later(each, 1.0)
    fail_new(each)
    finish(each)
    later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.REVERTED
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "1 new instance failed or restarted twice: it broke")
    assert condition(each) == (Condition.READY, "")
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    later(each, 60.0)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0), "the same is not tried again"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM, LEVEL="debug"))
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_a_variable_that_breaks_it_is_taken_back() -> None:
    each = running(LEVEL="info")
    each.apply(APP, blueprint(LEVEL="debug"))
    each.run_down()
    key = next(key for key, put in each.slices.items() if put.value.overrides == Overrides({"LEVEL": "debug"}))
    each.report(key, S.FAILED, fatal=True)
    each.settle()
    finish(each)
    later(each, MIN_HEALTHY)
    assert env_of(each) == [{"LEVEL": "info"}] * 3
    assert condition(each)[0] is Condition.REVERTED
    each.apply(APP, blueprint(5, LEVEL="debug"))
    each.run_down()
    assert env_of(each) == [{"LEVEL": "info"}] * 5, "the number of instances holds for what is in force"


def test_what_is_never_healthy_is_taken_back_at_its_deadline() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", deadline=60.0)))
    each.settle()
    for _ in range(30):
        for key in [key for key in each.slices if key.artifact == NEXT_VERSION]:
            if each.slices[key].value.state in NEXT and each.slices[key].value.state is not S.ACTIVATING:
                each.report(key, NEXT[each.slices[key].value.state])
        each.tick(2.5)
        each.settle()
    finish(each)
    assert condition(each, NEXT_VERSION) == (Condition.REVERTED, "no instance became healthy for 60 s")


def test_where_none_are_wanted_none_can_fail() -> None:
    each = running(2, 1)
    each.apply(APP, blueprint(0, LEVEL="debug"))
    each.report(next(iter(each.slices)), S.FAILED, copy=False)  # it is not known any more what it was started with
    each.now += 60.0
    each.boot(["nodes", "blueprints", "slices", "statuses"])
    each.tick()
    each.lead()
    finish(each)
    each.apply(APP, blueprint(2, LEVEL="debug"))
    finish(each)
    later(each, MIN_HEALTHY)
    assert env_of(each) == [{"LEVEL": "debug"}] * 2
    assert condition(each)[0] is Condition.READY


def test_the_deadline_counts_from_the_last_that_became_healthy() -> None:
    each = running(4, 4)
    slow = Blueprint(4, None, 40.0, rollout=RolloutSettings(source="1.0.0", deadline=60.0))
    each.apply(NEXT_VERSION, slow)
    for _ in range(20):
        later(each, 10.0)
    assert phase(each) is RolloutPhase.COMPLETE, "each took 40 s, and all of them much longer than the deadline"


def test_what_is_the_same_is_not_gone_back_to_and_that_is_said() -> None:
    side = Side("1.0.0", 1, digest="d")
    rolling = Rollout(side, replace(side, revision=2), RolloutPhase.ROLLING)
    found = revert(rolling, "it broke", 5.0)
    assert (found.phase, found.since) == (RolloutPhase.FAILED, 5.0)
    assert found.reason == "it broke; the version before is the same, so there is nothing to go back to"
    assert revert(found, "it broke again", 6.0) is found


def test_a_new_leader_goes_on_in_the_middle() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    for _ in range(40):
        each.settle()
        each.answer()
        each.boot()
        each.lead()
        each.settle()
        each.tick(1.0)
        assert count(each, APP) + count(each, NEXT_VERSION) >= 3
    finish(each)
    assert phase(each) is RolloutPhase.COMPLETE
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


# Checks

CHECK = Check(nats="health", count=2)


def checked(each: World, outcome: CheckOutcome, times: int = 1) -> None:
    """The check that is wanted comes to this, so many times."""
    for _ in range(times):
        each.run_down()
        (service, run), *_ = each.outbox.checks.items()
        each.route(CheckResult(service, run.series, 0, CHECK, outcome, 0.0, "errors are up", each.now))
    each.run_down()


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_checks_have_to_pass_with_the_first_new_instance_and_with_all(instances: int) -> None:
    """Of a rolling release, too: until then old instances serve, however long the checks say nothing."""
    each = running(instances)
    each.apply(NEXT_VERSION, blueprint(instances, rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    for _ in range(100):
        later(each, MIN_HEALTHY)
        assert phase(each) is RolloutPhase.ROLLING
        assert count(each, NEXT_VERSION) <= 1
        assert count(each, APP) >= max(instances - 1, 1)
    assert count(each, NEXT_VERSION) == 1
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "NATS request health: no result yet")
    checked(each, CheckOutcome.PASS, 2)
    for _ in range(20):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, instances)
    assert phase(each) is RolloutPhase.ROLLING
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "NATS request health: no result yet")
    checked(each, CheckOutcome.PASS, 2)
    assert phase(each) is RolloutPhase.COMPLETE
    assert not each.outbox.checks, "nothing is checked any more"


def test_what_checks_said_before_new_instances_served_does_not_count() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    checked(each, CheckOutcome.PASS, 2)
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert phase(each) is RolloutPhase.ROLLING
    assert condition(each, NEXT_VERSION)[1] == "NATS request health: no result yet"


def test_only_healthy_instances_are_asked_themselves() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=RolloutSettings(source="1.0.0", checks=(CHECK,))))
    each.run_down()
    (new,) = (key for key in each.slices if key.artifact == NEXT_VERSION)
    each.store(new, replace(each.slices[new].value, address="10.0.0.1", port=80))
    each.settle()
    (run,) = each.outbox.checks.values()
    assert run.instances == (), "it came up just now"
    later(each, MIN_HEALTHY)
    (run,) = each.outbox.checks.values()
    assert run.instances == (("10.0.0.1", 80),)


def test_checks_that_fail_take_a_canary_back_while_it_pauses() -> None:
    each = running()
    settings = RolloutSettings(source="1.0.0", kind=RolloutKind.CANARY, steps=steps(10, "approve"), checks=(CHECK,))
    each.apply(NEXT_VERSION, blueprint(rollout=settings))
    each.run_down()
    later(each, MIN_HEALTHY)
    checked(each, CheckOutcome.PASS, 2)
    assert phase(each) is RolloutPhase.PAUSED
    checked(each, CheckOutcome.FAIL, 2)
    finish(each)
    later(each, MIN_HEALTHY)
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    assert "errors are up" in condition(each, NEXT_VERSION)[1]
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)


# Managers that do not know rollouts


def test_nothing_begins_before_every_manager_knows_rollouts() -> None:
    each = running()
    each.join(n(9), Registration(version="0.1", capacity=0))
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    later(each, 60.0)
    assert record(each) is None
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION)[0] is Condition.PROGRESSING
    assert "n9" in condition(each, NEXT_VERSION)[1]
    each.join(n(9), Registration(version="0.2", capacity=0, features=FEATURES))
    each.run_down()
    finish(each)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)


def test_after_the_end_of_a_rollout_no_manager_is_waited_for() -> None:
    each = running()
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    finish(each)
    each.join(n(9), Registration(version="0.1", capacity=0))
    later(each, 60.0)
    assert condition(each, NEXT_VERSION) == (Condition.READY, "")
    assert condition(each) == (Condition.SUPERSEDED, "replaced by 1.1.0")


def test_a_changed_variable_waits_for_managers_too() -> None:
    each = running()
    each.join(n(9), Registration(version="0.1", capacity=0))
    each.apply(APP, blueprint(5, LEVEL="debug"))
    each.run_down()
    later(each, 60.0)
    assert env_of(each) == [{}] * 5
    assert "n9" in condition(each)[1]


# Contents


def test_what_is_pushed_over_replaces_what_runs() -> None:
    each = running()
    for key in list(each.slices):
        each.store(key, replace(each.slices[key].value, content="old"))  # as agents tell
    each.run_down()
    each.manager.cluster.contents[APP] = "new"
    each.manager.state.touch(APP)
    finish(each)
    assert {put.value.content for put in each.slices.values()} == {"new"}
    assert phase(each) is RolloutPhase.COMPLETE


def test_a_version_whose_content_became_known_late_is_taken_back_all_the_same_and_not_tried_again() -> None:
    each = running()
    each.manager.cluster.contents[APP] = "old"
    each.apply(NEXT_VERSION, blueprint(rollout=FROM))
    each.run_down()
    each.manager.cluster.contents[NEXT_VERSION] = "old"  # the same bytes, under another name and with another manifest
    fail_new(each, fatal=True)
    finish(each)
    later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (3, 0)
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    later(each, 60.0)
    assert phase(each) is RolloutPhase.REVERTED


# Groups

FRIEND = Artifact("org.example", "friend", "1.0.0")
NEXT_FRIEND = Artifact("org.example", "friend", "1.1.0")
TOGETHER = RolloutSettings(source="1.0.0", kind=RolloutKind.CANARY, steps=steps(34, "approve"), group="shop")


def both(rollout: RolloutSettings = TOGETHER) -> World:
    """Two services of one group, each with a rollout under way."""
    each = running()
    each.apply(FRIEND, blueprint())
    each.run_down()
    later(each, MIN_HEALTHY)
    each.apply(NEXT_VERSION, blueprint(rollout=rollout))
    each.apply(NEXT_FRIEND, blueprint(rollout=rollout))
    each.run_down()
    return each


def test_services_of_a_group_advance_together() -> None:
    each = both()
    friend = next(key for key in each.slices if key.artifact == NEXT_FRIEND)
    each.end(friend)
    each.settle()  # it has to come up again, and the other one is not to go on before it is healthy
    later(each, MIN_HEALTHY - 1.0)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.ROLLING,) * 2  # type: ignore[union-attr]
    for _ in range(4):
        later(each, MIN_HEALTHY)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.PAUSED,) * 2  # type: ignore[union-attr]
    together = [order for order in each.decided if len(order.records) == 2]
    assert {each.phase for order in together for each in order.records.values() if each} >= {RolloutPhase.PAUSED}
    each.apply(NEXT_VERSION, blueprint(rollout=replace(TOGETHER, approved=1)))
    later(each, 60.0)
    assert phase(each) is RolloutPhase.PAUSED, "the other one is not approved"
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "waiting for org.example:friend of its group")
    each.apply(NEXT_FRIEND, blueprint(rollout=replace(TOGETHER, approved=1)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [0, 0, 3, 3]


def test_a_step_of_a_group_that_is_approved_before_is_not_gone_ahead_to() -> None:
    each = both()
    each.apply(NEXT_VERSION, blueprint(rollout=replace(TOGETHER, approved=1)))
    for _ in range(5):
        later(each, MIN_HEALTHY)
    assert (phase(each), record(each, FRIEND).phase) == (RolloutPhase.PAUSED,) * 2  # type: ignore[union-attr]
    assert (count(each, APP), count(each, NEXT_VERSION)) == (2, 1)
    each.apply(NEXT_FRIEND, blueprint(rollout=replace(TOGETHER, approved=1)))
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [0, 0, 3, 3]


def test_services_of_a_group_end_together_although_one_has_fewer_steps() -> None:
    each = both(replace(FROM, group="shop"))
    each.apply(NEXT_FRIEND, blueprint(rollout=TOGETHER))
    for _ in range(10):
        later(each, MIN_HEALTHY)
    assert (count(each, APP), count(each, NEXT_VERSION)) == (0, 3)
    assert condition(each, NEXT_VERSION) == (Condition.PROGRESSING, "waiting for org.example:friend of its group")
    friend = next(key for key in each.slices if key.artifact == NEXT_FRIEND)
    each.report(friend, S.FAILED, fatal=True)
    each.settle()
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]


def test_services_of_a_group_go_back_together() -> None:
    each = both()
    later(each, MIN_HEALTHY)
    fail_new(each, fatal=True)
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]
    assert condition(each, NEXT_VERSION)[0] is Condition.REVERTED
    assert condition(each, NEXT_FRIEND) == (
        Condition.REVERTED,
        "org.example:slice of its group goes back: 1 new instance failed or restarted: it broke",
    )


def test_a_new_blueprint_that_is_deleted_takes_its_whole_group_back() -> None:
    each = both()
    later(each, MIN_HEALTHY)
    each.drop(NEXT_VERSION)
    finish(each)
    later(each, MIN_HEALTHY)
    assert [count(each, one) for one in (APP, FRIEND, NEXT_VERSION, NEXT_FRIEND)] == [3, 3, 0, 0]
    assert condition(each, NEXT_FRIEND)[0] is Condition.REVERTED
