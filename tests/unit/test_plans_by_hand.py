"""Which edit it comes to when an operator pauses, approves, aborts or retries a rollout, scales or restarts."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.cli.hand import aborting, approving, awaited, pausing, retrying, rolling_back
from cdm.cli.plans import Goal, restarting, scaling
from cdm.errors import ServiceMissing
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition
from tests.unit import service_bucket
from tests.unit.service_bucket import NOW, WEB, Bucket, begun, deploy, refused, written

# Fixtures.
one, two = service_bucket.one, service_bucket.two


@pytest.mark.parametrize(
    "plan",
    [
        aborting,
        approving,
        lambda look: pausing(look, on=True),
        lambda look: retrying(look, NOW),
        lambda look: rolling_back(look, None, NOW),
        lambda look: rolling_back(look, "1", NOW),
    ],
)
def test_of_a_service_of_which_nothing_is_known_every_command_says_the_same(plan: Any) -> None:
    with pytest.raises(ServiceMissing, match=r"^there is no blueprint of acme\.shop:web$"):
        plan(Bucket().look)


# The operator's hand


def test_pausing_and_resuming_edit_the_version_that_takes_over(two: Bucket) -> None:
    edit = pausing(two.look, True)
    assert (edit.version.version, written(edit)["rollout"]["paused"]) == ("2", True)
    assert not pausing(two.look, False).changes
    two.put("2", edit.raw)
    assert not pausing(two.look, True).changes
    assert "paused" not in written(pausing(two.look, False))["rollout"]


def test_only_what_waits_for_an_approval_is_approved(two: Bucket) -> None:
    with refused("1 -> 2 does not wait for an approval"):
        approving(two.look)
    two.rollout("1", "2", RolloutPhase.PAUSED, step=1)
    assert awaited(two.look) == 1
    with refused("waits for approval 1: `cdm rollout approve acme.shop:web`"):
        pausing(two.look, False)
    edit = approving(two.look)
    assert written(edit)["rollout"]["approved"] == 1
    two.put("2", edit.raw)
    with refused("does not wait"):  # the leader has yet to see it: a second one would pass the next pause
        approving(two.look)


def test_approvals_that_a_blueprint_brought_along_are_not_counted(two: Bucket) -> None:
    way = {"from": "1", "kind": "canary", "steps": [{"weight": 10}, {"pause": "approve"}], "approved": 1}
    two.put("2", {"instances": 3, "rollout": way})
    two.rollout("1", "2", RolloutPhase.PAUSED, 1, approved=1)
    assert awaited(two.look) == 1
    assert written(approving(two.look))["rollout"]["approved"] == 2


@pytest.mark.parametrize("plan", [lambda look: pausing(look, True), approving])
def test_where_no_rollout_is_under_way_there_is_nothing_to_stop_or_approve(plan: Any, two: Bucket) -> None:
    with refused("no rollout of acme.shop:web is under way"):
        plan(begun().look)
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    with refused(r"is under way \(the last one, 1 -> 2, is complete\)"):
        plan(two.look)
    two.rollout("1", "2", RolloutPhase.REVERTING)
    with refused("is going back to 1"):
        plan(two.look)


def test_an_abort_works_until_the_old_version_is_gone(two: Bucket) -> None:
    two.put("2", {"instances": 3, "rollout": {"from": "1", "paused": True}})
    assert written(aborting(two.look))["rollout"] == {"from": "1", "abort": True}
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    assert aborting(two.look).goal is Goal.BACK
    two.put("1", None)
    with refused("the blueprint of 1 was deleted; `cdm rollback acme.shop:web` puts it again"):
        aborting(two.look)
    for phase, told in ((RolloutPhase.REVERTING, "going back to 1 already"), (RolloutPhase.REVERTED, "was taken back")):
        two.rollout("1", "2", phase)
        with refused(told):
            aborting(two.look)
    with refused("there was no rollout"):
        aborting(begun().look)


def test_only_what_was_taken_back_or_failed_is_tried_again(two: Bucket) -> None:
    with refused("only what was taken back, or failed, is tried again"):
        retrying(two.look, NOW)
    with refused("there was no rollout"):
        retrying(begun().look, NOW)
    two.put("2", {"instances": 3, "rollout": {"from": "1", "abort": True, "approved": 1}})
    two.rollout("1", "2", RolloutPhase.REVERTED)
    assert written(retrying(two.look, NOW)) == {"instances": 3, "rollout": {"from": "1"}, "restarted": NOW}
    two.put("2", None)
    with refused("web:2 was deleted"):
        retrying(two.look, NOW)


def test_what_was_taken_back_last_is_what_is_tried_again(two: Bucket) -> None:
    two.rollout("1", "1", RolloutPhase.REVERTED)
    two.status("1", Condition.READY, desired=3)
    two.put("2", {"instances": 3, "rollout": {"from": "1", "abort": True}})
    two.status("2", Condition.REVERTED, reason="aborted before it began")
    edit = retrying(two.look, NOW)
    assert (edit.version.version, edit.source, edit.said) == ("2", "1", "1 -> 2: once more")
    two.record = None
    assert retrying(two.look, NOW).version.version == "2"
    two.rollout("1", "1", RolloutPhase.FAILED)
    assert retrying(two.look, NOW).version.version == "1", "it failed, and stays: that is under way"
    two.rollout("1", "3", RolloutPhase.ROLLING)
    with refused("is rolling: only what was taken back"):
        retrying(two.look, NOW)


def test_where_there_was_no_rollout_a_way_on_is_named(one: Bucket) -> None:
    with refused("`cdm deploy acme.shop:web:1 PATH --force` has a mended program run, `cdm restart acme.shop:web:1`"):
        retrying(one.look, NOW)


# One version


def test_whether_a_rollout_goes_on_or_back_the_version_that_it_leads_from_is_told(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.PAUSED, step=1)
    for edit in (pausing(two.look, True), approving(two.look), aborting(two.look), rolling_back(two.look, None, NOW)):
        assert (edit.source, edit.version.version) == ("1", "2")


def test_scaling_and_restarting_edit_what_serves(two: Bucket) -> None:
    assert written(scaling(two.look, WEB.version("2"), 5))["instances"] == 5
    assert written(restarting(two.look, WEB.version("2"), NOW))["restarted"] == NOW
    told = r"web:1 is being replaced \(in force: 2\)"
    with refused(told):
        scaling(two.look, WEB.version("1"), 5)
    with refused(told):
        restarting(two.look, WEB.version("1"), NOW)
    with refused("there is no blueprint of acme.shop:web:3.*`cdm deploy acme.shop:web:3 PATH` pushes a program"):
        scaling(two.look, WEB.version("3"), 5)


def test_a_restart_in_the_middle_begins_anew_also_where_the_rollout_was_paused(two: Bucket) -> None:
    two.put("2", {"instances": 3, "rollout": {"from": "1", "paused": True, "approved": 1}})
    assert written(restarting(two.look, WEB.version("2"), NOW))["rollout"] == {"from": "1"}


def test_what_was_replaced_and_is_in_force_again_is_not_replaced_once_more_by_an_edit(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    assert written(scaling(two.look, WEB.version("2"), 5))["rollout"]["from"] == "1"
    two.put("1", 4)
    for edit in (
        scaling(two.look, WEB.version("2"), 5),
        restarting(two.look, WEB.version("2"), NOW),
        deploy(two, "2", instances=6),
    ):
        assert written(edit)["rollout"].keys() == {"kind", "steps"}
    assert not deploy(two, "2").changes
    assert written(scaling(two.look, WEB.version("1"), 5)) == {"instances": 5}


def test_settings_that_were_taken_back_are_not_restarted_by_the_way(one: Bucket) -> None:
    one.rollout("1", "1", RolloutPhase.REVERTED)
    one.status("1", Condition.REVERTED)
    with refused("was changed, and that was taken back"):
        restarting(one.look, WEB.version("1"), NOW)
    assert scaling(one.look, WEB.version("1"), 5).changes
    assert written(retrying(one.look, NOW))["restarted"] == NOW
