"""``cdm artifact``: push programs to the cluster's store, list them, remove them."""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from msgspec.structs import replace

from cdm.artifacts.kept import KeptContent
from cdm.artifacts.packing import pack, problem_with_program
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import Pushed, StoredArtifact, UnreadableArtifact
from cdm.cli.commands.described import examples
from cdm.cli.connected import run_connected
from cdm.cli.copying import copy, get
from cdm.cli.known import nearest, stored_artifacts
from cdm.cli.log_setup import LogLevel
from cdm.cli.manifests import completed_manifest, manifest_of, needed_on_nodes
from cdm.cli.options import FLAG, REPLICAS, ConnectionOptions, Replicas
from cdm.cli.parameters import HERE, ArtifactName, Json
from cdm.cli.pushing import Offer, content_for_nodes, key_of, tried_again, what_comes_of
from cdm.cli.rows import LEAST_WIDTH, Column, listing, sheet, show
from cdm.cli.screen import print_json
from cdm.cli.signing import sign as sign_stored
from cdm.cli.signing import verify
from cdm.cli.transfer_bar import TransferBar
from cdm.cli.wording import bytes_shown
from cdm.errors import (
    ArtifactMissing,
    BucketMissing,
    Conflict,
    InvalidBlueprint,
    InvalidContent,
    StoreError,
    UsageError,
)
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.content import Content
from cdm.model.keys import BLUEPRINTS, BlueprintKey
from cdm.model.manifest import Container, Manifest
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection

_Listed = list[tuple[StoredArtifact | UnreadableArtifact, Manifest | None]]

app = App(
    name="artifact",
    help="Push programs to the cluster, list, get, copy and remove them; sign them, verify signatures.",
    help_epilogue=examples("cdm artifact push org.example:slice:1.0.0 ./slice", "cdm artifact ls"),
)


@app.command(
    help=(
        "Store a program under an artifact's name, so that nodes can run it.\n\n"
        "What is stored is not changed: other content or another manifest needs another version, or --force. Pushing "
        "the same again does nothing. Exits with 2 where the path or the manifest cannot be used, and with 4 where "
        "the name has other content or another manifest."
    ),
    help_epilogue=examples(
        "cdm artifact push org.example:slice:1.0.0 ./slice",
        "cdm artifact push org.example:worker:1.0.0 worker.py --manifest worker.toml",
        "cdm artifact push org.example:web:1.0.0 --image web:1.0.0 --manifest web.toml",
    ),
)
def push(
    artifact: ArtifactName,
    path: Path | None = None,
    /,
    connection: ConnectionOptions = HERE,
    *,
    image: str | None = None,
    entry: str | None = None,
    env: Annotated[tuple[str, ...], Parameter(name="--env", negative="", show_default=False)] = (),
    manifest: Path | None = None,
    sign: Path | None = None,
    force: Annotated[bool, FLAG] = False,
    replicas: Annotated[Replicas, REPLICAS] = 1,
    json: Json = False,
) -> int:
    """Store a program under an artifact's name, so that nodes can run it.

    Parameters
    ----------
    path
        A program, a script, a folder, or a .tar.gz, which the nodes unpack.
    image
        Instead of a path: an image of this machine's container engine, for nodes whose runtime is "container".
    entry
        The program to run, relative to the folder or archive; not needed where there is only one file.
    env
        A variable for the program, NAME=VALUE; may be repeated.
    manifest
        File (TOML or JSON) that says how to run it. --entry and --env take precedence.
    sign
        File with the seed of a key to sign it with (`nats auth nkey gen user`).
    force
        Replace what is stored. What slices run, or rollouts name, stays in the store for as long as they do.
    replicas
        Replicas of the bucket, if this push creates it.
    """
    wanted, key = manifest_of(manifest, entry, env), key_of(sign)
    with tempfile.TemporaryDirectory(prefix="cdm-push-") as folder:
        if image is not None:
            wanted = replace(wanted, container=wanted.container or Container())
        packed = pack(_source(path, image, Path(folder)), Path(folder))
        run_as = completed_manifest(wanted, packed, manifest)
        problem = problem_with_program(packed, run_as)
        offer = Offer(artifact, packed, run_as, key)
        pushing = partial(_push, offer=offer, force=force, replicas=replicas)
        content, result, note = run_connected(connection, "cdm artifact", pushing)
    if note:
        print(f"cdm: note: {note}", file=sys.stderr)
    if problem:
        print(f"cdm: warning: no node can run this as a program: {problem}", file=sys.stderr)
    if needed := needed_on_nodes(run_as, packed.tree):
        print(f"cdm: warning: {needed}", file=sys.stderr)
    if json:
        print_json({"artifact": str(artifact), "result": result, **_fields(content, run_as)})
        return 0
    said = {
        Pushed.STORED: "pushed",
        Pushed.REPLACED: "replaced",
        Pushed.UNCHANGED: "unchanged: this content and manifest are stored already",
        Pushed.SIGNED: "signed: this content and manifest are stored already",
        Pushed.REPAIRED: "repaired: some of its bytes were missing from the store, or altered there",
    }
    print(f"{artifact}: {said[result]} ({bytes_shown(content.data_size)}, sha256 {content.sha256[:12]})")
    return 0


