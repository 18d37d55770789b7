"""Which edit a rollback comes to, as a service stands, and what is said where there is nothing to go back to."""

from __future__ import annotations

import msgspec
import pytest

from cdm.cli.hand import rolling_back
from cdm.cli.plans import Goal, restarting
from cdm.model.blueprint import Overrides
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rules import Needs
from cdm.model.status import Condition
from cdm.model.template import Template
from tests.unit import service_bucket
from tests.unit.service_bucket import NOW, WEB, Bucket, deploy, refused, written

# Fixtures.
one, two = service_bucket.one, service_bucket.two


def test_a_rollback_in_the_middle_is_an_abort(two: Bucket) -> None:
    for to in (None, "1"):
        edit = rolling_back(two.look, to, NOW)
        assert (edit.version.version, edit.goal, written(edit)["rollout"]["abort"]) == ("2", Goal.BACK, True)
    with refused("web:2 is in force already"):
        rolling_back(two.look, "2", NOW)
    two.put("0", 9)
    two.put("0", None)
    third = rolling_back(two.look, "0", NOW)
    assert (third.source, written(third)) == ("2", {"instances": 3, "rollout": {"from": "2"}})
    two.rollout("1", "2", RolloutPhase.REVERTING)
    with refused("is going back to 1 already"):
        rolling_back(two.look, None, NOW)
    two.record = msgspec.structs.replace(two.record, superseded={}) if two.record else None
    assert deploy(two, "3").source == "1", "what is being taken back is not in force"


