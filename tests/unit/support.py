"""Builders and strategies that several files share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cdm.dispatch.messages import ValuePut
from cdm.log import Log
from cdm.manager.cluster import Cluster, Desired
from cdm.manager.group import Group, SlicePut
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState, SliceValue

S = SliceState
APP = Artifact("org.example", "slice", "1.0.0")
OTHER = Artifact("org.example", "other", "2.0.0")


def n(number: int) -> NodeId:
    """Node number so and so."""
    return NodeId(f"n{number}")


def put(
    node: NodeId,
    state: SliceState,
    ordinal: int = 0,
    *,
    at: float = 0.0,
    revision: int = 1,
    artifact: Artifact = APP,
    value: SliceValue | None = None,
    failures: int | None = None,
    blueprint: int | None = None,
    fatal: bool = False,
    reason: str | None = None,
) -> SlicePut:
    """A slice as the mirror brings it."""
    if value is None:
        value = SliceValue(state, failures=failures, blueprint=blueprint, fatal=fatal, reason=reason)
    return ValuePut(SliceKey(node, artifact, ordinal), value, revision, at)


def cluster_of(*puts: SlicePut) -> Cluster:
    """A cluster that holds these slices."""
    cluster = Cluster()
    for each in puts:
        cluster.put_slice(each)
    return cluster


def group_of(*puts: SlicePut) -> Group:
    """The group of these slices, all of `APP`."""
    return cluster_of(*puts).group(APP)


def wanted(instances: int, revision: int = 1) -> Desired:
    """A valid blueprint."""
    return Desired(Blueprint(instances), revision, revision)


_character = st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters=":/").filter(
    lambda c: c.isprintable() and not c.isspace()
)
parts = st.text(st.sampled_from(".=+-_%*>$aZ09é") | _character, min_size=1, max_size=64)
"""Every valid part of an artifact, odd ones more often."""
artifacts = st.builds(Artifact, parts, parts, parts)
node_ids = parts.filter(lambda text: not text.startswith("_")).map(NodeId)


class Heard(Log):
    """A log whose lines a test reads."""

    def __init__(self) -> None:
        super().__init__("cdm.test")
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **about: self.lines.append((level, event, about))