@app.command(help_epilogue=examples("cdm artifact ls"))
def ls(
    connection: ConnectionOptions = HERE,
    *,
    json: Json = False,
) -> int:
    """List the artifacts in the store."""
    found, kept = run_connected(connection, "cdm artifact", _list, level=LogLevel.ERROR)
    if json:
        print_json({"artifacts": [_described(*each) for each in found], "kept": [_described(*each) for each in kept]})
        return 0
    show(_table(found) or ["there are no artifacts"])
    if kept:
        size = bytes_shown(sum(each.content.data_size for each, _ in kept))
        several = f"{len(kept)} contents" if len(kept) > 1 else "1 content"
        print(f"and {several} ({size}) of earlier pushes, kept for slices and rollouts that name them")
    return 0


@app.command(
    help=(
        "Remove an artifact from the store.\n\n"
        "What runs on nodes already goes on running; a content that slices or rollouts name stays in the store for as "
        "long as they do. Exits with 1 where there is no such artifact, and with 4 where a "
        "blueprint needs it."
    ),
    help_epilogue=examples("cdm artifact rm org.example:slice:1.0.0"),
)
def rm(
    artifact: ArtifactName,
    /,
    connection: ConnectionOptions = HERE,
    *,
    force: Annotated[bool, FLAG] = False,
    json: Json = False,
) -> int:
    """Remove an artifact from the store.

    Parameters
    ----------
    force
        Remove it although a blueprint needs it, and all of its contents, whatever names them.
    """
    kept = run_connected(connection, "cdm artifact", partial(_remove, name=artifact, force=force))
    if json:
        print_json({"artifact": str(artifact), "result": "removed", "kept": kept})
        return 0
    print(f"{artifact}: removed" + ("; its content is kept while slices or rollouts name it" if kept else ""))
    return 0


app.command(
    get,
    help=(
        "Write what is stored of an artifact to a file: the program, or the archive of a folder.\n\n"
        "What is written was compared with its digest. Pushed again with the same manifest it is the same artifact. "
        "Exits with 4 where the file is there already."
    ),
    help_epilogue=examples(
        "cdm artifact get org.example:slice:1.0.0",
        "cdm artifact get org.example:slice:1.0.0 slice.tar --manifest slice.json",
        "cdm artifact get org.example:slice:1.0.0 - | tar -t",
    ),
)
app.command(
    copy,
    help=(
        "Copy artifacts into the store of another cluster, as they are: same digests, manifests and signatures.\n\n"
        "What is there already is not copied again. Where the other cluster has another content under one of the names "
        "nothing is copied, and the exit code is 4."
    ),
    help_epilogue=examples(
        "cdm artifact copy org.example:slice:1.0.0 --to production", "cdm artifact copy --all --context old --to new"
    ),
)
app.command(
    sign_stored, name="sign", help_epilogue=examples("cdm artifact sign org.example:slice:1.0.0 --key release.seed")
)
app.command(verify, help_epilogue=examples("cdm artifact verify org.example:slice:1.0.0 --trust trust.txt"))


def _source(path: Path | None, image: str | None, folder: Path) -> Path:
    """What is to be pushed; an image is written to the folder. Raises `UsageError`."""
    if image is not None and path is None:
        from cdm.cli.saving import save_image  # noqa: PLC0415  # few push images, and its library takes its time

        return save_image(image, folder / "image.tar")
    if path is None or image is not None:
        raise UsageError("name a path, or an image with --image REF")
    return path


# What is shown


def _fields(content: Content, manifest: Manifest | None) -> dict[str, Any]:
    return {
        "form": content.form,
        "file": content.file,
        "size": content.data_size,
        "unpacked": content.unpacked,
        "sha256": content.sha256,
        "manifest": manifest,
        "signed_by": sorted(content.signatures),
    }


