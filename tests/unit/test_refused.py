"""A blueprint that is refused: what is told of it, and which one stays in force, also for a leader that begins then."""

from __future__ import annotations

import pytest
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cdm.dispatch.messages import KeyRejected, RejectedKeyRemoved, ValuePut
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import BlueprintKey, LastValidKey, SliceKey, StatusKey
from cdm.model.last_valid import LastValid
from cdm.model.node import FEATURES, SECRETS, Registration, Role
from cdm.model.rollout import RolloutSettings
from cdm.model.secret import SecretForm, SecretRef
from cdm.model.status import Condition, Status
from tests.unit.leading import NAME, running, states, world
from tests.unit.support import APP, n


def test_a_refused_blueprint_changes_nothing_but_its_status() -> None:
    each = running()
    each.refuse(APP, "instances: must be from 0 to 100,000, not -1")
    each.run_down()
    assert each.decided == []
    status = each.statuses[NAME]
    assert status.condition is Condition.INVALID
    assert "not -1" in status.reason
    assert status.in_force_revision < status.observed_revision
    assert (status.desired, status.active) == (3, 3)


def test_a_refused_blueprint_goes_on_being_served() -> None:
    each = running()
    each.refuse(APP)
    each.expire(n(1))
    each.tick(11.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}
    assert each.statuses[NAME].condition is Condition.INVALID


def test_a_blueprint_that_is_mended_is_served() -> None:
    each = running()
    each.refuse(APP)
    each.run_down()
    each.want(APP, 4)
    each.run_down()
    assert states(each) == {"ACTIVE": 4}
    assert each.statuses[NAME].condition is Condition.READY


def test_a_blueprint_that_was_never_valid_is_refused_and_nothing_else() -> None:
    each = world()
    each.refuse(APP, "is empty")
    revision = each.sequence
    each.run_down()
    assert each.decided == []
    assert each.statuses[NAME] == Status(Condition.INVALID, "is empty", observed_revision=revision, term=1)


def test_a_blueprint_that_was_deleted_is_not_recovered_from_a_status_that_is_older() -> None:
    each = running()
    each.step_down()
    each.drop(APP)
    each.refuse(APP)
    each.lead()
    each.run_down()
    assert each.manager.cluster.desired[APP].blueprint is None
    assert each.statuses[NAME].in_force_revision == 0


def test_a_blueprint_under_a_bad_key_is_refused_in_its_status() -> None:
    each = world()
    each.route(KeyRejected(BlueprintKey, "a/b", "not of the form", 7))
    each.settle()
    assert each.statuses["a/b"] == Status(Condition.INVALID, "not of the form", observed_revision=7, term=1)
    each.tick(31.0)
    each.settle()
    assert len(each.told) == 1
    each.route(RejectedKeyRemoved(BlueprintKey, "a/b"))
    each.settle()
    assert each.statuses == {}


def test_a_new_leader_tells_of_bad_keys_too() -> None:
    each = world(lead=False)
    each.route(KeyRejected(BlueprintKey, "a/b", "not of the form", 7))
    each.lead()
    each.settle()
    assert set(each.statuses) == {"a/b"}


def test_bad_slice_keys_are_left_alone() -> None:
    each = running()
    each.route(KeyRejected(SliceKey, "n1", "bad", 900))
    each.route(RejectedKeyRemoved(SliceKey, "n1"))
    each.settle()
    assert each.decided == []
    assert each.told == []


def test_the_last_valid_blueprint_is_recovered() -> None:
    each = running()
    each.refuse(APP)
    each.run_down()
    in_force = each.blueprints[APP][1]
    # Refused ones have pushed the valid one out of the bucket's history.
    each.blueprints[APP] = (None, 0, each.blueprints[APP][2])
    each.boot()
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].in_force_revision == in_force
    each.expire(n(2))
    each.tick(11.0)
    each.run_down()
    assert states(each) == {"ACTIVE": 3}


@pytest.mark.parametrize(
    ("desired", "overrides"),
    [(-1, UNSET), (100_001, UNSET), (3, Overrides(stop_after=-5.0)), (3, Overrides({"no name": "x"}))],
)
def test_a_status_that_cannot_be_does_not_stop_a_leader(desired: int, overrides: Overrides | UnsetType) -> None:
    each = world(lead=False)
    each.sequence = 9
    each.refuse(APP)
    wild = Status(Condition.INVALID, in_force_revision=3, desired=desired, overrides=overrides)
    each.route(ValuePut(StatusKey(NAME), wild, 1))
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].condition is Condition.INVALID


GUARDED = Blueprint(
    3,
    Overrides({"A": "x", "B": SecretRef("b"), "C": SecretRef("c", SecretForm.FILE)}, ("--safe",), 30.0),
    2.5,
    restarted="now",
    drain_delay=1.5,
    after=("g:db",),
    rollout=RolloutSettings(max_surge="50%"),
)


@pytest.mark.parametrize("all_know", [True, False])
def test_a_blueprint_that_is_recovered_is_whole_and_only_older_managers_need_it_in_the_status(all_know: bool) -> None:
    each = running()
    known = tuple(feature for feature in FEATURES if all_know or feature != SECRETS)
    each.join(n(9), Registration(Role.MANAGER, capacity=0, version="0.1", features=known))
    guarded = replace(GUARDED, overrides=Overrides({"A": "x"}, ("--safe",), 30.0))
    each.apply(APP, guarded)
    each.refuse(APP)
    each.run_down()
    each.blueprints[APP] = (None, 0, each.blueprints[APP][2])
    each.boot()
    each.lead()
    each.settle()
    assert each.manager.cluster.desired[APP].blueprint == guarded
    assert (each.statuses[NAME].overrides is UNSET) is all_know
    assert (each.records[LastValidKey(APP)].value.read() == guarded) is all_know, "else it is an older one"
    if not all_know:
        each.join(n(9), Registration(Role.MANAGER, capacity=0, version="0.2", features=FEATURES))
        each.tick(31.0)
        each.settle()
        assert each.statuses[NAME].overrides is each.statuses[NAME].settings is UNSET
        assert each.records[LastValidKey(APP)].value.read() == guarded


def test_a_copy_goes_with_its_blueprint_and_with_each_new_one() -> None:
    each = running()
    for blueprint in (GUARDED, replace(GUARDED, restarted="again"), Blueprint(3)):
        each.apply(APP, blueprint)
        each.run_down()
        copy = each.records[LastValidKey(APP)].value
        assert (copy.revision, copy.read()) == (each.blueprints[APP][1], blueprint)
    each.drop(APP)
    each.run_down()
    assert LastValidKey(APP) not in each.records
    each.store_beside(LastValidKey(APP), LastValid.of(GUARDED, 7))  # deleted while nobody led
    each.boot()
    each.lead()
    each.settle()
    assert LastValidKey(APP) not in each.records
    number = world()
    number.apply(APP, Blueprint(3))
    number.run_down()
    assert not number.records, "the status has all of it"
    assert number.statuses[NAME].blueprint == Blueprint(3)


@pytest.mark.parametrize("revision", [10, 2**60, -1])
def test_a_status_whose_blueprint_is_no_older_than_the_refused_one_is_not_recovered_from(revision: int) -> None:
    """A wild revision would go into commands, which nobody could read then."""
    each = world(lead=False)
    each.sequence = 9
    each.refuse(APP)
    each.route(ValuePut(StatusKey(NAME), Status(Condition.INVALID, in_force_revision=revision, desired=3), 1))
    each.lead()
    each.settle()
    assert each.decided == []
    assert each.statuses[NAME].in_force_revision == 0
