"""What blueprints say under ``after``: which services an instance waits for, and which wait for each other. Pure.

An instance is activated once each of these services has a healthy instance, of whatever version; until then it waits
LOADED. A service that is lost later stops nothing: what was told to run goes on, and is started again on its node.
Services that wait for each other in a circle would wait for ever, so that is told in the status of each of them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from cdm.manager.group import SlicePut
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.slice import SliceState

if TYPE_CHECKING:  # what chooses nodes takes long to import, and is not needed to know which there are
    from cdm.manager.standing import Fleet


_CIRCLE = "services wait for each other, and none would ever start"
_WAITING = r"\bwaiting for (?P<services>(?:[^ ,]+:[^ ,]+(?:, | and )?)+) to have a healthy instance"


class Dependencies:
    """Which blueprints wait for which services."""

    def __init__(self) -> None:
        self._after: dict[Artifact, tuple[Service, ...]] = {}
        self._dependents: dict[Service, set[Artifact]] = {}
        self._versions: dict[Service, set[Artifact]] = {}
        """The versions of a service whose blueprints wait for anything."""

    def note(self, artifact: Artifact, blueprint: Blueprint | None) -> None:
        """This is the artifact's blueprint now; None: it has none."""
        before = self._after.pop(artifact, ())
        for service in before:
            _discard(self._dependents, service, artifact)
        after: tuple[Service, ...] = ()
        if blueprint is not None and blueprint.after:
            after = tuple(map(Service.parse, blueprint.after))
        if not after:
            if before:
                _discard(self._versions, artifact.service, artifact)
            return
        self._after[artifact] = after
        self._versions.setdefault(artifact.service, set()).add(artifact)
        for service in after:
            self._dependents.setdefault(service, set()).add(artifact)

    def of(self, artifact: Artifact) -> tuple[Service, ...]:
        """The services that the artifact's blueprint names."""
        return self._after.get(artifact, ())

    def __bool__(self) -> bool:
        """Whether any blueprint waits for a service."""
        return bool(self._dependents)

    def dependents(self, service: Service) -> AbstractSet[Artifact]:
        """The artifacts whose blueprints name the service."""
        return self._dependents.get(service, frozenset())

    def downstream(self, service: Service) -> AbstractSet[Artifact]:
        """The artifacts that wait for the service, or for one that does, and so on."""
        if service not in self._dependents:
            return frozenset()
        found: set[Artifact] = set()
        todo = [service]
        while todo:
            more = self.dependents(todo.pop()) - found
            found |= more
            todo += {each.service for each in more}
        return found

    def circle(self, service: Service, counts: Callable[[Artifact], bool]) -> tuple[Service, ...]:
        """The shortest way from a service through what it waits for back to itself; nothing: there is none.

        Args:
            service: which one.
            counts: whether instances of an artifact are wanted at all.
        """
        if service not in self._dependents:
            return ()
        came_from: dict[Service, Service] = {}
        todo = deque([service])
        while todo:
            one = todo.popleft()
            for each in sorted(self._named_by(one, counts)):
                if each == service:
                    way = [each, one]
                    while way[-1] != service:
                        way.append(came_from[way[-1]])
                    return tuple(reversed(way))
                if each not in came_from:
                    came_from[each] = one
                    todo.append(each)
        return ()

    def _named_by(self, service: Service, counts: Callable[[Artifact], bool]) -> set[Service]:
        versions = self._versions.get(service, set())
        return {each for artifact in versions if counts(artifact) for each in self._after[artifact]}


def _discard(index: dict[Service, set[Artifact]], service: Service, artifact: Artifact) -> None:
    known = index[service]
    known.discard(artifact)
    if not known:
        del index[service]


class Waiting(NamedTuple):
    """What an instance waits for before it is activated."""

    services: tuple[Service, ...] = ()
    """Those without a healthy instance; none: it need not wait."""
    until: float = inf
    """When one of them has one although nothing happens, in seconds on this node's clock."""


NOTHING_AWAITED = Waiting()
"""Of what may be activated at once."""


def waiting(after: Iterable[Service], serves_from: Callable[[Service], float], now: float) -> Waiting:
    """Which of these services have no healthy instance.

    Args:
        after: the services.
        serves_from: when a service has, or had, its first healthy instance, as `first_healthy` tells.
        now: seconds on this node's clock.
    """
    times = {service: serves_from(service) for service in after}
    missing = {service: at for service, at in times.items() if at > now}
    return Waiting(tuple(missing), min(missing.values(), default=inf))


def first_healthy(puts: Iterable[SlicePut], min_healthy: float, fleet: Fleet) -> float:
    """When the first of these instances is healthy: ACTIVE for ``min_healthy`` seconds on a registered node.

    Returns:
        Seconds on this node's clock; inf: none of them is ACTIVE there.
    """
    nodes = fleet.nodes
    return min(
        (
            put.at + min_healthy
            for put in puts
            if put.value.state is SliceState.ACTIVE
            and (node := nodes.get(put.key.node)) is not None
            and node.registered
        ),
        default=inf,
    )


def told_of_circle(circle: Iterable[Service]) -> str:
    """A circle, for people; empty: there is none."""
    names = [str(service) for service in circle]
    if not names:
        return ""
    way = " after ".join(names)
    return f"{_CIRCLE}: {way}; take one out of its blueprint's after"


def in_circle(reason: str) -> bool:
    """Whether a status says (`told_of_circle`) that its service waits for itself."""
    return reason.startswith(_CIRCLE)


def told_of_waiting(services: Iterable[str]) -> str:
    """What is waited for, for people."""
    names = list(services)
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"waiting for {listed} to have a healthy instance"


def waited_for(reason: str) -> tuple[Service, ...]:
    """The services that a status says are waited for (`told_of_waiting`)."""
    told = re.search(_WAITING, reason)
    return tuple(map(Service.parse, re.split(", | and ", told["services"]))) if told is not None else ()
