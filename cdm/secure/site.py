"""Who there is at a site: what ``site.json`` holds, what is to be changed, and which changes cannot be made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from cdm.errors import UsageError
from cdm.model.artifact import NodeId, node_id
from cdm.model.keys import decode_node, encode_node
from cdm.secure.jwts import SYSTEM
from cdm.secure.members import Members

ADMIN, OPERATOR = "admin", "operator"
RESERVED = (ADMIN, OPERATOR)
"""Users that every site has."""

Role = Literal["admin", "operator", "system", "manager", "reader", "node"]


class SiteRecord(Struct, frozen=True):
    """What ``site.json`` holds. Users' names are as in keys."""

    version: int
    prefix: str
    url: str
    ca: str
    users: dict[str, str]
    """Public keys of the admin and the operator."""
    managers: dict[str, str]
    nodes: dict[str, str]
    readers: dict[str, str] = {}
    accounts: str = ""
    """Digest of ``accounts.conf`` as it was written."""
    system: str = ""
    """Where users show JWTs: public key of the user who tells servers of accounts."""
    system_next: str = ""
    """The same: the one that takes its place as soon as a server was told of it."""
    signers: dict[str, str] = {}
    """The same: public keys that sign users, by user."""
    retired: tuple[str, ...] = ()
    """The same: accounts that are no more, and that servers may know."""
    authority: str = ""
    """The same: name of the operator of NATS where it is not this folder's own."""

    @property
    def everybody(self) -> dict[str, str]:
        """All public keys, by user."""
        system = {SYSTEM: self.system} if self.system else {}
        return {**self.users, **system, **self.managers, **self.readers, **self.nodes}

    @property
    def members(self) -> Members:
        """Who may do what."""
        return Members(_ids(self.nodes), _ids(self.managers), self.prefix, _ids(self.readers))

    def role(self, name: str) -> Role:
        """What a user is."""
        if name in self.users:
            return "admin" if name == ADMIN else "operator"
        if name == SYSTEM and self.system:
            return "system"
        if name in self.readers:
            return "reader"
        return "manager" if name in self.managers else "node"


class Changes(Struct, frozen=True):
    """What is to be done to a site.

    Args:
        nodes: nodes that only run slices, to be added where they are not there yet.
        managers: the same of nodes that manage.
        readers: the same of users that only read.
        rotate: users that get another key, as they are called.
        remove: users that are to be no more, as they are called.
    """

    nodes: tuple[NodeId, ...] = ()
    managers: tuple[NodeId, ...] = ()
    readers: tuple[NodeId, ...] = ()
    rotate: tuple[NodeId, ...] = ()
    remove: tuple[NodeId, ...] = ()

    @property
    def rotated(self) -> tuple[str, ...]:
        """Users that get another key."""
        return tuple(dict.fromkeys(map(encode_node, self.rotate)))

    @property
    def removed(self) -> tuple[str, ...]:
        """Users that are to be no more."""
        return tuple(dict.fromkeys(map(encode_node, self.remove)))

    @property
    def wanted(self) -> list[str]:
        """Users that there must be afterwards."""
        return [*RESERVED, *map(encode_node, (*self.managers, *self.readers, *self.nodes))]


def called(name: str) -> str:
    """A user as people call it, and its files."""
    return decode_node(name)


def check(known: SiteRecord, changes: Changes) -> None:
    """Refuse what contradicts itself, or what is there. Raises `UsageError`."""
    _check_names(known, changes)
    for option, names in (("--rotate", changes.rotated), ("--remove", changes.removed)):
        for name in names:
            if name not in known.everybody:
                there = ", ".join(map(called, known.everybody)) or "nobody"
                raise UsageError(f"{option} {called(name)}: there is no such user; there is: {there}")
    if SYSTEM in changes.rotated and known.authority:
        raise UsageError(
            f"--rotate {SYSTEM}: this user belongs to the system account of operator {known.authority}, where it is to "
            "be revoked; the credentials of another user of that account may be put in its place"
        )
    removed = set(changes.removed)
    if both := sorted((set(changes.rotated) | (set(changes.wanted) - set(RESERVED))) & removed):
        raise UsageError(f"--remove {called(both[0])}: the same command adds it, or gives it a new key")
    for name in changes.removed:
        if name in (*RESERVED, SYSTEM):
            raise UsageError(f"--remove {name}: every site has one; --rotate {name} gives it a new key")
    if not ({*map(encode_node, changes.managers)} | known.managers.keys()) - removed:
        raise UsageError("without a manager nothing is managed: name at least one node with --managers")


def _check_names(known: SiteRecord, changes: Changes) -> None:
    nodes, managers, readers = (
        set(map(encode_node, each)) for each in (changes.nodes, changes.managers, changes.readers)
    )
    for name in sorted((nodes | managers | readers) & {*RESERVED, SYSTEM}):
        raise UsageError(f"{name!r} is the name of a user that every site has: give the node another id")
    all_nodes, all_managers, all_readers = (
        nodes | known.nodes.keys(),
        managers | known.managers.keys(),
        readers | known.readers.keys(),
    )
    for name in sorted(all_nodes & all_managers):
        raise UsageError(
            f"{called(name)!r} cannot be both: a node of --managers manages, and may run slices too; one of --nodes "
            "only runs slices"
        )
    for name in sorted(all_readers & (all_nodes | all_managers)):
        raise UsageError(f"{called(name)!r} is a node: give the reader another name")


def _ids(names: Iterable[str]) -> tuple[NodeId, ...]:
    return tuple(node_id(decode_node(name)) for name in names)
