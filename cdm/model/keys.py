"""Typed keys, each with the type of its value, and the one codec between them and KV key strings.

The codec is total (every valid key has a string) and reversible (a string that decodes is exactly the string that its
key encodes to), so that nothing has two names. What NATS forbids in a key is written ``=XX`` per UTF-8 byte. A dot is
kept, except where it would leave an empty subject token.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from msgspec import Struct

from cdm.errors import InvalidKey, ModelError
from cdm.model.artifact import Artifact, NodeId, Service, node_id
from cdm.model.blueprint import Blueprint
from cdm.model.content import Description
from cdm.model.last_valid import LastValid
from cdm.model.node import Fence, Intent, Lease, Registration, Seen, Slot
from cdm.model.record import Rollout
from cdm.model.slice import SliceValue
from cdm.model.status import Status

MOST_SLOTS = 10
"""Slots of managers that there can be."""


class Key(Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """Base of all typed keys."""

    value_type: ClassVar[type[Any]]
    """The type of the value that a bucket holds under this key."""


class BlueprintKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``blueprints/{group}/{name}/{version}``."""

    value_type = Blueprint
    artifact: Artifact

    def __str__(self) -> str:
        return f"blueprints/{self.artifact}"


class SliceKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``slices/{node}.{group}/{name}/{version}[/{ordinal}]``; ordinal 0 is the first instance on its node."""

    value_type = SliceValue
    node: NodeId
    artifact: Artifact
    ordinal: int = 0

    def __str__(self) -> str:
        text = f"slices/{self.node}/{self.artifact}"
        return f"{text}#{self.ordinal}" if self.ordinal else text


class LeaseKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``slices/_leader``: the lease."""

    value_type = Lease

    def __str__(self) -> str:
        return "slices/_leader"


class FenceKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``slices/_term``: the fence."""

    value_type = Fence

    def __str__(self) -> str:
        return "slices/_term"


class RolloutKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``slices/_rollout.{group}/{name}``: the record of a service's rollout."""

    value_type = Rollout
    service: Service

    def __str__(self) -> str:
        return f"slices/_rollout.{self.service}"


class LastValidKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``slices/_blueprint.{group}/{name}/{version}``: the copy of a blueprint that is in force."""

    value_type = LastValid
    artifact: Artifact

    def __str__(self) -> str:
        return f"slices/_blueprint.{self.artifact}"


class NodeKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``nodes/{node}``: a node's registration."""

    value_type = Registration
    node: NodeId

    def __str__(self) -> str:
        return f"nodes/{self.node}"


class IntentKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``nodes/{node}.intent``: an operator's intent for a node."""

    value_type = Intent
    node: NodeId

    def __str__(self) -> str:
        return f"nodes/{self.node}.intent"


class SeenKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``nodes/{node}.seen``: what the leader remembers of a node."""

    value_type = Seen
    node: NodeId

    def __str__(self) -> str:
        return f"nodes/{self.node}.seen"


class SlotKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``nodes/_manager.{number}``: a manager's slot."""

    value_type = Slot
    number: int

    def __str__(self) -> str:
        return f"nodes/{slots_of(self.number)}"


class StatusKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``status/{name}``, where ``name`` is exactly a key string of ``blueprints``.

    It is not decoded: a blueprint whose key does not parse has a status too, which says so.
    """

    value_type = Status
    name: str

    def __str__(self) -> str:
        return f"status/{self.name}"


class ContentKey(Key, frozen=True, order=True, cache_hash=True, gc=False):
    """``artifacts``, a bucket of the object store: what describes an object, which may be an artifact's content.

    It is not decoded: what else lies there is nobody's error.
    """

    value_type = Description
    token: str
    """The object's name in URL-safe base64, as clients of object stores have it in subjects."""

    @property
    def artifact(self) -> Artifact | None:
        """The artifact that the object is the content of; None: of none."""
        try:
            name = base64.b64decode(self.token, b"-_", validate=True)
            return decode_artifact(name.decode()) if base64.urlsafe_b64encode(name).decode() == self.token else None
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"artifacts/{self.artifact or self.token}"


LEASE = LeaseKey()
FENCE = FenceKey()
_LEASE_NAME = "_leader"
_FENCE_NAME = "_term"
_ROLLOUT = "_rollout"
_BLUEPRINT = "_blueprint"
_SLOT = "_manager."
_INTENT_SUFFIX = ".intent"
_SEEN_SUFFIX = ".seen"
_SUFFIXES: dict[type[Key], str] = {NodeKey: "", IntentKey: _INTENT_SUFFIX, SeenKey: _SEEN_SUFFIX}

