"""Ports that manifests fix: which instances of a service wait for one that another has on their node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdm.manager.group import SlicePut
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState

_TOLD_BEFORE = frozenset({SliceState.LOADED, SliceState.ACTIVATING})
"""States before ACTIVE in which a slice tells the port that its manifest fixes."""


def awaited_ports(puts: Iterable[SlicePut]) -> dict[SliceKey, int]:
    """Instances that do not serve yet, and the port that each waits for, as another one has it and is to stay.

    Args:
        puts: all slices of a service.
    """
    known = list(puts)
    waiting = [put for put in known if put.value.port is not None and put.value.state in _TOLD_BEFORE]
    if not waiting:
        return {}
    taken = {(put.key.node, put.value.port) for put in known if put.value.state is SliceState.ACTIVE}
    # The command to start does not tell the port: what is alike, on the same node, is about to have the same one.
    about = {(put.key.node, put.key.artifact) for put in known if put.value.state is SliceState.ACTIVATE}
    found: dict[SliceKey, int] = {}
    for put in sorted(waiting, key=lambda put: put.key):
        place = (put.key.node, put.value.port)
        starting = put.value.state is SliceState.LOADED and (put.key.node, put.key.artifact) in about
        if place in taken or starting:
            found[put.key] = put.value.port or 0
        else:
            taken.add(place)
    return found


def told_of_ports(awaited: Mapping[SliceKey, int], holders: str) -> str:
    """Who has which ports, for people; there must be one.

    Args:
        awaited: by the instances that wait for them.
        holders: what holds them, such as "old".
    """
    ports = ", ".join(map(str, sorted(set(awaited.values()))))
    nodes = sorted({key.node for key in awaited})
    more = f" (and {len(nodes) - 3} more)" if len(nodes) > 3 else ""
    return f"port {ports} is held by {holders} instances on {', '.join(nodes[:3])}{more}"