def _table(found: _Listed) -> list[str]:
    rows = []
    for each, manifest in found:
        if isinstance(each, UnreadableArtifact):
            rows.append((each.name, "", "", "", each.problem))
        elif manifest is not None:
            content, pushed = each.content, each.pushed[:19].replace("T", " ")
            size = bytes_shown(content.data_size)
            rows.append((str(each.artifact), size, pushed, content.sha256[:12], _entry(manifest)))
    names, sizes, pushed_at, digests, entries = [*zip(*rows, strict=True)] or [()] * 5
    columns = [
        Column("artifact", names, least=LEAST_WIDTH),
        Column("size", sizes, right=True),
        Column("pushed", pushed_at),
        Column("sha256", digests),
        Column("entry", entries, ["" if digest else "red" for digest in digests], least=2 * LEAST_WIDTH),
    ]
    return listing(columns, sheet())


def _entry(manifest: Manifest) -> str:
    return manifest.entry if manifest.container is None else "(container)"


def _described(each: StoredArtifact | UnreadableArtifact | KeptContent, manifest: Manifest | None) -> dict[str, Any]:
    if isinstance(each, UnreadableArtifact):
        return {"artifact": each.name, "problem": each.problem}
    if isinstance(each, KeptContent):
        return {"artifact": str(each.artifact), "since": each.since, **_fields(each.content, manifest)}
    return {"artifact": str(each.artifact), "pushed": each.pushed, **_fields(each.content, manifest)}


# With the store


async def _push(connection: Connection, offer: Offer, *, force: bool, replicas: int) -> tuple[Content, Pushed, str]:
    """Store it; returns what and the result, and what is to be noted about slices that were to run before."""
    artifacts, name = Artifacts(connection), offer.artifact
    content = await content_for_nodes(connection, offer)
    await artifacts.ensure(create=True, replicas=replicas)
    with TransferBar(f"pushing {name}") as shown:
        result = await artifacts.push(name, offer.packed.path, content, force=force, progress=shown)
    note = ""
    if result is Pushed.STORED:
        with suppress(StoreError):  # whoever may push need not have the right to read blueprints
            if wanted := await _wanted(connection, name):
                then = await what_comes_of(connection, name) or f"slices that failed without it are {tried_again(name)}"
                note = f"blueprint {name} asks for {wanted}; {then}"
    elif result is not Pushed.UNCHANGED:
        note = await what_comes_of(connection, name)
    return content, result, note


async def _list(connection: Connection) -> tuple[_Listed, list[tuple[KeptContent, Manifest | None]]]:
    """What is there, and what is kept, each with its manifest."""
    artifacts, found = Artifacts(connection), _Listed()
    for each in await artifacts.listing():
        if isinstance(each, UnreadableArtifact):
            found.append((each, None))
            continue
        try:
            found.append((each, await artifacts.manifest(each)))
        except InvalidContent as error:
            found.append((UnreadableArtifact(str(each.artifact), str(error)), None))
    kept: list[tuple[KeptContent, Manifest | None]] = []
    for content in await artifacts.kept():
        with suppress(InvalidContent):  # it went at this moment
            kept.append((content, await artifacts.manifest(content)))
    return found, kept


async def _remove(connection: Connection, name: Artifact, *, force: bool) -> bool:
    artifacts = Artifacts(connection)
    try:
        if not force:
            with suppress(InvalidContent):  # it can be removed all the same
                await artifacts.describe(name)
            if wanted := await _wanted(connection, name):
                raise Conflict(f"blueprint {name} asks for {wanted}; delete it first, or use --force")
        return await artifacts.remove(name, force=force)
    except ArtifactMissing:
        close = nearest(str(name), await stored_artifacts(connection))
        raise ArtifactMissing(f"there is no artifact {name}{close}; `cdm artifact ls` lists them") from None


async def _wanted(connection: Connection, name: Artifact) -> str:
    """What a blueprint asks for of an artifact; empty: there is no blueprint, or it asks for no instances."""
    bucket = Bucket(connection, BLUEPRINTS)
    try:
        await bucket.state()
    except BucketMissing:
        return ""
    stored = await bucket.read_near(BlueprintKey(name))
    if stored is None or stored.payload is None:
        return ""
    try:
        blueprint = Blueprint.parse(stored.payload)
    except InvalidBlueprint:
        return "it (and cannot be read)"  # the last valid one is in force
    if blueprint.each:
        return "an instance of it on each node"
    count = blueprint.instances
    return f"{count} instance{'s' if count > 1 else ''} of it" if count else ""