_UNSAFE = re.compile(r"[^-_.a-zA-Z0-9]|^\.|\.$|(?<=\.)\.")
_UNSAFE_NODE = re.compile(r"[^-_a-zA-Z0-9]")
_ESCAPED = re.compile(r"(?:=[0-9A-F]{2})+")
_PLAIN_PART = r"([-_a-zA-Z0-9]+(?:\.[-_a-zA-Z0-9]+)*)"
_PLAIN = re.compile(rf"{_PLAIN_PART}/{_PLAIN_PART}/{_PLAIN_PART}")
"""The path of an artifact in which nothing is escaped, as most are."""


def _hex(match: re.Match[str]) -> str:
    return "".join(f"={byte:02X}" for byte in match[0].encode())


def _unhex(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("=", "")).decode()


@lru_cache(maxsize=65_536)
def encode_artifact(artifact: Artifact) -> str:
    """``{group}/{name}/{version}``, escaped."""
    path = f"{artifact.group}/{artifact.name}/{artifact.version}"
    if _PLAIN.fullmatch(path):
        return path
    return "/".join(_UNSAFE.sub(_hex, part) for part in (artifact.group, artifact.name, artifact.version))


@lru_cache(maxsize=16_384)
def encode_node(node: NodeId) -> str:
    """A node id as one subject token."""
    return _UNSAFE_NODE.sub(_hex, node)


def _unescape(text: str) -> str:
    try:
        return _ESCAPED.sub(_unhex, text)
    except UnicodeDecodeError as error:
        raise InvalidKey(f"{text!r} holds an escape that is not UTF-8: {error}") from None


@lru_cache(maxsize=65_536)
def decode_artifact(path: str) -> Artifact:
    """Read ``{group}/{name}/{version}``; raises `InvalidKey`."""
    plain = _PLAIN.fullmatch(path)
    parts = plain.groups() if plain else path.split("/")
    if len(parts) != 3:
        raise InvalidKey(f"{path!r} is not of the form group/name/version")
    try:
        artifact = Artifact(*(parts if plain else map(_unescape, parts)))
    except ModelError as error:
        raise InvalidKey(str(error)) from None
    if not plain and encode_artifact(artifact) != path:
        raise InvalidKey(f"{path!r} is not the key of {artifact}, which is {encode_artifact(artifact)!r}")
    return artifact


def encode_service(service: Service) -> str:
    """``{group}/{name}``, escaped."""
    return "/".join(_UNSAFE.sub(_hex, part) for part in (service.group, service.name))


def decode_service(path: str) -> Service:
    """Read ``{group}/{name}``; raises `InvalidKey`."""
    parts = path.split("/")
    if len(parts) != 2:
        raise InvalidKey(f"{path!r} is not of the form group/name")
    try:
        service = Service(*map(_unescape, parts))
    except ModelError as error:
        raise InvalidKey(str(error)) from None
    if encode_service(service) != path:
        raise InvalidKey(f"{path!r} is not the key of {service}, which is {encode_service(service)!r}")
    return service


@lru_cache(maxsize=16_384)
def decode_node(token: str) -> NodeId:
    """Read a node id from its subject token; raises `InvalidKey`."""
    try:
        node = node_id(_unescape(token))
    except ModelError as error:
        raise InvalidKey(str(error)) from None
    if encode_node(node) != token:
        raise InvalidKey(f"{token!r} is not the key of node {node!r}, which is {encode_node(node)!r}")
    return node


def _decode_blueprint(name: str) -> Key:
    return BlueprintKey(decode_artifact(name))


@lru_cache(maxsize=65_536)
def _decode_instance(path: str) -> tuple[Artifact, int]:
    """Read ``{group}/{name}/{version}[/{ordinal}]``; raises `InvalidKey`."""
    if path.count("/") != 3:
        return decode_artifact(path), 0
    path, _, last = path.rpartition("/")
    if not (last.isascii() and last.isdigit()) or last[0] == "0" or len(last) > 6:
        raise InvalidKey(f"{path}/{last} ends with {last!r}, which is not an ordinal (1, 2, …)")
    return decode_artifact(path), int(last)