def test_a_rollback_after_completion_goes_to_what_the_record_names(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    for to in (None, "1"):
        edit = rolling_back(two.look, to, NOW)
        assert (edit.version.version, edit.goal, written(edit)["rollout"]["abort"]) == ("2", Goal.BACK, True)
    assert two.record is not None
    record, same = two.record, msgspec.structs.replace(two.record.source, version="2", revision=2)
    two.record = msgspec.structs.replace(record, target=same)
    assert rolling_back(two.look, None, NOW).goal == Goal.BACK, "the same bytes may have another manifest"
    two.record = record
    two.put("2", {"instances": 7, "rollout": {"from": "1"}})
    two.put("1", None)
    again = rolling_back(two.look, None, NOW)
    assert (again.version.version, again.goal, again.source) == ("1", Goal.FORWARD, "2")
    assert (written(again)["instances"], written(again)["env"]) == (7, {"A": "x"})


OLD, NEW = Overrides({"A": "x"}), Overrides({"A": "y"}, ("-v",))
"""Settings of the first version: those that it had, and those that it has now."""


@pytest.fixture
def changed(one: Bucket) -> Bucket:
    """The settings of the only version were changed, and the new ones are in force."""
    one.put("1", {"instances": 5, "env": {"A": "y"}, "args": ["-v"], "rollout": {"approved": 1, "max_surge": 2}})
    one.record = Rollout(Side("1", 1, Template(OLD, "then")), Side("1", 2, Template(NEW)), RolloutPhase.COMPLETE)
    return one


BACK = {"instances": 5, "env": {"A": "x"}, "rollout": {"max_surge": 2}}


def test_a_rollback_of_settings_writes_those_that_there_were(changed: Bucket) -> None:
    assert written(rolling_back(changed.look, None, NOW)) == BACK
    changed.record = None
    edit = rolling_back(changed.look, None, NOW)
    assert written(edit) == BACK, "the history tells, too"
    assert edit.said == "1 with the settings that it had before: env.A changed, args removed"
    old, new = Template(OLD), Template(NEW)
    changed.record = Rollout(Side("1", 1, new, "aa"), Side("1", 2, new, "bb"), RolloutPhase.COMPLETE)
    assert rolling_back(changed.look, None, NOW).goal is Goal.BACK, "no blueprint says which content"
    changed.record = Rollout(Side("1", 2, new), Side("1", 1, old), RolloutPhase.REVERTED)
    with refused("what was changed of 1 was taken back already, and 1 serves as before"):
        rolling_back(changed.look, None, NOW)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_rollback_puts_needs_back_and_leaves_where_instances_go(one: Bucket, recorded: bool) -> None:
    was = {"instances": 3, "env": {"A": "x"}, "needs": {"cpu": 1.0, "memory": "1Gi"}}
    now = {"instances": 4, "require": ["zone = a"], "env": {"A": "x"}, "needs": {"cpu": 9}, "restarted": "then"}
    for fields in (was, now):
        one.put("1", fields)
    if recorded:
        old, new = Needs(1.0, 2**30), Needs(9.0)
        first, second = (Side("1", 2, Template(OLD, None, needs)) for needs in (old, new))
        one.record = Rollout(first, second, RolloutPhase.COMPLETE)
    back = rolling_back(one.look, None, NOW)
    assert written(back) == {**now, "needs": was["needs"]}
    assert back.said.startswith("1 with the settings that it had before: needs.")
    one.put("1", {**now, "needs": {"cpu": 9}, "env": {"A": "y"}})
    one.record = None
    assert written(rolling_back(one.look, None, NOW)) == now, "as it was typed"
    one.put("1", {name: value for name, value in now.items() if name != "needs"})
    assert written(rolling_back(one.look, None, NOW))["needs"] == {"cpu": 9.0}


@pytest.mark.parametrize("phase", [RolloutPhase.COMPLETE, RolloutPhase.REVERTED])
def test_a_restart_is_nothing_to_go_back_to_and_a_rollback_keeps_it(changed: Bucket, phase: RolloutPhase) -> None:
    for stamp in ("once", "twice"):
        changed.put("1", restarting(changed.look, WEB.version("1"), stamp).raw)
    once, twice = (Side("1", 1, Template(NEW, stamp), "content") for stamp in ("once", "twice"))
    changed.record = Rollout(once, twice, phase, before=Side("1", 1, Template(OLD), "content"))
    back = rolling_back(changed.look, None, NOW)
    assert written(back) == {**BACK, "restarted": "twice"}

    # Back and forth: what changes are the settings, and never whether it was restarted.
    changed.put("1", back.raw)
    changed.record = Rollout(twice, Side("1", 1, Template(OLD, "twice"), "content"), RolloutPhase.COMPLETE)
    forth = rolling_back(changed.look, None, NOW)
    assert written(forth) == {**BACK, "env": {"A": "y"}, "args": ["-v"], "restarted": "twice"}
    changed.record = msgspec.structs.replace(
        changed.record, reverted={"1": f"{Template(NEW, 'twice').digest}/content"}, phase=RolloutPhase.COMPLETE
    )
    assert written(rolling_back(changed.look, None, NOW))["restarted"] == NOW, "it was taken back as it was: a new try"


def test_after_a_restart_a_rollback_goes_to_what_was_whole_before_and_to_nothing_else(two: Bucket) -> None:
    """The second version was replaced by the third in the middle of its rollout: it never was whole."""
    two.put("3", {"instances": 3, "rollout": {"from": "2"}})
    two.put("3", restarting(two.look, WEB.version("3"), "once").raw)
    two.status("2", Condition.SUPERSEDED)
    two.status("3", Condition.READY, desired=3)
    sides = Side("3", 3, Template()), Side("3", 4, Template(restarted="once"))
    superseded = {"1": 1, "2": 2}
    two.record = Rollout(*sides, RolloutPhase.COMPLETE, superseded=superseded)
    with refused(r"what acme.shop:web was before 3 is not known; .* --to VERSION"):
        rolling_back(two.look, None, NOW)
    was = Template(OLD)
    two.record = Rollout(
        *sides, RolloutPhase.COMPLETE, superseded=superseded, before=Side("1", 1, was, None, was.digest)
    )
    back = rolling_back(two.look, None, NOW)
    assert (back.version.version, back.source, written(back)["env"]) == ("1", "3", {"A": "x"})
    # Settings of the first version that were replaced in the middle, too, are none to go back to.
    middle = two.put("1", {"instances": 3, "env": {"A": "never whole"}})
    two.record = msgspec.structs.replace(two.record, superseded={"1": middle, "2": 2})
    for _ in range(2):
        assert written(rolling_back(two.look, None, NOW))["env"] == {"A": "x"}
        two.put("1", None)


def test_content_that_was_other_before_a_restart_is_gone_back_to_by_pushing_it_again(one: Bucket) -> None:
    one.put("1", restarting(one.look, WEB.version("1"), "once").raw)
    once, twice = (Side("1", 2, Template(OLD, stamp), "new") for stamp in (None, "once"))
    one.record = Rollout(once, twice, RolloutPhase.COMPLETE, before=Side("1", 1, Template(OLD), "old"))
    with refused("web:1 had other content, .* `cdm deploy acme.shop:web:1 PATH --force`"):
        rolling_back(one.look, None, NOW)


def test_a_rollback_that_leads_nowhere_says_so(one: Bucket) -> None:
    with refused("no version of acme.shop:web is in force"):
        gone = Bucket()
        gone.put("1", None)
        rolling_back(gone.look, None, NOW)
    with refused("nothing to go back to: 1 is the only version of acme.shop:web"):
        rolling_back(one.look, None, NOW)
    with refused("web:1 is in force already"):
        rolling_back(one.look, "1", NOW)
    with refused("web:0.9 has no blueprint, and none is kept"):
        rolling_back(one.look, "0.9", NOW)
    one.put("0", 0)
    with refused(r"before 1 is not known; .* --to VERSION \(versions with a blueprint, or that had one: 0, 1\)"):
        rolling_back(one.look, None, NOW)
    one.put("2", 2)
    told = r"several versions of acme.shop:web are in force, each on its own \(in force: 1, 2\): `cdm deploy "
    for to, way in ((None, "web:2 --from 1`"), ("1", "web:1 --from 2`")):
        with refused(f"{told}acme.shop:{way}"):
            rolling_back(one.look, to, NOW)


def test_what_was_put_beside_its_successor_is_replaced_again_by_the_same_blueprint(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    two.put("1", 3)
    again = deploy(two, "2", source="1")
    assert (again.raw, again.changes, again.source) == (two.look.versions["2"].raw, True, "1")


def test_a_version_is_put_again_though_its_blueprint_says_already_what_it_is_to_replace(two: Bucket) -> None:
    """Back and forth between two versions: each names the other, and a restart hides the way back."""
    two.put("1", {"instances": 3, "rollout": {"from": "2"}})
    two.put("2", {"instances": 3, "rollout": {"from": "1"}, "restarted": "once"})
    two.status("2", Condition.READY, desired=3)
    sides = Side("2", 3), Side("2", 4, Template(restarted="once"))
    two.record = Rollout(*sides, RolloutPhase.COMPLETE, superseded={"1": 3}, before=Side("1", 3))
    back = rolling_back(two.look, None, NOW)
    assert (back.version.version, back.raw, back.changes) == ("1", two.look.versions["1"].raw, True)


def test_without_a_record_the_blueprint_says_what_it_replaced(one: Bucket) -> None:
    one.put("2", {"instances": 2, "rollout": {"from": "1"}})
    one.put("1", None)
    assert rolling_back(one.look, None, NOW).version.version == "1"


def test_after_a_revert_only_a_named_version_is_gone_back_to_and_one_that_was_taken_back_is_another_try(
    two: Bucket,
) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTED)
    two.status("1", Condition.READY)
    two.status("2", Condition.REVERTED)
    with refused("2 was taken back already, and 1 serves"):
        rolling_back(two.look, None, NOW)
    edit = rolling_back(two.look, "2", NOW)
    assert (edit.source, written(edit)["restarted"]) == ("1", NOW)
