"""What is told of a service as it stands: what its versions and its rollout are called, in which order, and history."""

from __future__ import annotations

import re

import pytest

from cdm.cli.hand import rolling_back
from cdm.cli.history import rows
from cdm.cli.parameters import artifact_of, service_of
from cdm.cli.rollout import lines_of, older
from cdm.cli.rows import PLAIN
from cdm.cli.service import VersionLook
from cdm.cli.wording import in_words
from cdm.errors import InvalidArtifact, UsageError
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Overrides
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.status import Condition, Status
from cdm.model.template import Template
from tests.unit import service_bucket
from tests.unit.service_bucket import NOW, WEB, Bucket, refused, status_of

# Fixtures.
one, two = service_bucket.one, service_bucket.two


def test_versions_are_in_the_order_of_their_numbers(one: Bucket) -> None:
    for version in ("10", "2", "1.10.0", "1.9.0"):
        one.put(version, 1)
    assert list(one.look.versions) == ["1", "1.9.0", "1.10.0", "2", "10"]
    with refused(re.escape("(in force: 1, 1.9.0, 1.10.0, 2, 10)")):
        rolling_back(one.look, None, NOW)
    versions = {WEB.version(each): Status(Condition.READY, active=1) for each in ("2", "10", "9", "1")}
    told = in_words(status_of(Condition.PROGRESSING, "rolling"), 7, versions)
    assert told.endswith("(2: 1 of 1 healthy, 1: 1 of 1 healthy, 9: 1 of 1 healthy, 10: 1 of 1 healthy)")


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
