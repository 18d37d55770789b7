"""What artifacts consist of: how it is named, what describes it, and what a manager makes of that."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.artifacts.kept import KeptName
from cdm.dispatch.messages import ContentsUnknown, ValuePut, ValueRejected, ValueRemove
from cdm.manager.active import Active
from cdm.model.artifact import Artifact
from cdm.model.content import Description, digest_in
from cdm.model.keys import ARTIFACTS, ContentKey, encode, encode_artifact
from tests.unit.support import APP, OTHER, artifacts, n
from tests.unit.world import World

OLD, NEW = "0a" * 32, "1b" * 32


def key(name: str) -> ContentKey:
    return ContentKey(base64.urlsafe_b64encode(name.encode()).decode())


# Names


@given(artifacts)
def test_a_description_is_an_artifacts_or_that_of_something_else(artifact: Artifact) -> None:
    name = encode_artifact(artifact)
    assert key(name).artifact == artifact
    assert str(key(name)) == f"artifacts/{artifact}"
    kept = KeptName(name, NEW)
    assert KeptName.read(str(kept)) == kept
    assert key(str(kept)).artifact is None, "what is kept is no artifact"
    assert KeptName.read(name) is None, "and the other way round"


@given(st.text())
def test_every_token_is_a_key(token: str) -> None:
    found = ARTIFACTS.decode(token)
    assert encode(found) == token
    assert isinstance(found, ContentKey)
    assert found.artifact is None or key(encode_artifact(found.artifact)) == found
    assert str(found)


def test_no_artifact_has_two_tokens() -> None:
    assert key("g/one/1") == ContentKey("Zy9vbmUvMQ==")
    assert ContentKey("Zy9vbmUvMQ==").artifact == Artifact("g", "one", "1")
    assert ContentKey("Zy9vbmUvMR==").artifact is None, "the bits that are left over are not zero"
    assert ContentKey("Zy9vbmUvMQ").artifact is None


@pytest.mark.parametrize("name", ["", "a/b/c", f"a/b/{NEW}", f"a/b/c/d/{NEW}", f"a/b/c/{NEW.upper()}", f"a/b/c/{NEW}0"])
def test_other_names_are_not_of_kept_contents(name: str) -> None:
    assert KeptName.read(name) is None


# Descriptions


@pytest.mark.parametrize(
    ("record", "digest"),
    [
        (f'{{"sha256": "{NEW}"}}', NEW),
        (f'{{"sha256": "{NEW}", "form": "of a later version", "manifest": {{"new": 1}}}}', NEW),
        (f'{{"sha256": "{NEW.upper()}"}}', None),
        ('{"sha256": "x"}', None),
        ('{"sha256": 1}', None),
        ("{}", None),
        ("[]", None),
        ("{", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_of_a_record_the_digest_is_read_whatever_else_it_says(record: str, digest: str | None) -> None:
    assert digest_in(record) == digest
    info = {"name": "a/b/c", "bucket": "artifacts", "nuid": "x", "metadata": {"cdm": record}, "more": [1]}
    assert Description.parse(json.dumps(info)) == Description(digest)
    assert Description.parse(json.dumps({**info, "deleted": True})) == Description(None)


@pytest.mark.parametrize("info", [{}, {"metadata": None}, {"metadata": {}}, {"metadata": {"x": "y"}}])
def test_an_object_that_cdm_did_not_push_has_no_content(info: dict[str, object]) -> None:
    assert Description.parse(json.dumps(info)) == Description(None)


# What a manager knows


@pytest.fixture
def world() -> World:
    each = World()
    each.join(n(1))
    each.lead()
    each.settle()
    return each


def tell(world: World, artifact: Artifact, digest: str | None) -> bool:
    """Tell of a content; returns whether the artifact is looked at because of it."""
    world.settle()
    world.route(ValuePut(key(encode_artifact(artifact)), Description(digest), 1))
    return touched(world)


def touched(world: World) -> bool:
    state = world.manager.state
    return isinstance(state, Active) and not state._agenda.empty


def test_a_manager_knows_what_each_artifact_has_at_present(world: World) -> None:
    contents = world.manager.cluster.contents
    assert tell(world, APP, OLD)
    assert contents == {APP: OLD}
    assert not tell(world, APP, OLD), "it has it already"
    assert tell(world, APP, NEW)
    assert tell(world, OTHER, OLD)
    assert contents == {APP: NEW, OTHER: OLD}
    assert tell(world, APP, None)
    assert not tell(world, APP, None)
    assert contents == {OTHER: OLD}
    world.settle()
    world.route(ValueRemove(key(encode_artifact(OTHER)), 2))
    assert contents == {}
    assert touched(world)


def test_what_cannot_be_read_and_what_is_no_artifact_is_not_known(world: World) -> None:
    contents = world.manager.cluster.contents
    assert tell(world, APP, OLD)
    world.route(ValueRejected(key(encode_artifact(APP)), "nonsense", 2))
    assert contents == {}
    world.route(ValuePut(key(str(KeptName(encode_artifact(APP), NEW))), Description(NEW), 3))
    world.route(ValuePut(ContentKey("%%"), Description(NEW), 4))
    assert contents == {}


def test_nothing_is_known_any_more_once_it_cannot_be_told(world: World) -> None:
    tell(world, APP, OLD)
    world.route(ContentsUnknown())
    assert world.manager.cluster.contents == {}
    assert tell(world, APP, OLD)


def test_a_follower_knows_it_too() -> None:
    world = World()
    assert not tell(world, APP, OLD)
    assert world.manager.cluster.contents == {APP: OLD}
