"""A node as the choice of nodes sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.quantity import millicores


class Site(Struct, frozen=True):
    """A node that is not dead, with what is on it; what is commanded, or about to be, is counted in."""

    node: NodeId
    labels: Mapping[str, str]
    """Its labels, with ``node``, its id."""
    open: bool = True
    """Takes new slices: it is neither cordoned nor draining, and is there."""
    draining: bool = False
    """Is to be emptied."""
    registered: bool = True
    """False: it is missing, and may come back."""
    capacity: int | None = None
    """Most slices that it takes; None: no limit."""
    total: int = 0
    """Slices of all artifacts on it."""
    cpu: float | None = None
    """Cores that may be reserved; None: it does not say."""
    memory: int | None = None
    """Bytes that may be reserved; None: it does not say."""
    cpu_reserved: float = 0.0
    memory_reserved: int = 0
    load: float | None = None
    """How busy it is, as it tells it; None: it does not say."""


def overdrawn(site: Site) -> tuple[bool, bool]:
    """Whether more cores, and more memory, are reserved than the node has by now."""
    cpu, memory = site.cpu, site.memory
    return (
        cpu is not None and site.cpu_reserved > cpu and millicores(site.cpu_reserved) > millicores(cpu),
        memory is not None and site.memory_reserved > memory,
    )


class Freed(NamedTuple):
    """What failed slices that are due again hold on their node: tried again there, they take no further room."""

    slices: int
    cpu: float = 0.0
    """The least that one of them reserves."""
    memory: int = 0
    """The least that one of them reserves."""
