"""How what is pushed is to be run: by a file and by options, or as the version before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from cdm.artifacts.entry import completed, program_of
from cdm.artifacts.packing import Packed
from cdm.artifacts.tree import Tree
from cdm.cli.known import nearest
from cdm.cli.options import pairs_of
from cdm.errors import InvalidManifest, UsageError
from cdm.model.manifest import Manifest


def manifest_of(path: Path | None, entry: str | None, env: Sequence[str]) -> Manifest:
    """The manifest that options say."""
    found = Manifest()
    if path is not None:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise UsageError(f"manifest {path} cannot be read: {error.strerror}") from None
        try:
            found = Manifest.parse(raw)
        except InvalidManifest as error:
            raise InvalidManifest(f"manifest {path}: {error}") from None
    fields: dict[str, Any] = msgspec.to_builtins(found)
    if entry is not None:
        fields["entry"] = entry
    fields["env"] = {**fields["env"], **pairs_of(env, "variable", "--env")}
    try:
        return Manifest.parse(msgspec.json.encode(fields))
    except UnicodeEncodeError as error:
        raise UsageError(f"--entry, --env: {error.object!r} is not UTF-8") from None


def completed_manifest(manifest: Manifest, packed: Packed, path: Path | None) -> Manifest:
    """The same with the entry, where it goes without saying; ``path`` is where it was read from."""
    try:
        return completed(manifest, packed.tree)
    except InvalidManifest as error:
        raise InvalidManifest(f"manifest {path}: {error}" if path else f"{error} (see --entry, --manifest)") from None


def inherited(before: Manifest, tree: Tree, entry: str | None = None) -> Manifest:
    """The manifest of an earlier version, for another content, whose program may have another name.

    Args:
        before: the manifest.
        tree: the content.
        entry: the program, if it is known.
    """
    if entry is None:
        entry = before.entry if program_of(before, tree) is not None else ""
    return replace(before, entry=entry)


def needed_on_nodes(manifest: Manifest, tree: Tree) -> str:
    """Which program nodes need beside the content, for people; empty: none, as far as can be known."""
    entry = manifest.entry
    if program_of(manifest, tree) != "path":
        return ""
    below = [each for each in tree.files if each.endswith(f"/{entry}")]
    close = nearest(entry, below or [each for each in tree.files if "/" not in each])
    return f"nodes need {entry!r} on their PATH: it is not in the content{close}"


def settings_in(manifest: Manifest) -> list[str]:
    """The fields, but for the program's name, in which a manifest says something else than an empty one."""
    fields, usual = (name for name in manifest.__struct_fields__ if name != "entry"), Manifest()
    return [name for name in fields if getattr(manifest, name) != getattr(usual, name)]


def missing_in(manifest: Manifest | None, before: Manifest | None) -> list[str]:
    """What an earlier version's manifest says something of, and this one does not; None: it is not known."""
    if manifest is None or before is None:
        return []
    said = settings_in(manifest)
    return [name for name in settings_in(before) if name not in said]
