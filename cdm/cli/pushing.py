"""What is pushed: packed, with its manifest, signed, and in a form that all nodes can read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from cdm.artifacts.packing import Packed
from cdm.artifacts.signing import Signed, SigningKey
from cdm.cli.log_setup import remark
from cdm.dispatch.messages import ValuePut
from cdm.errors import Conflict, StoreError
from cdm.model.artifact import Artifact
from cdm.model.content import Content
from cdm.model.keys import STATUS, NodeKey, StatusKey, encode_artifact
from cdm.model.manifest import Manifest
from cdm.model.node import EXTERNAL, MANIFEST_INSIDE, Registration
from cdm.model.secret import secrets_in
from cdm.model.status import Condition, Status
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot

PATIENCE = 5.0
"""Seconds without anything that comes after which looking at the nodes is given up."""


class Offer(NamedTuple):
    """What is to be pushed."""

    artifact: Artifact
    packed: Packed
    manifest: Manifest
    key: SigningKey | None = None
    """Who signs it; None: nobody does."""

    @property
    def content(self) -> Content:
        """What describes it, signed, with the manifest inside."""
        content = self.packed.content(self.manifest)
        if self.key is None:
            return content
        return replace(content, signatures=self.key.sign(Signed.of(self.artifact, content, self.manifest.stored)))


def key_of(path: Path | None) -> SigningKey | None:
    """The key that was asked for. Raises `UsageError`."""
    return None if path is None else signing_key(path)


def signing_key(path: Path) -> SigningKey:
    """Read a key that signs; tells where others can read it, too. Raises `UsageError`."""
    key = SigningKey(path)
    if path.stat().st_mode & 0o077:
        remark(f"others may read {path}: chmod 600 {path}")
    return key


async def content_for_nodes(connection: Connection, offer: Offer) -> Content:
    """What describes what is pushed, in the form that the nodes can read that are there.

    Raises:
        Conflict: not all of them can read what is asked for.
    """
    old = await too_old(connection)
    if not old:
        return offer.content
    manifest = offer.manifest
    if offer.key is not None or secrets_in(manifest.env) or manifest.override or manifest.container is not None:
        told = "are signed, are containers, have secrets or `override`"
        raise Conflict(f"{old} cannot read artifacts that {told}; upgrade it first")
    if offer.manifest.env:  # without it there is nothing that the note could be about
        remark(f"note: {old} needs the manifest beside the content, where whoever lists objects can read its env")
    return offer.packed.content(offer.manifest, inside=False)


def tried_again(name: Artifact) -> str:
    """When what failed is started once more."""
    return f"tried again within 5 minutes, or at once: cdm restart {name}"


async def what_comes_of(connection: Connection, name: Artifact) -> str:
    """What follows for what failed, or was taken back, of an artifact of which something else is stored now.

    For people; empty: nothing failed, as far as can be seen.
    """
    with suppress(StoreError, msgspec.MsgspecError):  # whoever may push need not have the right to read status
        stored = await Bucket(connection, STATUS).read_near(StatusKey(encode_artifact(name)))
        if stored is not None and stored.payload is not None:
            status = msgspec.json.decode(stored.payload, type=Status)
            if status.condition is Condition.REVERTED:
                return f"it was taken back: `cdm rollout retry {name.service}` tries it once more"
            if status.failed:
                return f"slices of {name} that failed are {tried_again(name)}"
    return ""


async def too_old(connection: Connection) -> str:
    """A node that cannot read a manifest inside the content, for people; empty: none, as far as can be seen."""
    old: list[tuple[str, str]] = []
    try:
        for message in await snapshot(connection, PATIENCE, ("nodes",)):
            match message:
                case ValuePut(key=NodeKey(node), value=Registration() as value) if _is_too_old(value):
                    ours = value.version and value.runtime != EXTERNAL
                    old.append((node, f"its cdm {value.version}" if ours else "its agent"))
    except* StoreError:  # whoever may push need not have the right to see nodes
        pass
    if not old:
        return ""
    first, told = min(old)
    return f"node {first} ({told})" + (f" and {len(old) - 1} more" if len(old) > 1 else "")


def _is_too_old(registration: Registration) -> bool:
    return registration.hosts and MANIFEST_INSIDE not in registration.features
