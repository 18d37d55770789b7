"""Rollouts while cdm itself is upgraded, in virtual time: what older leaders loaded, and managers that are older."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from msgspec.structs import replace

from cdm.dispatch.messages import Cause, LeaderChange, ValuePut
from cdm.model.content import Description
from cdm.model.keys import ContentKey, encode_artifact
from cdm.model.node import FEATURES, Registration, Role
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition
from tests.unit.rollout_world import (
    FROM,
    MIN_HEALTHY,
    NEXT_VERSION,
    blueprint,
    condition,
    count,
    env_of,
    finish,
    later,
    phase,
    record,
    running,
    status,
)
from tests.unit.support import APP, S, n
from tests.unit.world import World

pytestmark = pytest.mark.quick


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
