from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidArtifact, InvalidNodeId
from cdm.model.artifact import MAX_PART, Artifact, node_id
from tests.unit.support import artifacts, node_ids


def test_an_artifact_is_read_from_group_name_and_version() -> None:
    assert Artifact.parse("org.example:slice:1.0.0") == Artifact("org.example", "slice", "1.0.0")


@given(artifacts)
def test_an_artifact_is_written_as_it_is_read(artifact: Artifact) -> None:
    assert Artifact.parse(str(artifact)) == artifact
    assert hash(Artifact.parse(str(artifact))) == hash(artifact)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:b",
        "a:b:c:d",
        "::",
        "a::c",
        ":b:c",
        "a:b:",
        "a:b:c d",
        "a:b:c\n",
        "a:b/c:1",
        "a/b:c:1",
        "a:b:1\x00",
        "a:b:\x7f",
        "a:b:\u00a0",
        "a:b:\u200b",
        "a:b:\ud800",
        "a:b:\u2028",
        "a:b:" + "c" * (MAX_PART + 1),
    ],
)
def test_what_is_not_an_artifact_is_refused(text: str) -> None:
    with pytest.raises(InvalidArtifact) as caught:
        Artifact.parse(text)
    assert str(caught.value)


@given(st.text())
def test_any_text_is_an_artifact_or_refused_and_nothing_else(text: str) -> None:
    try:
        artifact = Artifact.parse(text)
    except InvalidArtifact:
        return
    assert str(artifact) == text


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_message_names_the_part_that_is_wrong(part: int) -> None:
    parts = ["a", "b", "c"]
    parts[part] = ""
    with pytest.raises(InvalidArtifact, match=("group", "name", "version")[part]):
        Artifact(*parts)


def test_the_longest_part_that_is_promised_is_accepted() -> None:
    assert Artifact("a" * MAX_PART, "b" * MAX_PART, "c" * MAX_PART)


@given(node_ids)
def test_a_valid_node_id_is_kept_as_it_is(text: str) -> None:
    assert node_id(text) == text


@pytest.mark.parametrize("text", ["", "_leader", "_term", "_x", "a b", "a/b", "a:b", "a\tb", "n" * (MAX_PART + 1)])
def test_what_is_not_a_node_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidNodeId):
        node_id(text)
