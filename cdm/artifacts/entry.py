"""Which file of an artifact is run."""

from __future__ import annotations

from typing import Literal

import msgspec

from cdm.artifacts.tree import Tree, readable
from cdm.errors import InvalidContent, InvalidManifest
from cdm.model.manifest import IMAGE_LISTS, Manifest


def completed(manifest: Manifest, tree: Tree) -> Manifest:
    """The manifest with its entry filled in, where it runs a program.

    Raises:
        InvalidManifest: what it names is not in the content, and could not be on a node's PATH.
        InvalidContent: the only file cannot be named in a manifest.
    """
    if manifest.container is not None:
        return manifest
    if not tree.is_folder(manifest.directory):
        raise InvalidManifest(f"directory: there is no folder {manifest.directory!r} in the content")
    entry = manifest.entry
    if not entry:
        if len(tree.files) != 1:
            told = f"entry: is empty, and the content has {len(tree.files):,} files; name one of them"
            if any(tree.is_file(each) for each in IMAGE_LISTS):
                told += ", or, where it is the image of a container, write container = {} into the manifest"
            raise InvalidManifest(told)
        (only,) = tree.files
        if only != readable(only):
            raise InvalidContent(f"{only!r}, the only file, has a name that is not UTF-8; rename it")
        return msgspec.structs.replace(manifest, entry=only)
    if program_of(manifest, tree) is None:
        kind = "a folder" if tree.is_folder(entry) else "not in the content"
        raise InvalidManifest(f"entry: {entry!r} is {kind}")
    return manifest


def program_of(manifest: Manifest, tree: Tree) -> Literal["inside", "path"] | None:
    """Where the manifest's entry is found: inside the artifact, on the PATH of nodes if anywhere, or nowhere."""
    if tree.is_file(manifest.entry):
        return "inside"
    if not manifest.entry or "/" in manifest.entry or "\0" in manifest.entry or tree.is_folder(manifest.entry):
        return None
    return "path"
