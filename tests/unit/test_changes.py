"""What documents come to: what is written, in which order, what stays, and what an owner's pruning removes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cdm.cli.changes import Action, Change, changes_of, document_of
from cdm.cli.documents import Document
from cdm.cli.plans import Goal
from cdm.cli.service import ServiceLook, look_of
from cdm.errors import EditRefused, UsageError
from cdm.model.artifact import Artifact, Service
from cdm.model.edit import fields_of
from cdm.model.keys import encode_artifact
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.status import Condition, Status
from cdm.store.revisions import Revision

pytestmark = pytest.mark.quick

WEB = Service("acme", "web")


def _look(
    record: Rollout | None = None, owner: str = "", status: Status | None = None, **versions: object
) -> ServiceLook:
    """A service with these versions, written one after another; bytes are written as they are."""
    revisions = [
        Revision(
            encode_artifact(WEB.version(version.removeprefix("v"))),
            number,
            0.0,
            None if value is None else value if isinstance(value, bytes) else json.dumps(value).encode(),
            owner=owner,
        )
        for number, (version, value) in enumerate(versions.items(), 1)
    ]
    statuses = [] if status is None else [replace(revisions[0], payload=msgspec.json.encode(status))]
    return look_of(WEB, revisions, statuses, None if record is None else msgspec.json.encode(record))


def _document(version: str, instances: int | str = 1, **fields: Any) -> Document:
    return Document(WEB.version(version), {"instances": instances, **fields}, f"a.yaml:{version}")


def _changes(look: ServiceLook, *documents: Document, owner: str | None = None, prune: bool = False) -> list[Change]:
    return changes_of(documents, {WEB: look}, owner, prune=prune)


def _only(look: ServiceLook, document: Document, owner: str | None = None) -> Change:
    (change,) = _changes(look, document, owner=owner)
    return change


def _written(change: Change) -> Any:
    assert change.raw is not None
    return json.loads(change.raw)


def test_what_is_new_is_created_and_a_mere_number_stays_one() -> None:
    change = _only(_look(), _document("1", 3))
    assert (change.action, _written(change), change.words) == (Action.CREATE, 3, ["instances 3"])
    assert change.goal is Goal.FORWARD
    change = _only(_look(), _document("1", 3, env={"A": "secret"}))
    assert _written(change) == {"instances": 3, "env": {"A": "secret"}}
    assert change.words == ["instances 3", "env.A set"]


def test_what_says_the_same_in_other_words_is_left_alone() -> None:
    for stored in (3, {"instances": 3}, {"instances": 3, "min_healthy": 10, "env": {}}, b'\n{\n"instances": 3 }\n'):
        change = _only(_look(v1=stored), _document("1", 3))
        assert (change.action, change.raw) == (Action.NOTHING, change.version.raw)


def test_a_field_that_no_document_has_is_taken_out_but_for_what_commands_write() -> None:
    rollout = {"max_surge": 2, "paused": True, "approved": 1, "abort": True}
    stored = {"instances": 3, "env": {"A": "x", "B": "y"}, "restarted": "t", "rebalanced": "u", "rollout": rollout}
    same = _only(_look(v1=stored), _document("1", 3, env={"A": "x", "B": "y"}, rollout={"max_surge": 2}))
    assert same.action is Action.NOTHING
    scaled = _only(_look(v1=stored), _document("1", 4, env={"A": "x", "B": "y"}, drain_delay=1))
    assert _written(scaled) == {
        "instances": 4,
        "env": {"A": "x", "B": "y"},
        "drain_delay": 1,
        "restarted": "t",
        "rebalanced": "u",
        "rollout": {"paused": True, "approved": 1, "abort": True},
    }
    assert scaled.goal is Goal.COUNT
    # Another template is another rollout: what was said by hand of the one before is not meant for it.
    changed = _only(_look(v1=stored), _document("1", 3, env={"A": "z"}, rollout={"max_surge": 2}))
    assert _written(changed)["rollout"] == {"max_surge": 2}
    assert changed.words == [
        "env.A changed",
        "env.B removed",
        *(f"rollout.{each} removed" for each in rollout if each != "max_surge"),
    ]
    assert changed.goal is Goal.FORWARD
    # What the document says of it itself holds; and one on each node is balanced by nothing.
    mine = _only(_look(v1=stored), _document("1", "each", restarted="mine"))
    assert (_written(mine)["restarted"], "rebalanced" in _written(mine)) == ("mine", False)


def test_what_is_left_as_it_is_and_does_not_run_is_told() -> None:
    record = Rollout(Side("1", 1), Side("2", 2), RolloutPhase.COMPLETE, superseded={"1": 1})
    assert _only(_look(record, v1=3, v2=3), _document("1", 3)).note == "another version has taken its place"
    assert _only(_look(record, v1=3, v2=3), _document("2", 3)).note == ""
    assert _only(_look(record, v1=3, v2=3), _document("1", 4)).note == ""
    back = Status(Condition.REVERTED, "boom", observed_revision=1, in_force_revision=1)
    note = _only(_look(status=back, v1=3), _document("1", 3)).note
    assert note == "it was taken back: boom; `cdm rollout retry acme:web` tries it again"


def test_a_refused_blueprint_is_replaced_as_a_whole() -> None:
    change = _only(_look(v1=b"{nonsense"), _document("1", 2))
    assert (change.action, _written(change)) == (Action.CHANGE, {"instances": 2})
    assert change.words == ["what stands there is refused, and replaced as a whole", "instances 2"]
    assert change.goal is Goal.FORWARD


def test_versions_are_written_behind_those_that_they_replace() -> None:
    three, two, one = (
        _document("3", rollout={"from": "2"}),
        _document("2", rollout={"from": "1"}),
        _document("1"),
    )
    assert [each.artifact.version for each in _changes(_look(), three, two, one)] == ["1", "2", "3"]
    circle = (_document("1", rollout={"from": "2"}), _document("2", rollout={"from": "1"}))
    assert {each.artifact.version for each in _changes(_look(), *circle)} == {"1", "2"}


def test_an_owner_is_kept_given_and_told() -> None:
    look = _look(owner="them", v1=3)
    assert (_only(look, _document("1", 3)).action, _only(look, _document("1", 4)).owner) == (Action.NOTHING, "them")
    taken = _only(look, _document("1", 3), owner="me")
    assert (taken.action, taken.owner, taken.words) == (Action.OWN, "me", ["owner them -> me"])
    assert _only(_look(), _document("1", 3), owner="me").words == ["instances 3", "owner me"]


def test_pruning_removes_what_the_same_owner_looks_after_and_nothing_that_may_be_gone_back_to() -> None:
    def removed(look: ServiceLook, *documents: Document, owner: str = "me") -> list[str]:
        changes = _changes(look, *documents, owner=owner, prune=True)
        return [each.artifact.version for each in changes if each.action is Action.REMOVE]

    mine = _look(owner="me", v1=3, v2=3, v3=3)
    assert removed(mine, _document("2")) == ["1", "3"]
    assert removed(mine, _document("2", rollout={"from": "1"})) == ["3"]
    assert removed(mine, _document("2"), owner="them") == []
    assert removed(_look(v1=3), _document("2")) == []
    record = Rollout(Side("1", 1), Side("3", 3), RolloutPhase.ROLLING)
    assert removed(_look(record, owner="me", v1=3, v2=3, v3=3), _document("4")) == ["2"]
    gone = _changes(mine, _document("2"), owner="me", prune=True)[-1]
    assert (gone.raw, gone.blueprint, gone.words) == (None, None, [])


def test_options_change_what_stands_there_and_nothing_else() -> None:
    look = _look(v1={"instances": 3, "env": {"A": "x"}, "rollout": {"max_surge": 2}})

    def made(*sets: str, version: str = "1", instances: int | str | None = None) -> Any:
        return document_of(WEB.version(version), look, instances, sets).fields

    assert made("env.B=5", "env.C=", "env.D=a=b") == {**_stored(look), "env": {"A": "x", "B": "5", "C": "", "D": "a=b"}}
    secret, like_one = '{"secret": "db"}', '{"secret": "db", "x": 1}'
    assert made(f"env.A={secret}", f"env.B={like_one}")["env"] == {"A": {"secret": "db"}, "B": like_one}
    assert made("rollout.max_surge=50%", "min_healthy=2")["rollout"] == {"max_surge": "50%"}
    assert made('require=["zone = a"]', instances=7) == {**_stored(look), "instances": 7, "require": ["zone = a"]}
    assert made("restarted=5")["restarted"] == "5"
    assert made("needs.cpu=0.5", version="9", instances="each") == {"instances": "each", "needs": {"cpu": 0.5}}
    assert made(version="9") == {"instances": 1}
    for wrong, why in (
        ("min_healthy", "write FIELD=VALUE"),
        ("=5", "write FIELD=VALUE"),
        ("min_helthy=5", r"min_helthy: there is no such field \(did you mean min_healthy\?\)"),
        ("rollout.max_surge=x", 'rollout.max_surge: must be a whole number, or a percentage like "25%"'),
        ("env.0=5", "env: each name must be the name of a variable"),
    ):
        with pytest.raises(UsageError, match=why):
            made(wrong)
    with pytest.raises(EditRefused, match="the newest blueprint of acme:web:1 is refused"):
        document_of(Artifact("acme", "web", "1"), _look(v1=b"?"), 3, ())


def _stored(look: ServiceLook) -> dict[str, Any]:
    raw = look.versions["1"].raw
    assert raw is not None
    return fields_of(raw)
