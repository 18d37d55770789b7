"""A part of the cluster's report: of a version, a service or a node, or of slices in some states. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from cdm.cli.concerns import concerns
from cdm.cli.known import nearest
from cdm.cli.report import ClusterReport, SliceReport
from cdm.errors import NodeUnknown, ServiceMissing, UsageError
from cdm.model.artifact import Artifact, NodeId, Service, node_id
from cdm.model.slice import SliceState


class Selection(Struct, frozen=True):
    """What is to be shown."""

    name: Artifact | Service | None = None
    """Only this version, or the versions of this service."""
    node: NodeId | None = None
    """Only this node, and what is on it."""
    states: frozenset[SliceState] = frozenset()
    """Only slices in these states; empty: in all."""

    def __bool__(self) -> bool:
        return self != _ALL

    def names(self, artifact: str) -> bool:
        """Whether a version belongs to what is to be shown."""
        if self.name is None:
            return True
        name = str(self.name)
        return artifact == name or (isinstance(self.name, Service) and artifact.startswith(f"{name}:"))

    def takes(self, each: SliceReport) -> bool:
        """Whether a slice belongs to what is to be shown."""
        return (
            self.names(each.artifact)
            and self.node in (None, each.node)
            and (not self.states or each.state in self.states)
        )


_ALL = Selection()


def selection_of(subject: str | None, node: str | None, states: Iterable[str]) -> Selection:
    """Read what is typed.

    Raises:
        UsageError: it cannot be what is to be shown.
        ModelError: a name is none.
    """
    name: Artifact | Service | None = None
    if subject is not None and ":" in subject:
        name = Artifact.parse(subject) if subject.count(":") > 1 else Service.parse(subject)
    elif subject is not None:
        if node not in (None, subject):
            raise UsageError(f"--node {node}: {subject} is another node; leave one of them out")
        node = subject
    return Selection(name, None if node is None else node_id(node), frozenset(map(_state, states)))


def _state(text: str) -> SliceState:
    try:
        return SliceState(text.upper())
    except ValueError:
        raise UsageError(f"--state {text!r}: there is no such state{nearest(text.upper(), SliceState)}") from None


def narrowed(found: ClusterReport, to: Selection) -> ClusterReport:
    """The part of the report that is to be shown.

    Raises:
        ServiceMissing: there is no such version, or service.
        NodeUnknown: there is no such node.
    """
    if not to:
        return found
    _check(found, to)
    slices = [each for each in found.slices if to.takes(each)]
    having = {each.artifact for each in slices}
    nodes = {each.node for each in slices} if to.node is None else {to.node}
    by_slices = to.node is not None or bool(to.states)
    return concerns(
        replace(
            found,
            slices=slices,
            blueprints=[
                each
                for each in found.blueprints
                if to.names(each.artifact) and (not by_slices or each.artifact in having)
            ],
            nodes=[each for each in found.nodes if each.node in nodes],
            draining=[each for each in found.draining if each.node in nodes],
            gone=[each for each in found.gone if each.node in nodes],
            notes=[] if to.node is None else [each for each in found.notes if each.startswith(f"nodes/{to.node}.")],
        )
    )


def _check(found: ClusterReport, to: Selection) -> None:
    if to.name is not None:
        known = {each.artifact for each in found.blueprints} | {each.artifact for each in found.slices}
        if not any(map(to.names, known)):
            names = {each.rpartition(":")[0] for each in known} if isinstance(to.name, Service) else known
            raise ServiceMissing(f"there is no blueprint of {to.name}, and no slice{nearest(str(to.name), names)}")
    if to.node is not None:
        nodes = {
            *(each.node for each in found.nodes),
            *(each.node for each in found.gone),
            *(each.node for each in found.slices),
        }
        if to.node not in nodes:
            raise NodeUnknown(f"there is no node {to.node}{nearest(to.node, nodes)}; `cdm nodes` lists them")
