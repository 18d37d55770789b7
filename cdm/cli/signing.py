"""``cdm artifact sign`` and ``cdm artifact verify``: who vouches for what is stored."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cdm.artifacts.repository import Artifacts
from cdm.artifacts.signing import Signed, SigningKey, TrustedKeys
from cdm.artifacts.stored import StoredArtifact
from cdm.cli.connected import run_connected
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, ArtifactName, Json
from cdm.cli.pushing import signing_key, what_comes_of
from cdm.cli.screen import print_json
from cdm.cli.transfer_bar import TransferBar
from cdm.errors import Conflict
from cdm.model.artifact import Artifact
from cdm.store.connection import Connection


class _Look(NamedTuple):
    """A stored artifact, all of whose bytes were read, and what of it is signed."""

    stored: StoredArtifact
    signed: Signed


def sign(
    artifact: ArtifactName,
    /,
    connection: ConnectionOptions = HERE,
    *,
    key: Path,
    sha256: str = "",
    json: Json = False,
) -> int:
    """Sign what is stored: its name, its content and its manifest. All of it is read first.

    Parameters
    ----------
    key
        File with the seed of the key (`nats auth nkey gen user`).
    sha256
        The digest that it must have, or how that begins. [default: whatever is stored is signed]
    """
    signer = signing_key(key)
    signing = partial(_sign, name=artifact, key=signer, sha256=sha256.lower())
    look, note = run_connected(connection, "cdm artifact", signing)
    if note:
        print(f"cdm: note: {note}", file=sys.stderr)
    digest = look.stored.content.sha256
    if json:
        print_json({"artifact": str(artifact), "sha256": digest, "signed_by": signer.public})
    else:
        print(f"{artifact}: signed by {signer.public} (sha256 {digest[:12]})")
    return 0


def verify(
    artifact: ArtifactName,
    /,
    connection: ConnectionOptions = HERE,
    *,
    trust: Path | None = None,
    json: Json = False,
) -> int:
    """Read all that is stored, compare it with its digest, and verify the signatures.

    Exits with 1 where it is damaged, or has no valid signature by a key in --trust; without that, by anyone.

    Parameters
    ----------
    trust
        File with public keys, one a line, as nodes have it.
    """
    trusted = TrustedKeys.read(trust) if trust is not None else None
    look = run_connected(connection, "cdm artifact", partial(_read, name=artifact))
    signed, content = look.signed, look.stored.content
    valid = signed.valid()
    problem = (trusted or TrustedKeys(frozenset(valid))).problem_with(signed)
    if json:
        told: dict[str, Any] = {"artifact": str(artifact), "sha256": content.sha256, "problem": problem}
        told["signatures"] = [
            {"key": key, "valid": key in valid, "trusted": None if trusted is None else key in trusted.keys}
            for key in sorted(signed.signatures)
        ]
        print_json(told)
        return 1 if problem else 0
    print(f"{artifact}: whole (sha256 {content.sha256[:12]})")
    for key in sorted(signed.signatures):
        says = "valid" if key in valid else "not of this content and manifest"
        if trusted is not None:
            says += ", trusted" if key in trusted.keys else ", not trusted"
        print(f"  {key}: {says}")
    if problem:
        print(f"cdm: {artifact} is not vouched for: {problem}")
    return 1 if problem else 0


async def _read(connection: Connection, name: Artifact) -> _Look:
    artifacts = Artifacts(connection)
    stored = await artifacts.describe(name)
    with TransferBar(f"reading {name}") as shown:
        manifest = await artifacts.read(stored, shown)
    return _Look(stored, Signed.of(name, stored.content, manifest))


async def _sign(connection: Connection, name: Artifact, key: SigningKey, sha256: str) -> tuple[_Look, str]:
    """Sign it; returns what, and what is to be noted about slices that were to run before."""
    look = await _read(connection, name)
    content = look.stored.content
    if not content.sha256.startswith(sha256):
        raise Conflict(f"{name} has the content {content.sha256}, not {sha256}; nothing was signed")
    if not content.tail:
        raise Conflict(f"{name} is stored as earlier versions did, which cannot be signed; push it again with --force")
    await Artifacts(connection).sign(look.stored, key.sign(look.signed))
    return look, await what_comes_of(connection, name)
