"""What is known of the cluster's blueprints and slices, indexed by artifact and by node.

The one place where desired and actual state live in a process, on every node, leader or not, so that a new leader
starts warm. It only records; what to do about it is decided in `cdm.manager.reconciliation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from msgspec import Struct
from msgspec.structs import replace

from cdm.dispatch.messages import ValuePut
from cdm.manager.dependencies import Dependencies
from cdm.manager.group import EMPTY, Group, SlicePut
from cdm.manager.ledger import Ledger
from cdm.manager.ruled import Ruled
from cdm.model.artifact import Artifact, NodeId, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import RolloutKey, SliceKey
from cdm.model.last_valid import LastValid
from cdm.model.record import Rollout
from cdm.model.status import Status
from cdm.model.template import PLAIN, Template, template_of


class Desired(Struct, frozen=True, gc=False):
    """What is known of one artifact's blueprint.

    ``problem`` is None where the newest revision is valid; else that revision is refused for this reason, and
    ``blueprint``, the last valid one, stays in force (None: there never was one).
    """

    blueprint: Blueprint | None
    in_force: int
    observed: int
    problem: str | None = None
    removed: bool = False
    """Whether a blueprint is known to have been deleted before the refused one: then no instances are wanted."""
    template: Template = PLAIN
    """Of the blueprint in force."""
    nodes: frozenset[NodeId] | None = None
    """Where one instance is wanted each, and no other; None: wherever the rules let them be."""

    @property
    def instances(self) -> int | None:
        """How many instances are wanted; None: no valid blueprint says so."""
        if self.blueprint is not None:
            return self.blueprint.instances
        return 0 if self.removed else None

    @property
    def wants_any(self) -> bool:
        """Whether any instance is wanted, or would be if a node for it were there."""
        return self.blueprint is not None and self.blueprint.wants_any


class Cluster:
    """Blueprints, slices and statuses, as the mirrors have them."""

    def __init__(self) -> None:
        self.revision = 0
        """How far the mirror of ``slices`` has come."""
        self.desired: dict[Artifact, Desired] = {}
        self.groups: dict[Artifact, Group] = {}
        self.on_node: dict[NodeId, set[SliceKey]] = {}
        self.reserved = Ledger()
        """What slices reserve on their nodes."""
        self.removed: dict[Artifact, int] = {}
        """Revision at which an artifact's blueprint was last removed."""
        self.drain_delays: dict[Artifact, float] = {}
        """What deleted blueprints said of it, for as long as there are slices of theirs."""
        self.contents: dict[Artifact, str] = {}
        """Digests of the contents of artifacts, as far as they are known."""
        self.successors: dict[Service, set[Artifact]] = {}
        """Versions of services whose blueprints name another one that they replace."""
        self._versions: dict[Service, set[Artifact]] = {}
        self.dependencies = Dependencies()
        """Which blueprints wait for which services."""
        self.ruled = Ruled()
        """Which blueprints say where instances go."""
        self.rollouts: dict[Service, ValuePut[RolloutKey, Rollout]] = {}
        """The records of rollouts."""
        self.copies: dict[Artifact, LastValid] = {}
        """Copies of blueprints, for when refused ones have pushed them out of the history."""
        self.statuses: dict[str, Status] = {}
        self.refused: dict[str, tuple[str, int]] = {}
        """Blueprint keys that do not parse: why, and the revision."""

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts that have a blueprint, a slice, or the copy of a blueprint."""
        yield from self.desired
        for artifact in self.groups:
            if artifact not in self.desired:
                yield artifact
        for artifact in self.copies:
            if artifact not in self.desired and artifact not in self.groups:
                yield artifact

    def looks_settled(self, artifact: Artifact) -> bool:
        """Whether nothing is to be done about the artifact, as far as counts show at a glance."""
        group, desired = self.group(artifact), self.desired.get(artifact)
        instances = desired.instances if desired is not None else 0
        return not group.owed and not group.moving and group.live == instances

    def group(self, artifact: Artifact) -> Group:
        """The artifact's slices; an empty group where there are none."""
        return self.groups.get(artifact, EMPTY)

    def accept_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int, *, rolls: bool = True) -> None:
        """A valid blueprint is in force from now on.

        Args:
            artifact: whose.
            blueprint: what it says.
            revision: its revision.
            rolls: whether another template than before is to reach what was started by a leader that wrote no digests.
        """
        before = self.desired.get(artifact)
        if before is None:
            self._add_version(artifact)
        self._note_others(artifact, blueprint)
        self.drain_delays.pop(artifact, None)
        template = template_of(blueprint)
        self.desired[artifact] = Desired(blueprint, revision, revision, template=template)
        if group := self.groups.get(artifact):
            group.failed_on.clear()
            if rolls and before is not None and before.blueprint is not None and before.template != template:
                group.assume(template=before.template.digest)
        if not blueprint.wants_any:
            self._forget_endings(artifact)

    def refuse_blueprint(self, artifact: Artifact, problem: str, revision: int, removed: int = 0) -> None:
        """The newest blueprint is refused; the last valid one since ``removed`` stays in force."""
        if removed:
            self.removed[artifact] = removed
        self._add_version(artifact)
        old = self.desired.get(artifact) or Desired(None, 0, 0, removed=artifact in self.removed)
        self.desired[artifact] = replace(old, observed=revision, problem=problem)

    def recover_blueprint(self, artifact: Artifact, blueprint: Blueprint, revision: int) -> None:
        """The newest blueprint stays refused, and this older one turns out to be the last valid one."""
        self._note_others(artifact, blueprint)
        self.desired[artifact] = replace(
            self.desired[artifact],
            blueprint=blueprint,
            in_force=revision,
            template=template_of(blueprint),
        )

    def remove_blueprint(self, artifact: Artifact, revision: int) -> None:
        """There is no blueprint of this artifact any more."""
        self.removed[artifact] = revision
        self._note_others(artifact, None)
        before = self.desired.pop(artifact, None)
        if before is not None and before.blueprint is not None:
            self.drain_delays[artifact] = before.blueprint.drain_delay
        self._forget_endings(artifact)
        self._drop_version(artifact)

    def _note_others(self, artifact: Artifact, blueprint: Blueprint | None) -> None:
        """Record what the blueprint says of other versions and services."""
        self.dependencies.note(artifact, blueprint)
        self.ruled.note(artifact, blueprint)
        if blueprint is not None and blueprint.rollout.source is not None:
            self.successors.setdefault(artifact.service, set()).add(artifact)
        elif self.successors and (known := self.successors.get(artifact.service)):
            known.discard(artifact)
            if not known:
                del self.successors[artifact.service]

    def versions_of(self, service: Service) -> AbstractSet[Artifact]:
        """The versions of a service that have a blueprint or slices."""
        return self._versions.get(service, frozenset())

    def _add_version(self, artifact: Artifact) -> None:
        self._versions.setdefault(artifact.service, set()).add(artifact)

    def _drop_version(self, artifact: Artifact) -> None:
        """Forget the version, where it has neither a blueprint nor slices."""
        if artifact in self.desired or artifact in self.groups:
            return
        self.drain_delays.pop(artifact, None)
        versions = self._versions.get(artifact.service)
        if versions is not None:
            versions.discard(artifact)
            if not versions:
                del self._versions[artifact.service]

    def _forget_endings(self, artifact: Artifact) -> None:
        """No instances are wanted any more: what is started later has nothing to do with them."""
        if group := self.groups.get(artifact):
            group.endings = None
            if not group.slices:
                del self.groups[artifact]

    def know_content(self, artifact: Artifact, digest: str | None, *, rolls: bool = True) -> bool:
        """The artifact has this content from now on; returns whether it had another.

        Args:
            artifact: which one.
            digest: of the content; None: none that is known.
            rolls: as for `accept_blueprint`.
        """
        before = self.contents.pop(artifact, None)
        if digest is not None:
            self.contents[artifact] = digest
        if rolls and before not in (None, digest) and (group := self.groups.get(artifact)):
            group.assume(content=before)
        return digest != before

    def put_slice(self, put: SlicePut) -> SlicePut | None:
        """Record a slice's newest value; returns the one before, None for a slice that is new."""
        key = put.key
        group = self.groups.get(key.artifact)
        if group is None:
            group = self.groups[key.artifact] = Group()
            self._add_version(key.artifact)
        old = group.put(put)
        if old is None:
            on_node = self.on_node.get(key.node)
            if on_node is None:
                on_node = self.on_node[key.node] = set()
            on_node.add(key)
        if put.value.needs is not None or not self.reserved.empty:
            self.reserved.note(key, group.slices[key].value.needs)
        return old

    def remove_slice(self, key: SliceKey) -> SlicePut | None:
        """The slice's key is gone; returns its last value, None where it was not known."""
        group = self.groups.get(key.artifact)
        old = group.drop(key) if group is not None else None
        if group is None or old is None:
            return None
        if not self.reserved.empty:
            self.reserved.note(key, None)
        desired = self.desired.get(key.artifact)
        if not group.slices and not (group.endings and desired and desired.wants_any):
            del self.groups[key.artifact]
            self._drop_version(key.artifact)
        on_node = self.on_node[key.node]
        on_node.discard(key)
        if not on_node:
            del self.on_node[key.node]
        return old

    def artifacts_on(self, node: NodeId) -> list[Artifact]:
        """The artifacts that have slices on the node, in order: every process looks at them in the same one."""
        return sorted({key.artifact for key in self.on_node.get(node, ())})
