"""Parameters that several commands have: names, and what is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from cdm.cli.options import FLAG, ConnectionOptions
from cdm.errors import UsageError
from cdm.model.artifact import Artifact, NodeId, Service, node_id

HERE = ConnectionOptions()
"""Where NATS is, if no option says so."""

Reason = Annotated[str, Parameter(show_default=False, help="Why, for people; `cdm nodes` shows it.")]
Json = Annotated[bool, FLAG, Parameter(help="Print JSON.")]


def service_of(text: str) -> Service:
    """Read ``group:name``; raises `UsageError` for an artifact, and `InvalidArtifact` for anything else."""
    if text.count(":") == 2:
        artifact = Artifact.parse(text)
        raise UsageError(f"{text} is one version; write the service, {artifact.service}")
    return Service.parse(text)


def artifact_of(text: str) -> Artifact:
    """Read ``group:name:version``; raises `UsageError` for a service, and `InvalidArtifact` for anything else."""
    if text.count(":") == 1:
        raise UsageError(f"{text} is a service; write the version too, {Service.parse(text)}:VERSION")
    return Artifact.parse(text)


def service_or_artifact(text: str) -> Artifact | Service:
    """Read ``group:name:version`` or ``group:name``; raises `InvalidArtifact` for anything else."""
    return Service.parse(text) if text.count(":") == 1 else Artifact.parse(text)


def _name(read: Callable[[str], object], told: str) -> Parameter:
    return Parameter(converter=_read(read), n_tokens=1, accepts_keys=False, help=told)


def _read(read: Callable[[str], object]) -> Callable[[Any, Sequence[Token]], object]:
    def convert(_type: Any, tokens: Sequence[Token]) -> object:
        return read(tokens[0].value)

    return convert


ServiceName = Annotated[Service, _name(service_of, "The name, group:name.")]
ArtifactName = Annotated[Artifact, _name(artifact_of, "The name, group:name:version.")]
ServiceOrArtifact = Annotated[
    Artifact | Service,
    Parameter(
        name="NAME",
        converter=_read(service_or_artifact),
        n_tokens=1,
        accepts_keys=False,
        help="The name, group:name:version; of a service, group:name, all versions.",
    ),
]
NodeNames = Annotated[
    tuple[Annotated[NodeId, _name(node_id, "")], ...],
    Parameter(negative="", show_default=False, help="Their names."),
]