def _decode_slice(name: str) -> Key:
    token, dot, path = name.partition(".")
    if not dot:
        if name == _LEASE_NAME:
            return LEASE
        if name == _FENCE_NAME:
            return FENCE
        raise InvalidKey(f"{name!r} is not of the form node.group/name/version")
    if token == _ROLLOUT:
        return RolloutKey(decode_service(path))
    if token == _BLUEPRINT:
        return LastValidKey(decode_artifact(path))
    return SliceKey(decode_node(token), *_decode_instance(path))


def slots_of(number: int | str) -> str:
    """The key string of a manager's slot; with ``*``, a pattern for those of all."""
    return f"{_SLOT}{number}"


def _decode_node(name: str) -> Key:
    if name.startswith(_SLOT):
        number = name.removeprefix(_SLOT)
        if not (number.isascii() and number.isdigit()) or len(number) > 1:
            raise InvalidKey(f"{name!r} is not that of a manager's slot ({_SLOT}0 to {_SLOT}{MOST_SLOTS - 1})")
        return SlotKey(int(number))
    if name.endswith(_SEEN_SUFFIX):
        kind: type[SeenKey | IntentKey | NodeKey] = SeenKey
    else:
        kind = IntentKey if name.endswith(_INTENT_SUFFIX) else NodeKey
    token = name.removesuffix(_SEEN_SUFFIX if kind is SeenKey else _INTENT_SUFFIX)
    if "." in token:  # most likely a typing error
        raise InvalidKey(f"{name!r} is neither a node's key nor that of an intent (NODE{_INTENT_SUFFIX})")
    return kind(decode_node(token))


def encode(key: Key) -> str:
    """The KV key string of a typed key, without the bucket."""
    match key:
        case SliceKey():  # its fields are not named here, which would take as long as all the rest
            name = f"{encode_node(key.node)}.{encode_artifact(key.artifact)}"
            return f"{name}/{key.ordinal}" if key.ordinal else name
        case BlueprintKey(artifact):
            return encode_artifact(artifact)
        case StatusKey(name) | ContentKey(name):
            return name
        case NodeKey(node) | IntentKey(node) | SeenKey(node):
            return encode_node(node) + _SUFFIXES[type(key)]
        case RolloutKey(service):
            return f"{_ROLLOUT}.{encode_service(service)}"
        case LastValidKey(artifact):
            return f"{_BLUEPRINT}.{encode_artifact(artifact)}"
        case SlotKey(number):
            return slots_of(number)
        case LeaseKey() | FenceKey():
            return _LEASE_NAME if key == LEASE else _FENCE_NAME
    raise TypeError(f"no bucket holds {type(key).__name__}")


class Layout(NamedTuple):
    """A bucket: its name without prefix, its kinds of keys, and how key strings are read."""

    name: str
    kinds: tuple[type[Key], ...]
    decode: Callable[[str], Key]
    """KV key string to typed key; raises `InvalidKey`."""
    history: int = 1
    """Revisions that are kept of each key."""
    expires: bool = False
    """Whether values may have a TTL."""
    rolls_up: bool = False
    """Whether clients may roll its keys up, as ``nats kv purge`` does: one message then removes all others of its key,
    or of the bucket. Where they may, the server leaves a marker of what expires."""


BLUEPRINTS = Layout("blueprints", (BlueprintKey,), _decode_blueprint, history=10, rolls_up=True)
SLICES = Layout("slices", (SliceKey, LeaseKey, FenceKey, RolloutKey, LastValidKey), _decode_slice, expires=True)
NODES = Layout("nodes", (NodeKey, IntentKey, SeenKey, SlotKey), _decode_node, expires=True)
STATUS = Layout("status", (StatusKey,), StatusKey)
LAYOUTS = (BLUEPRINTS, SLICES, NODES, STATUS)
"""The buckets that cdm keeps its values in."""


def bucket_of(kind: type[Key]) -> str:
    """The bucket, without prefix, that holds keys of this kind."""
    return next(layout.name for layout in LAYOUTS if kind in layout.kinds)


def place(which: Key | tuple[type[Key], str]) -> tuple[str, str]:
    """The bucket, without prefix, and the name in it of a key, or of one that cannot be read and its kind."""
    kind, name = which if isinstance(which, tuple) else (type(which), encode(which))
    return bucket_of(kind), name


ARTIFACTS = Layout("artifacts", (ContentKey,), ContentKey)
"""A bucket of the object store; its keys are what describes the objects."""
