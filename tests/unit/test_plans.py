"""Which edit each command comes to, as a service stands, and what is refused because it makes no sense."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from cdm.cli.hand import aborting, approving, awaited, pausing, retrying, rolling_back
from cdm.cli.history import rows
from cdm.cli.judging import End, Ended, Failures, gone_back_to, judged
from cdm.cli.parameters import artifact_of, service_of
from cdm.cli.plans import Edit, Goal, deploying, restarting, scaling
from cdm.cli.rollout import lines_of, older
from cdm.cli.rows import PLAIN
from cdm.cli.service import ServiceLook, VersionLook, look_of
from cdm.cli.wording import alike, in_words, serves_in_words
from cdm.errors import EditRefused, InvalidArtifact, InvalidBlueprint, ServiceMissing, UsageError
from cdm.explain.words import brief
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Overrides
from cdm.model.edit import canary_way, fields_of
from cdm.model.keys import encode_artifact
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.rules import Needs
from cdm.model.status import Condition, RolloutStatus, Status
from cdm.model.template import Template
from cdm.store.revisions import Revision

WEB = Service("acme.shop", "web")
NOW = "2026-11-28T09:00:00Z"


class Bucket:
    """Blueprints, statuses and a record, written one after another."""

    def __init__(self) -> None:
        self.blueprints: list[Revision] = []
        self.statuses: dict[str, Status] = {}
        self.record: Rollout | None = None

    def put(self, version: str, value: object) -> int:
        """Write a blueprint; None deletes it."""
        payload = None if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        number = len(self.blueprints) + 1
        name = encode_artifact(WEB.version(version))
        self.blueprints.append(Revision(name, number, 1_000.0 + number, payload, "me@here" if number % 2 else ""))
        return number

    def status(self, version: str, condition: Condition, **fields: Any) -> None:
        """Have the leader say something of the newest blueprint of a version."""
        name = encode_artifact(WEB.version(version))
        newest = max(each.number for each in self.blueprints if each.name == name)
        self.statuses[name] = Status(condition, observed_revision=newest, in_force_revision=newest, **fields)

    def rollout(self, source: str, target: str, phase: RolloutPhase, step: int = 0, **fields: Any) -> None:
        """Write the record of a rollout that began with the newest blueprints."""
        old, new = (Side(version, self._newest(version), digest=version) for version in (source, target))
        superseded = {source: self._newest(source)} if source != target and phase is not RolloutPhase.REVERTED else {}
        self.record = Rollout(old, new, phase, step, superseded=superseded, **fields)

    def _newest(self, version: str) -> int:
        name = encode_artifact(WEB.version(version))
        return max((each.number for each in self.blueprints if each.name == name), default=0)

    @property
    def look(self) -> ServiceLook:
        """What a command finds."""
        statuses = [Revision(name, 1, 0.0, msgspec.json.encode(status)) for name, status in self.statuses.items()]
        record = None if self.record is None else msgspec.json.encode(self.record)
        other = Revision("acme.shop/api/1", 99, 0.0, b"7")
        return look_of(WEB, [*self.blueprints, other, Revision("?", 100, 0.0, b"7")], statuses, record)


@pytest.fixture
def one() -> Bucket:
    """One version, in force, with settings of its own."""
    bucket = Bucket()
    bucket.put("1", {"instances": 3, "env": {"A": "x"}, "restarted": "then", "rollout": {"max_surge": 2}})
    bucket.status("1", Condition.READY, desired=3)
    return bucket


@pytest.fixture
def two(one: Bucket) -> Bucket:
    """A rollout from 1 to 2 is under way."""
    one.put(
        "2",
        {"instances": 3, "rollout": {"from": "1", "kind": "canary", "steps": [{"weight": 10}, {"pause": "approve"}]}},
    )
    one.rollout("1", "2", RolloutPhase.ROLLING)
    one.status("1", Condition.SUPERSEDED)
    one.status("2", Condition.PROGRESSING, desired=3)
    return one


def _begun() -> Bucket:
    """A first version, and no rollout so far."""
    bucket = Bucket()
    bucket.put("1", 1)
    return bucket


def _fields(edit: Edit) -> dict[str, Any]:
    return fields_of(edit.raw)


def _deploy(bucket: Bucket, version: str, **options: Any) -> Edit:
    return deploying(bucket.look, WEB.version(version), **options)


def _refused(told: str) -> Any:
    return pytest.raises(EditRefused, match=told)


# Deploying


def test_the_first_version_of_a_service_is_one_instance_unless_a_number_is_said() -> None:
    edit = _deploy(Bucket(), "1")
    assert (edit.raw, edit.version.revision, edit.source) == (b"1", 0, None)
    assert _deploy(Bucket(), "1", instances=4).raw == b"4"
    assert _fields(_deploy(Bucket(), "1", way=canary_way(["10"])))["rollout"]["kind"] == "canary"


def test_a_new_version_gets_number_and_settings_of_the_one_in_force(one: Bucket) -> None:
    edit = _deploy(one, "2")
    assert edit.source == "1"
    assert _fields(edit) == {"instances": 3, "env": {"A": "x"}, "rollout": {"from": "1", "max_surge": 2}}
    assert _fields(_deploy(one, "2", instances=5))["instances"] == 5
    canary = _fields(_deploy(one, "2", way=canary_way(["10", "5m"])))["rollout"]
    assert canary == {"from": "1", "max_surge": 2, "kind": "canary", "steps": [{"weight": 10}, {"pause": "5m"}]}
    with pytest.raises(InvalidBlueprint, match="steps"):
        _deploy(one, "2", way=canary_way(["50", "10"]))


def test_what_an_operator_said_of_the_last_rollout_is_not_taken_over(one: Bucket) -> None:
    rollout = {"from": "0", "paused": True, "approved": 3, "deadline": "5m"}
    one.put("1", {"instances": 3, "rollout": rollout})
    assert _fields(_deploy(one, "2"))["rollout"] == {"from": "1", "deadline": "5m"}


def test_an_older_blueprint_of_the_version_keeps_its_settings_and_gets_the_number_of_now(one: Bucket) -> None:
    one.put("0", {"instances": 9, "args": ["old"]})
    one.put("0", None)
    edit = _deploy(one, "0")
    assert _fields(edit) == {"instances": 3, "args": ["old"], "rollout": {"from": "1"}}
    assert edit.version.revision == 3, "the marker of its removal"


def test_what_is_in_force_already_is_only_changed_as_is_said(one: Bucket) -> None:
    assert not _deploy(one, "1").changes
    edit = _deploy(one, "1", instances=5, way={"kind": "blue-green"})
    assert _fields(edit)["rollout"] == {"max_surge": 2, "kind": "blue-green"}
    assert (edit.source, _fields(edit)["restarted"]) == (None, "then")


def test_which_version_is_replaced_is_asked_for_where_several_are_in_force(one: Bucket) -> None:
    one.put("2", 2)
    with _refused(r"--from VERSION \(in force: 1, 2\)"):
        _deploy(one, "3")
    assert _deploy(one, "3", source="2").source == "2"
    with pytest.raises(UsageError, match=r"web:4 is not in force \(in force: 1, 2\)"):
        _deploy(one, "3", source="4")
    with pytest.raises(UsageError, match="the version itself"):
        _deploy(one, "3", source="3")
    one.put("1", 0)
    assert _deploy(one, "3").source == "2", "a version without instances replaces nothing, and is not replaced"


def test_what_a_leader_has_yet_to_read_counts_already(one: Bucket) -> None:
    edit = _deploy(one, "2")
    one.put("2", edit.raw)
    assert _deploy(one, "3").source == "2"
    with _refused(r"web:1 is being replaced \(in force: 2\)"):
        scaling(one.look, WEB.version("1"), 5)
    one.put("1", 4)
    with _refused(r"\(in force: 1, 2\)"):
        _deploy(one, "3")


def test_a_third_version_replaces_the_second_in_the_middle(two: Bucket) -> None:
    assert _deploy(two, "3").source == "2"
    with _refused("1 -> 2 is under way; `cdm rollback acme.shop:web` goes back to 1"):
        _deploy(two, "1")
    with pytest.raises(UsageError, match="not in force"):
        _deploy(two, "3", source="1")


def test_the_version_that_is_being_rolled_out_is_only_changed(two: Bucket) -> None:
    two.put("2", {"instances": 5, "rollout": {"from": "1", "paused": True}})
    for source in (None, "1"):
        edit = _deploy(two, "2", source=source, instances=6)
        assert _fields(edit) == {"instances": 6, "rollout": {"from": "1", "paused": True}}


def test_after_a_rollout_the_new_version_is_the_one_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    assert _deploy(two, "3").source == "2"
    edit = _deploy(two, "1", instances=None)
    assert (edit.source, _fields(edit)["rollout"]) == ("2", {"from": "2", "max_surge": 2})


def test_what_was_taken_back_is_not_deployed_as_it_is(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTED, reason="boom")
    two.status("1", Condition.READY)
    two.status("2", Condition.REVERTED, reason="boom")
    with _refused("taken back: boom; `cdm rollout retry acme.shop:web` tries it again"):
        _deploy(two, "2")
    assert _deploy(two, "3").source == "1"
    two.rollout("1", "1", RolloutPhase.COMPLETE)
    with _refused("`cdm rollback acme.shop:web --to 2` has it serve again"):
        _deploy(two, "2")


def test_a_refused_blueprint_of_what_was_taken_back_is_not_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTED, reverted={"2": "2"})
    two.status("1", Condition.READY, desired=3)
    two.status("2", Condition.REVERTED, reason="boom")
    two.put("2", {"instances": 3, "replicas": 3})
    assert [each.version for each in two.look.serving] == ["1"], "before a leader has read it"
    name = encode_artifact(WEB.version("2"))
    two.statuses[name] = Status(Condition.INVALID, "replicas", observed_revision=3, in_force_revision=2)
    assert [each.version for each in two.look.serving] == ["1"]
    assert _deploy(two, "3").source == "1"
    with _refused("2 was taken back already, and 1 serves"):
        rolling_back(two.look, None, NOW)
    with _refused("web:2 is refused, so it is not edited, .*: replicas"):
        _deploy(two, "2")
    with _refused("web:2 is refused, so it is not edited, .*: replicas"):
        retrying(two.look, NOW)
    two.statuses[name] = msgspec.structs.replace(two.statuses[name], desired=3)
    assert [each.version for each in two.look.serving] == ["1", "2"], "what is in force of it wants instances"


def test_settings_that_were_aborted_before_they_began_leave_their_version_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.put("2", {"instances": 3, "args": ["-v"], "rollout": {"from": "1", "abort": True}})
    two.status("2", Condition.REVERTED, reason="aborted before it began", desired=3)
    assert [each.version for each in two.look.serving] == ["2"]


def test_versions_are_in_the_order_of_their_numbers(one: Bucket) -> None:
    for version in ("10", "2", "1.10.0", "1.9.0"):
        one.put(version, 1)
    assert list(one.look.versions) == ["1", "1.9.0", "1.10.0", "2", "10"]
    with _refused(re.escape("(in force: 1, 1.9.0, 1.10.0, 2, 10)")):
        rolling_back(one.look, None, NOW)
    versions = {WEB.version(each): Status(Condition.READY, active=1) for each in ("2", "10", "9", "1")}
    told = in_words(_status(Condition.PROGRESSING, "rolling"), 7, versions)
    assert told.endswith("(2: 1 of 1 healthy, 1: 1 of 1 healthy, 9: 1 of 1 healthy, 10: 1 of 1 healthy)")


def test_a_blueprint_that_is_refused_is_not_built_upon(one: Bucket) -> None:
    one.put("1", {"instances": 3, "replicas": 3})
    for version in ("1", "2"):
        with _refused(
            "web:1 is refused, .*: replicas: there is no such field.* nats kv put blueprints acme.shop/web/1 "
        ):
            _deploy(one, version)
    with _refused("replicas"):
        scaling(one.look, WEB.version("1"), 4)


# Going back


def test_a_rollback_in_the_middle_is_an_abort(two: Bucket) -> None:
    for to in (None, "1"):
        edit = rolling_back(two.look, to, NOW)
        assert (edit.version.version, edit.goal, _fields(edit)["rollout"]["abort"]) == ("2", Goal.BACK, True)
    with _refused("web:2 is in force already"):
        rolling_back(two.look, "2", NOW)
    two.put("0", 9)
    two.put("0", None)
    third = rolling_back(two.look, "0", NOW)
    assert (third.source, _fields(third)) == ("2", {"instances": 3, "rollout": {"from": "2"}})
    two.rollout("1", "2", RolloutPhase.REVERTING)
    with _refused("is going back to 1 already"):
        rolling_back(two.look, None, NOW)
    two.record = msgspec.structs.replace(two.record, superseded={}) if two.record else None
    assert _deploy(two, "3").source == "1", "what is being taken back is not in force"


def test_a_rollback_after_completion_goes_to_what_the_record_names(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    for to in (None, "1"):
        edit = rolling_back(two.look, to, NOW)
        assert (edit.version.version, edit.goal, _fields(edit)["rollout"]["abort"]) == ("2", Goal.BACK, True)
    assert two.record is not None
    record, same = two.record, msgspec.structs.replace(two.record.source, version="2", revision=2)
    two.record = msgspec.structs.replace(record, target=same)
    assert rolling_back(two.look, None, NOW).goal == Goal.BACK, "the same bytes may have another manifest"
    two.record = record
    two.put("2", {"instances": 7, "rollout": {"from": "1"}})
    two.put("1", None)
    again = rolling_back(two.look, None, NOW)
    assert (again.version.version, again.goal, again.source) == ("1", Goal.FORWARD, "2")
    assert (_fields(again)["instances"], _fields(again)["env"]) == (7, {"A": "x"})


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
    assert _fields(rolling_back(changed.look, None, NOW)) == BACK
    changed.record = None
    edit = rolling_back(changed.look, None, NOW)
    assert _fields(edit) == BACK, "the history tells, too"
    assert edit.said == "1 with the settings that it had before: env.A changed, args removed"
    old, new = Template(OLD), Template(NEW)
    changed.record = Rollout(Side("1", 1, new, "aa"), Side("1", 2, new, "bb"), RolloutPhase.COMPLETE)
    assert rolling_back(changed.look, None, NOW).goal is Goal.BACK, "no blueprint says which content"
    changed.record = Rollout(Side("1", 2, new), Side("1", 1, old), RolloutPhase.REVERTED)
    with _refused("what was changed of 1 was taken back already, and 1 serves as before"):
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
    assert _fields(back) == {**now, "needs": was["needs"]}
    assert back.said.startswith("1 with the settings that it had before: needs.")
    one.put("1", {**now, "needs": {"cpu": 9}, "env": {"A": "y"}})
    one.record = None
    assert _fields(rolling_back(one.look, None, NOW)) == now, "as it was typed"
    one.put("1", {name: value for name, value in now.items() if name != "needs"})
    assert _fields(rolling_back(one.look, None, NOW))["needs"] == {"cpu": 9.0}


@pytest.mark.parametrize("phase", [RolloutPhase.COMPLETE, RolloutPhase.REVERTED])
def test_a_restart_is_nothing_to_go_back_to_and_a_rollback_keeps_it(changed: Bucket, phase: RolloutPhase) -> None:
    for stamp in ("once", "twice"):
        changed.put("1", restarting(changed.look, WEB.version("1"), stamp).raw)
    once, twice = (Side("1", 1, Template(NEW, stamp), "content") for stamp in ("once", "twice"))
    changed.record = Rollout(once, twice, phase, before=Side("1", 1, Template(OLD), "content"))
    back = rolling_back(changed.look, None, NOW)
    assert _fields(back) == {**BACK, "restarted": "twice"}

    # Back and forth: what changes are the settings, and never whether it was restarted.
    changed.put("1", back.raw)
    changed.record = Rollout(twice, Side("1", 1, Template(OLD, "twice"), "content"), RolloutPhase.COMPLETE)
    forth = rolling_back(changed.look, None, NOW)
    assert _fields(forth) == {**BACK, "env": {"A": "y"}, "args": ["-v"], "restarted": "twice"}
    changed.record = msgspec.structs.replace(
        changed.record, reverted={"1": f"{Template(NEW, 'twice').digest}/content"}, phase=RolloutPhase.COMPLETE
    )
    assert _fields(rolling_back(changed.look, None, NOW))["restarted"] == NOW, "it was taken back as it was: a new try"


def test_after_a_restart_a_rollback_goes_to_what_was_whole_before_and_to_nothing_else(two: Bucket) -> None:
    """The second version was replaced by the third in the middle of its rollout: it never was whole."""
    two.put("3", {"instances": 3, "rollout": {"from": "2"}})
    two.put("3", restarting(two.look, WEB.version("3"), "once").raw)
    two.status("2", Condition.SUPERSEDED)
    two.status("3", Condition.READY, desired=3)
    sides = Side("3", 3, Template()), Side("3", 4, Template(restarted="once"))
    superseded = {"1": 1, "2": 2}
    two.record = Rollout(*sides, RolloutPhase.COMPLETE, superseded=superseded)
    with _refused(r"what acme.shop:web was before 3 is not known; .* --to VERSION"):
        rolling_back(two.look, None, NOW)
    was = Template(OLD)
    two.record = Rollout(
        *sides, RolloutPhase.COMPLETE, superseded=superseded, before=Side("1", 1, was, None, was.digest)
    )
    back = rolling_back(two.look, None, NOW)
    assert (back.version.version, back.source, _fields(back)["env"]) == ("1", "3", {"A": "x"})
    # Settings of the first version that were replaced in the middle, too, are none to go back to.
    middle = two.put("1", {"instances": 3, "env": {"A": "never whole"}})
    two.record = msgspec.structs.replace(two.record, superseded={"1": middle, "2": 2})
    for _ in range(2):
        assert _fields(rolling_back(two.look, None, NOW))["env"] == {"A": "x"}
        two.put("1", None)


def test_content_that_was_other_before_a_restart_is_gone_back_to_by_pushing_it_again(one: Bucket) -> None:
    one.put("1", restarting(one.look, WEB.version("1"), "once").raw)
    once, twice = (Side("1", 2, Template(OLD, stamp), "new") for stamp in (None, "once"))
    one.record = Rollout(once, twice, RolloutPhase.COMPLETE, before=Side("1", 1, Template(OLD), "old"))
    with _refused("web:1 had other content, .* `cdm deploy acme.shop:web:1 PATH --force`"):
        rolling_back(one.look, None, NOW)


def test_a_rollback_that_leads_nowhere_says_so(one: Bucket) -> None:
    with _refused("no version of acme.shop:web is in force"):
        gone = Bucket()
        gone.put("1", None)
        rolling_back(gone.look, None, NOW)
    with _refused("nothing to go back to: 1 is the only version of acme.shop:web"):
        rolling_back(one.look, None, NOW)
    with _refused("web:1 is in force already"):
        rolling_back(one.look, "1", NOW)
    with _refused("web:0.9 has no blueprint, and none is kept"):
        rolling_back(one.look, "0.9", NOW)
    one.put("0", 0)
    with _refused(r"before 1 is not known; .* --to VERSION \(versions with a blueprint, or that had one: 0, 1\)"):
        rolling_back(one.look, None, NOW)
    one.put("2", 2)
    told = r"several versions of acme.shop:web are in force, each on its own \(in force: 1, 2\): `cdm deploy "
    for to, way in ((None, "web:2 --from 1`"), ("1", "web:1 --from 2`")):
        with _refused(f"{told}acme.shop:{way}"):
            rolling_back(one.look, to, NOW)


def test_what_was_put_beside_its_successor_is_replaced_again_by_the_same_blueprint(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    two.put("1", 3)
    again = _deploy(two, "2", source="1")
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
    with _refused("2 was taken back already, and 1 serves"):
        rolling_back(two.look, None, NOW)
    edit = rolling_back(two.look, "2", NOW)
    assert (edit.source, _fields(edit)["restarted"]) == ("1", NOW)


# The operator's hand


def test_pausing_and_resuming_edit_the_version_that_takes_over(two: Bucket) -> None:
    edit = pausing(two.look, True)
    assert (edit.version.version, _fields(edit)["rollout"]["paused"]) == ("2", True)
    assert not pausing(two.look, False).changes
    two.put("2", edit.raw)
    assert not pausing(two.look, True).changes
    assert "paused" not in _fields(pausing(two.look, False))["rollout"]


def test_only_what_waits_for_an_approval_is_approved(two: Bucket) -> None:
    with _refused("1 -> 2 does not wait for an approval"):
        approving(two.look)
    two.rollout("1", "2", RolloutPhase.PAUSED, step=1)
    assert awaited(two.look) == 1
    with _refused("waits for approval 1: `cdm rollout approve acme.shop:web`"):
        pausing(two.look, False)
    edit = approving(two.look)
    assert _fields(edit)["rollout"]["approved"] == 1
    two.put("2", edit.raw)
    with _refused("does not wait"):  # the leader has yet to see it: a second one would pass the next pause
        approving(two.look)


def test_approvals_that_a_blueprint_brought_along_are_not_counted(two: Bucket) -> None:
    way = {"from": "1", "kind": "canary", "steps": [{"weight": 10}, {"pause": "approve"}], "approved": 1}
    two.put("2", {"instances": 3, "rollout": way})
    two.rollout("1", "2", RolloutPhase.PAUSED, 1, approved=1)
    assert awaited(two.look) == 1
    assert _fields(approving(two.look))["rollout"]["approved"] == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (("a", "x"), ("b", "x"), "older settings"),
        (("a", None), ("b", "x"), "older settings"),
        (("a", "x"), ("a", "y"), "older content"),
        (("a", "x"), ("b", "y"), "older settings and content"),
    ],
)
def test_what_is_outdated_is_told_to_be_of_older_settings_or_content(
    old: tuple[str, str | None], new: tuple[str, str | None], told: str
) -> None:
    source, target = (Side("1", 1, digest=digest, content=content) for digest, content in (old, new))
    record = Rollout(source, target, RolloutPhase.REVERTED)
    assert older(VersionLook(WEB.version("1"), record=record)) == told


@pytest.mark.parametrize("plan", [lambda look: pausing(look, True), approving])
def test_where_no_rollout_is_under_way_there_is_nothing_to_stop_or_approve(plan: Any, two: Bucket) -> None:
    with _refused("no rollout of acme.shop:web is under way"):
        plan(_begun().look)
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    with _refused(r"is under way \(the last one, 1 -> 2, is complete\)"):
        plan(two.look)
    two.rollout("1", "2", RolloutPhase.REVERTING)
    with _refused("is going back to 1"):
        plan(two.look)


def test_an_abort_works_until_the_old_version_is_gone(two: Bucket) -> None:
    two.put("2", {"instances": 3, "rollout": {"from": "1", "paused": True}})
    assert _fields(aborting(two.look))["rollout"] == {"from": "1", "abort": True}
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    assert aborting(two.look).goal is Goal.BACK
    two.put("1", None)
    with _refused("the blueprint of 1 was deleted; `cdm rollback acme.shop:web` puts it again"):
        aborting(two.look)
    for phase, told in ((RolloutPhase.REVERTING, "going back to 1 already"), (RolloutPhase.REVERTED, "was taken back")):
        two.rollout("1", "2", phase)
        with _refused(told):
            aborting(two.look)
    with _refused("there was no rollout"):
        aborting(_begun().look)


def test_only_what_was_taken_back_or_failed_is_tried_again(two: Bucket) -> None:
    with _refused("only what was taken back, or failed, is tried again"):
        retrying(two.look, NOW)
    with _refused("there was no rollout"):
        retrying(_begun().look, NOW)
    two.put("2", {"instances": 3, "rollout": {"from": "1", "abort": True, "approved": 1}})
    two.rollout("1", "2", RolloutPhase.REVERTED)
    assert _fields(retrying(two.look, NOW)) == {"instances": 3, "rollout": {"from": "1"}, "restarted": NOW}
    two.put("2", None)
    with _refused("web:2 was deleted"):
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
    with _refused("is rolling: only what was taken back"):
        retrying(two.look, NOW)


def test_where_there_was_no_rollout_a_way_on_is_named(one: Bucket) -> None:
    with _refused("`cdm deploy acme.shop:web:1 PATH --force` has a mended program run, `cdm restart acme.shop:web:1`"):
        retrying(one.look, NOW)


def test_a_rollout_of_one_version_is_called_by_what_is_new() -> None:
    bucket = Bucket()
    bucket.put("1", 1)
    old, restarted, args = Template(), Template(restarted="now"), Template(Overrides(args=("-v",)))
    for new, content, told in (
        (args, "a", "new settings of 1"),
        (old, "b", "new content of 1"),
        (restarted, "b", "new content of 1"),
        (args, "b", "new settings and content of 1"),
        (restarted, "a", "restart of 1"),
        (old, "a", "new settings of 1"),
    ):
        bucket.record = Rollout(Side("1", 1, old, "a"), Side("1", 1, new, content), RolloutPhase.ROLLING)
        assert bucket.look.way == told


# One version


def test_versions_of_earlier_rollouts_are_counted_unless_they_have_instances(two: Bucket) -> None:
    for version in ("3", "4", "5"):
        two.put(version, {"instances": 3, "rollout": {"from": "1"}})
    two.status("3", Condition.REVERTED, reason="boom")
    two.status("4", Condition.REVERTED, reason="boom", active=1)
    two.rollout("1", "5", RolloutPhase.REVERTED, reason="bang")
    two.status("1", Condition.READY, desired=3)
    two.status("2", Condition.SUPERSEDED)
    two.status("5", Condition.REVERTED, reason="bang")
    head, *versions = lines_of(two.look, PLAIN)
    assert "1 -> 5 reverted" in head
    assert [each.split()[0] for each in versions[:3]] == ["1", "4", "5"]
    assert [each.strip() for each in versions[3:]] == [
        "and 2 versions that were replaced or taken back before: `cdm history acme.shop:web`",
        "`cdm rollout retry acme.shop:web` tries 5 once more",
    ]


def test_whether_a_rollout_goes_on_or_back_the_version_that_it_leads_from_is_told(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.PAUSED, step=1)
    for edit in (pausing(two.look, True), approving(two.look), aborting(two.look), rolling_back(two.look, None, NOW)):
        assert (edit.source, edit.version.version) == ("1", "2")


def test_scaling_and_restarting_edit_what_serves(two: Bucket) -> None:
    assert _fields(scaling(two.look, WEB.version("2"), 5))["instances"] == 5
    assert _fields(restarting(two.look, WEB.version("2"), NOW))["restarted"] == NOW
    told = r"web:1 is being replaced \(in force: 2\)"
    with _refused(told):
        scaling(two.look, WEB.version("1"), 5)
    with _refused(told):
        restarting(two.look, WEB.version("1"), NOW)
    with _refused("there is no blueprint of acme.shop:web:3.*`cdm deploy acme.shop:web:3 PATH` pushes a program"):
        scaling(two.look, WEB.version("3"), 5)


def test_a_restart_in_the_middle_begins_anew_also_where_the_rollout_was_paused(two: Bucket) -> None:
    two.put("2", {"instances": 3, "rollout": {"from": "1", "paused": True, "approved": 1}})
    assert _fields(restarting(two.look, WEB.version("2"), NOW))["rollout"] == {"from": "1"}


def test_what_was_replaced_and_is_in_force_again_is_not_replaced_once_more_by_an_edit(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.COMPLETE)
    two.status("2", Condition.READY)
    assert _fields(scaling(two.look, WEB.version("2"), 5))["rollout"]["from"] == "1"
    two.put("1", 4)
    for edit in (
        scaling(two.look, WEB.version("2"), 5),
        restarting(two.look, WEB.version("2"), NOW),
        _deploy(two, "2", instances=6),
    ):
        assert _fields(edit)["rollout"].keys() == {"kind", "steps"}
    assert not _deploy(two, "2").changes
    assert _fields(scaling(two.look, WEB.version("1"), 5)) == {"instances": 5}


def test_settings_that_were_taken_back_are_not_restarted_by_the_way(one: Bucket) -> None:
    one.rollout("1", "1", RolloutPhase.REVERTED)
    one.status("1", Condition.REVERTED)
    with _refused("was changed, and that was taken back"):
        restarting(one.look, WEB.version("1"), NOW)
    assert scaling(one.look, WEB.version("1"), 5).changes
    assert _fields(retrying(one.look, NOW))["restarted"] == NOW


def test_services_and_versions_are_not_mistaken_for_each_other() -> None:
    assert service_of("a:b") == Service("a", "b")
    assert artifact_of("a:b:1") == Artifact("a", "b", "1")
    with pytest.raises(UsageError, match=r"write the service, a:b$"):
        service_of("a:b:1")
    with pytest.raises(UsageError, match="write the version too, a:b:VERSION"):
        artifact_of("a:b")
    for text in ("a", "a:b:c:d", ":b"):
        with pytest.raises((InvalidArtifact, UsageError)):
            service_of(text)
        with pytest.raises((InvalidArtifact, UsageError)):
            artifact_of(text)


# What becomes of it


def _status(condition: Condition, phase: str = "", **fields: Any) -> Status:
    rollout = RolloutStatus(phase, "rolling", "1", "2", why="because") if phase else msgspec.UNSET
    return Status(condition, "so", 7, 7, rollout=rollout, **fields)


@pytest.mark.parametrize(
    ("status", "goal", "ended", "code"),
    [
        (None, Goal.FORWARD, None, 0),
        (Status(Condition.READY, observed_revision=6), Goal.FORWARD, None, 0),
        (_status(Condition.PROGRESSING), Goal.FORWARD, None, 0),
        (_status(Condition.PROGRESSING, "rolling"), Goal.FORWARD, None, 0),
        (_status(Condition.READY, "paused"), Goal.FORWARD, None, 0),
        (_status(Condition.PROGRESSING, "complete"), Goal.FORWARD, None, 0),
        (_status(Condition.READY, "complete"), Goal.FORWARD, Ended(End.COMPLETE), 0),
        (_status(Condition.READY), Goal.FORWARD, Ended(End.COMPLETE), 0),
        (_status(Condition.REVERTED, "reverting"), Goal.FORWARD, None, 0),
        (_status(Condition.REVERTED, "reverted"), Goal.FORWARD, Ended(End.REVERTED, "so"), 3),
        (_status(Condition.REVERTED, "reverted"), Goal.BACK, Ended(End.REVERTED, "so"), 0),
        (_status(Condition.READY, "complete"), Goal.BACK, None, 0),
        (_status(Condition.DEGRADED, "failed"), Goal.FORWARD, Ended(End.FAILED, "so"), 3),
        (_status(Condition.DEGRADED, "failed"), Goal.BACK, Ended(End.FAILED, "so"), 3),
        (_status(Condition.INVALID), Goal.FORWARD, Ended(End.REFUSED, "so"), 3),
        (_status(Condition.SUPERSEDED, "complete"), Goal.FORWARD, Ended(End.SUPERSEDED, "so"), 4),
        (_status(Condition.READY), Goal.COUNT, Ended(End.COMPLETE), 0),
        (_status(Condition.REVERTED, "reverted"), Goal.COUNT, Ended(End.REVERTED, "so"), 3),
    ],
)
def test_a_command_that_waits_knows_from_the_status_when_it_is_over(
    status: Status | None, goal: Goal, ended: Ended | None, code: int
) -> None:
    found = judged(7, status, goal)
    assert found == ended
    if found is not None:
        assert found.code(goal) == code


def _counted(
    condition: Condition, desired: int, active: int = 0, pending: int = 0, failed: int = 0, reason: str = "so"
) -> Status:
    return Status(condition, reason, 7, 7, desired, active, pending, failed, healthy=active)


def test_the_number_of_instances_counts_also_where_new_settings_were_taken_back() -> None:
    for counts, ended in (
        ((3, 3), Ended(End.COMPLETE)),
        ((3, 2), None),
        ((3, 3, 1), None),
        ((0,), Ended(End.COMPLETE)),
    ):
        assert judged(7, _counted(Condition.REVERTED, *counts), Goal.COUNT) == ended
    assert judged(7, _counted(Condition.REVERTED, 3, 3), Goal.FORWARD) == Ended(End.REVERTED, "so")


LOOP = "crash loop: {} of 2 instances: exit status 1 after 0.3 s; last output: Traceback | File x | KeyError: 'DB'"


def test_instances_that_do_not_come_up_end_the_wait_as_soon_as_that_is_certain() -> None:
    degraded = Condition.DEGRADED
    all_loop, one_loops = (_counted(degraded, 2, 1, 1, reason=LOOP.format(count)) for count in (2, 1))
    fresh = Failures(None)
    for status, decided in (
        (_counted(degraded, 3, pending=2, failed=1), False),
        (_counted(degraded, 3, active=1, failed=2), False),
        (_counted(degraded, 3, pending=1, failed=2), True),
        (_counted(degraded, 0, failed=1), False),
        (one_loops, False),
        (all_loop, True),
        (Status(degraded, "no nodes", 7, 7, 2), False),
    ):
        assert fresh.decided(status) is decided
    assert judged(7, all_loop, Goal.FORWARD, hopeless=True) == Ended(End.FAILED, all_loop.reason)
    assert judged(7, _counted(Condition.PROGRESSING, 2), Goal.FORWARD, hopeless=True) is None


def test_what_failed_before_an_edit_is_first_tried_again() -> None:
    failed, tried = _counted(Condition.DEGRADED, 2, failed=2), _counted(Condition.PROGRESSING, 2, pending=2)
    all_loop = _counted(Condition.DEGRADED, 2, pending=2, reason=LOOP.format(2))
    for before in (failed, all_loop):
        failures = Failures(before)
        found = [failures.decided(each) for each in (before, failed, tried, all_loop, failed)]
        assert found == [False, before is all_loop, False, False, True], "a crash loop is remembered when it is over"


def test_going_back_to_what_does_not_come_up_ends_the_wait() -> None:
    def reverting(why: str, *, stuck: bool = False) -> Status:
        rollout = RolloutStatus("reverting", "rolling", "1", "2", why=why, stuck=stuck)
        return Status(Condition.PROGRESSING, why, 7, 7, rollout=rollout)

    going = "going back to 1: 1 new instance failed or restarted: boom; 0 of 2 old instances healthy"
    assert judged(7, reverting(going), Goal.BACK) is None
    stuck = f"{going}; 1 old instance failed or restarted: KeyError"
    ended = judged(7, reverting(stuck, stuck=True), Goal.BACK)
    assert ended == Ended(End.FAILED, stuck)
    assert ended.code(Goal.BACK) == 3


def test_it_is_gone_back_only_when_what_was_gone_back_to_serves() -> None:
    taken_back = _status(Condition.REVERTED, "reverted")
    assert gone_back_to(taken_back) == "1"
    assert gone_back_to(_status(Condition.REVERTED, "reverting")) is None
    coming, serving = _counted(Condition.PROGRESSING, 2, 1, 1), _counted(Condition.READY, 2, 2)
    failed, loops = _counted(Condition.DEGRADED, 2, failed=2), _counted(Condition.DEGRADED, 2, 2, reason=LOOP.format(2))
    one_failed = _counted(Condition.DEGRADED, 2, 1, failed=1)

    def ended(of: Status, serving: Status | None = None) -> Ended | None:
        return judged(7, of, Goal.BACK, serving=serving)

    assert ended(taken_back, coming) is ended(taken_back, one_failed) is None
    assert ended(taken_back, serving) == Ended(End.REVERTED, "so")
    assert ended(taken_back) == Ended(End.REVERTED, "so"), "its blueprint was deleted, so that nothing is told of it"
    for status in (failed, loops):
        found = ended(taken_back, status)
        assert found == Ended(End.FAILED, f"taken back, but what it went back to does not come up: {status.reason}")
        assert found.code(Goal.BACK) == 3

    # The same version with the settings before tells of itself.
    same = RolloutStatus("reverted", "rolling", "2", "2")
    assert gone_back_to(Status(Condition.REVERTED, rollout=same)) is None

    def told(status: Status, condition: Condition) -> Ended | None:
        return ended(msgspec.structs.replace(status, condition=condition, rollout=same))

    assert told(coming, Condition.REVERTED) is told(one_failed, Condition.DEGRADED) is None
    assert told(serving, Condition.REVERTED) == Ended(End.REVERTED, "so")
    assert told(failed, Condition.DEGRADED) == Ended(
        End.FAILED, "taken back, but what it went back to does not come up: so"
    )


def test_where_something_was_taken_back_progress_is_told_of_what_serves() -> None:
    taken_back = _counted(Condition.REVERTED, 3, 2, reason="boom")
    assert serves_in_words(taken_back) == "2 of 3 instances active"
    assert serves_in_words(_counted(Condition.DEGRADED, 3, 2, reason="1 failed: x")) == (
        "2 of 3 instances active: 1 failed: x"
    )


def test_how_far_it_is_is_told_in_a_line() -> None:
    assert in_words(None, 7) == "waiting for the leader"
    assert in_words(_status(Condition.DEGRADED), 7) == "Degraded: so"
    rolling = _status(Condition.PROGRESSING, "rolling", active=2, pending=1, healthy=1, up_to_date=3, outdated=0)
    old = Status(Condition.PROGRESSING, active=3, healthy=3, up_to_date=3, outdated=0)
    versions = {WEB.version("0"): Status(Condition.SUPERSEDED), WEB.version("1"): old, WEB.version("2"): rolling}
    told = in_words(rolling, 7, versions)
    assert told == "rolling 1 -> 2: because (2: 1 of 3 healthy, 1: 3 of 3 healthy)"
    settings = RolloutStatus("rolling", "rolling", "2", "2", why="because")
    status = Status(Condition.PROGRESSING, "so", 7, 7, rollout=settings, healthy=4, up_to_date=2, outdated=3)
    assert in_words(status, 7, versions) == "rolling: because (2 new, 3 old, 4 healthy)"


def test_of_an_output_only_the_last_line_is_told_and_a_change_of_durations_is_no_news() -> None:
    line = in_words(_counted(Condition.DEGRADED, 2, reason=LOOP.format(2)), 7)
    assert line == ("Degraded: crash loop: 2 of 2 instances: exit status 1 after 0.3 s; last output: KeyError: 'DB'")
    assert alike(line, line.replace("0.3 s", "12 s"))
    assert not alike(line, line.replace("2 of 2", "1 of 2"))
    assert len(brief("x" * 1000)) < 600
    assert "\n" not in brief("a\nb")


# History


def test_the_history_tells_what_changed_and_what_is_in_force(two: Bucket) -> None:
    two.put("2", b"many")
    two.put("3", 1)
    two.put("3", None)
    told = [(row.revision, row.version, row.instances, row.by, row.changes, row.state) for row in rows(two.look)]
    assert told == [
        (1, "1", 3, "me@here", ["created"], "superseded"),
        (2, "2", 3, "unknown", ["created", "rollout.from 1"], "in force"),
        (3, "2", None, "me@here", ["refused"], "refused"),
        (4, "3", 1, "unknown", ["created"], ""),
        (5, "3", None, "me@here", ["deleted"], ""),
    ]
    assert rows(two.look)[0].at == "1970-01-01T00:16:41.000+00:00"
    assert "JSON" in rows(two.look)[2].reason


def test_what_serves_is_in_force_where_newer_settings_or_content_of_it_were_taken_back(one: Bucket) -> None:
    one.put("1", {"instances": 3, "args": ["-v"]})
    one.status("1", Condition.REVERTED, reason="boom", desired=3)
    one.record = Rollout(Side("1", 1), Side("1", 2, digest="new"), RolloutPhase.REVERTED)
    assert [(row.state, row.reason) for row in rows(one.look)] == [("in force", ""), ("reverted", "boom")]
    one.record = Rollout(Side("1", 2, content="a"), Side("1", 2, content="b"), RolloutPhase.REVERTED)
    assert [(row.state, row.reason) for row in rows(one.look)] == [
        ("", ""),
        ("in force", "other content was taken back: boom"),
    ]


def test_what_is_being_taken_back_is_not_in_force(two: Bucket) -> None:
    two.rollout("1", "2", RolloutPhase.REVERTING, reason="boom")
    assert [(row.state, row.reason) for row in rows(two.look)] == [("superseded", ""), ("reverting", "boom")]
    two.put("3", 3)
    two.put("3", {"instances": 3, "args": ["-v"]})
    two.status("3", Condition.PROGRESSING)
    two.record = Rollout(Side("3", 3), Side("3", 4, digest="new"), RolloutPhase.REVERTING, reason="boom")
    assert [(row.state, row.reason) for row in rows(two.look)][2:] == [("in force", ""), ("reverting", "boom")]
    two.record = Rollout(Side("3", 4, content="a"), Side("3", 4, content="b"), RolloutPhase.REVERTING, reason="boom")
    assert [(row.state, row.reason) for row in rows(two.look)][2:] == [
        ("", ""),
        ("in force", "other content is being taken back: boom"),
    ]


def test_of_the_oldest_revision_that_is_kept_it_is_not_known_what_it_changed() -> None:
    bucket = Bucket()
    for number in range(10):
        bucket.put("1", number)
    assert [row.changes for row in rows(bucket.look)][:2] == [["the oldest that is kept"], ["instances 0 -> 1"]]
