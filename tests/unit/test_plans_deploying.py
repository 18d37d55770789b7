"""Which edit a deployment comes to, as a service stands, and what is refused because it makes no sense."""

from __future__ import annotations

import msgspec
import pytest

from cdm.cli.hand import retrying, rolling_back
from cdm.cli.plans import scaling
from cdm.errors import InvalidBlueprint, UsageError
from cdm.model.edit import canary_way
from cdm.model.keys import encode_artifact
from cdm.model.record import RolloutPhase
from cdm.model.status import Condition, Status
from tests.unit import service_bucket
from tests.unit.service_bucket import NOW, WEB, Bucket, deploy, refused, written

# Fixtures.
one, two = service_bucket.one, service_bucket.two


def test_the_first_version_of_a_service_is_one_instance_unless_a_number_is_said() -> None:
    edit = deploy(Bucket(), "1")
    assert (edit.raw, edit.version.revision, edit.source) == (b"1", 0, None)
    assert deploy(Bucket(), "1", instances=4).raw == b"4"
    assert written(deploy(Bucket(), "1", way=canary_way(["10"])))["rollout"]["kind"] == "canary"


def test_a_new_version_gets_number_and_settings_of_the_one_in_force(one: Bucket) -> None:
    edit = deploy(one, "2")
    assert edit.source == "1"
    assert written(edit) == {"instances": 3, "env": {"A": "x"}, "rollout": {"from": "1", "max_surge": 2}}
    assert written(deploy(one, "2", instances=5))["instances"] == 5
    canary = written(deploy(one, "2", way=canary_way(["10", "5m"])))["rollout"]
    assert canary == {"from": "1", "max_surge": 2, "kind": "canary", "steps": [{"weight": 10}, {"pause": "5m"}]}
    with pytest.raises(InvalidBlueprint, match="steps"):
        deploy(one, "2", way=canary_way(["50", "10"]))


def test_what_an_operator_said_of_the_last_rollout_is_not_taken_over(one: Bucket) -> None:
    rollout = {"from": "0", "paused": True, "approved": 3, "deadline": "5m"}
    one.put("1", {"instances": 3, "rollout": rollout})
    assert written(deploy(one, "2"))["rollout"] == {"from": "1", "deadline": "5m"}


def test_an_older_blueprint_of_the_version_keeps_its_settings_and_gets_the_number_of_now(one: Bucket) -> None:
    one.put("0", {"instances": 9, "args": ["old"]})
    one.put("0", None)
    edit = deploy(one, "0")
    assert written(edit) == {"instances": 3, "args": ["old"], "rollout": {"from": "1"}}
    assert edit.version.revision == 3, "the marker of its removal"


def test_what_is_in_force_already_is_only_changed_as_is_said(one: Bucket) -> None:
    assert not deploy(one, "1").changes
    edit = deploy(one, "1", instances=5, way={"kind": "blue-green"})
    assert written(edit)["rollout"] == {"max_surge": 2, "kind": "blue-green"}
    assert (edit.source, written(edit)["restarted"]) == (None, "then")


def test_which_version_is_replaced_is_asked_for_where_several_are_in_force(one: Bucket) -> None:
    one.put("2", 2)
    with refused(r"--from VERSION \(in force: 1, 2\)"):
        deploy(one, "3")
    assert deploy(one, "3", source="2").source == "2"
    with pytest.raises(UsageError, match=r"web:4 is not in force \(in force: 1, 2\)"):
        deploy(one, "3", source="4")
    with pytest.raises(UsageError, match="the version itself"):
        deploy(one, "3", source="3")
    one.put("1", 0)
    assert deploy(one, "3").source == "2", "a version without instances replaces nothing, and is not replaced"


def test_what_a_leader_has_yet_to_read_counts_already(one: Bucket) -> None:
    edit = deploy(one, "2")
    one.put("2", edit.raw)
    assert deploy(one, "3").source == "2"
    with refused(r"web:1 is being replaced \(in force: 2\)"):
        scaling(one.look, WEB.version("1"), 5)
    one.put("1", 4)
    with refused(r"\(in force: 1, 2\)"):
        deploy(one, "3")


def test_a_third_version_replaces_the_second_in_the_middle(two: Bucket) -> None:
    assert deploy(two, "3").source == "2"
    with refused("1 -> 2 is under way; `cdm rollback acme.shop:web` goes back to 1"):
        deploy(two, "1")
    with pytest.raises(UsageError, match="not in force"):
        deploy(two, "3", source="1")


def test_the_version_that_is_being_rolled_out_is_only_changed(two: Bucket) -> None:
    two.put("2", {"instances": 5, "rollout": {"from": "1", "paused": True}})
    for source in (None, "1"):
        edit = deploy(two, "2", source=source, instances=6)
        assert written(edit) == {"instances": 6, "rollout": {"from": "1", "paused": True}}


def test_after_a_rollout_the_new_version_is_the_one_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    assert deploy(two, "3").source == "2"
    edit = deploy(two, "1", instances=None)
    assert (edit.source, written(edit)["rollout"]) == ("2", {"from": "2", "max_surge": 2})


def test_what_was_taken_back_is_not_deployed_as_it_is(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTED, reason="boom")
    two.status("1", Condition.READY)
    two.status("2", Condition.REVERTED, reason="boom")
    with refused("taken back: boom; `cdm rollout retry acme.shop:web` tries it again"):
        deploy(two, "2")
    assert deploy(two, "3").source == "1"
    two.rollout("1", "1", RolloutPhase.COMPLETE)
    with refused("`cdm rollback acme.shop:web --to 2` has it serve again"):
        deploy(two, "2")


def test_a_refused_blueprint_of_what_was_taken_back_is_not_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTED, reverted={"2": "2"})
    two.status("1", Condition.READY, desired=3)
    two.status("2", Condition.REVERTED, reason="boom")
    two.put("2", {"instances": 3, "replicas": 3})
    assert [each.version for each in two.look.serving] == ["1"], "before a leader has read it"
    name = encode_artifact(WEB.version("2"))
    two.statuses[name] = Status(Condition.INVALID, "replicas", observed_revision=3, in_force_revision=2)
    assert [each.version for each in two.look.serving] == ["1"]
    assert deploy(two, "3").source == "1"
    with refused("2 was taken back already, and 1 serves"):
        rolling_back(two.look, None, NOW)
    with refused("web:2 is refused, so it is not edited, .*: replicas"):
        deploy(two, "2")
    with refused("web:2 is refused, so it is not edited, .*: replicas"):
        retrying(two.look, NOW)
    two.statuses[name] = msgspec.structs.replace(two.statuses[name], desired=3)
    assert [each.version for each in two.look.serving] == ["1", "2"], "what is in force of it wants instances"


def test_settings_that_were_aborted_before_they_began_leave_their_version_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.put("2", {"instances": 3, "args": ["-v"], "rollout": {"from": "1", "abort": True}})
    two.status("2", Condition.REVERTED, reason="aborted before it began", desired=3)
    assert [each.version for each in two.look.serving] == ["2"]


def test_a_blueprint_that_is_refused_is_not_built_upon(one: Bucket) -> None:
    one.put("1", {"instances": 3, "replicas": 3})
    for version in ("1", "2"):
        with refused(
            "web:1 is refused, .*: replicas: there is no such field.* nats kv put blueprints acme.shop/web/1 "
        ):
            deploy(one, version)
    with refused("replicas"):
        scaling(one.look, WEB.version("1"), 4)
