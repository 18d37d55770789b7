"""Which blueprints say where instances go, and what has to be looked at anew when something else changes. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.rules import NO_RULES, OnViolation, Rebalance


def says_where(blueprint: Blueprint | None) -> bool:
    """Whether a blueprint says anything of where instances go, or what follows where they are."""
    return blueprint is not None and (
        blueprint.rules is not NO_RULES
        or blueprint.each
        or blueprint.on_violation is not OnViolation.STAY
        or blueprint.rebalance is not Rebalance.OFF
        or blueprint.rebalanced is not None
        or has_secrets(blueprint)
    )


def has_secrets(blueprint: Blueprint | None) -> bool:
    """Whether a blueprint's instances are given secrets, which not every node does."""
    return blueprint is not None and blueprint.overrides is not None and blueprint.overrides.has_secrets


class Ruled:
    """The artifacts whose blueprints in force say where instances go."""

    def __init__(self) -> None:
        self.artifacts: set[Artifact] = set()
        self.each: set[Artifact] = set()
        """Those that want one instance on every node that fits."""
        self.on_join: set[Artifact] = set()
        """Those that are rebalanced when a node joins."""
        self.secret: set[Artifact] = set()
        """Those whose instances are given secrets."""
        self._neighbours: dict[Artifact, frozenset[Service]] = {}
        self._wanting: dict[Service, set[Artifact]] = {}

    def note(self, artifact: Artifact, blueprint: Blueprint | None) -> None:
        """This is the artifact's blueprint now; None: it has none."""
        ruled = says_where(blueprint)
        if not ruled and artifact not in self.artifacts:
            return
        _keep(self.artifacts, artifact, ruled)
        _keep(self.each, artifact, blueprint is not None and blueprint.each)
        _keep(self.on_join, artifact, blueprint is not None and blueprint.rebalance is Rebalance.ON_JOIN)
        _keep(self.secret, artifact, has_secrets(blueprint))
        self._note_neighbours(artifact, blueprint)

    def _note_neighbours(self, artifact: Artifact, blueprint: Blueprint | None) -> None:
        for service in self._neighbours.pop(artifact, ()):
            wanting = self._wanting[service]
            wanting.discard(artifact)
            if not wanting:
                del self._wanting[service]
        if blueprint is None:
            return
        rules = blueprint.rules
        named = frozenset(Service.parse(each.service) for each in (*rules.near, *rules.apart))
        if named:
            self._neighbours[artifact] = named
        for service in named:
            self._wanting.setdefault(service, set()).add(artifact)

    def wanting(self, service: Service) -> AbstractSet[Artifact]:
        """The artifacts that are to be near to the service, or apart from it."""
        return self._wanting.get(service, frozenset())


def _keep(among: set[Artifact], artifact: Artifact, wanted: bool) -> None:
    if wanted:
        among.add(artifact)
    else:
        among.discard(artifact)
