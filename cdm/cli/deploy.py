"""``cdm deploy``: a version takes over from the one that is in force."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from msgspec.structs import replace

from cdm.artifacts.packing import Packed, pack, problem_with_program
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.signing import SigningKey
from cdm.artifacts.stored import Pushed
from cdm.cli.connected import run_connected
from cdm.cli.editing import edited, looked
from cdm.cli.following import finished, shown_line, unsaid
from cdm.cli.known import nearest, stored_artifacts
from cdm.cli.lasting import WAIT, WaitOptions, check_timeout
from cdm.cli.log_setup import remark
from cdm.cli.manifests import completed_manifest, inherited, manifest_of, missing_in, needed_on_nodes, settings_in
from cdm.cli.options import FLAG, whole
from cdm.cli.parameters import ArtifactName
from cdm.cli.plans import Edit, deploying, stamp
from cdm.cli.pushing import Offer, content_for_nodes, key_of
from cdm.cli.transfer_bar import TransferBar
from cdm.errors import AccessDenied, ArtifactMissing, BucketMissing, Conflict, InvalidContent, UsageError
from cdm.model import edit
from cdm.model.artifact import Artifact
from cdm.model.content import Form
from cdm.model.manifest import Manifest
from cdm.model.rules_typed import MOST_INSTANCES
from cdm.store.connection import Connection

Way = dict[str, Any] | None


class _Program(NamedTuple):
    """What is to be pushed."""

    packed: Packed
    file: Path | None
    """Of the manifest."""
    entry: str | None
    force: bool
    key: SigningKey | None


def deploy(
    artifact: ArtifactName,
    path: Path | None = None,
    /,
    *,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    canary: str | None = None,
    blue_green: Annotated[bool, FLAG] = False,
    rolling: Annotated[bool, FLAG] = False,
    instances: Annotated[int | None, whole(most=MOST_INSTANCES)] = None,
    entry: str | None = None,
    manifest: Path | None = None,
    sign: Path | None = None,
    force: Annotated[bool, FLAG] = False,
    wait: bool = True,
    options: WaitOptions = WAIT,
) -> int:
    """Have a version take over from the one in force, with its number of instances and its settings.

    Parameters
    ----------
    path
        A program, a script, a folder, or a .tar.gz to push first. [default: what was pushed before]
    source
        The version that is replaced. [default: the one in force]
    canary
        Go in these steps: per cent of the instances, pauses, approvals; as in 10,50 or 10,5m,50,approve.
    blue_green
        Start all new instances beside the old ones, then switch.
    rolling
        Replace one instance after another, though the settings before say otherwise.
    instances
        How many. [default: as many as the version before; 1 where there is none]
    entry
        The program to run, relative to the folder or archive that is pushed.
    manifest
        File (TOML or JSON) that says how to run what is pushed. [default: as the version that is replaced]
    sign
        File with the seed of a key to sign with what is pushed.
    force
        Push over what is stored of this version; instances that run are replaced.
    wait
        Wait until the version serves, or is taken back.
    """
    check_timeout(options, wait=wait)
    way = _way(canary, blue_green=blue_green, rolling=rolling)
    if path is None and (entry or manifest or sign or force):
        raise UsageError("--entry, --manifest, --sign, --force: they are about what is pushed, and no path is given")
    plan = partial(deploying, artifact=artifact, source=source, instances=instances, way=way)
    run = partial(_deploy, artifact=artifact, plan=plan, options=options, wait=wait)
    if path is None:
        return run_connected(options.connection, "cdm deploy", partial(run, program=None))
    if manifest is not None:
        manifest_of(manifest, entry, ())  # what is wrong with it is said before a large folder is packed
    with tempfile.TemporaryDirectory(prefix="cdm-push-") as folder:
        program = _Program(pack(path, Path(folder)), manifest, entry, force, key_of(sign))
        return run_connected(options.connection, "cdm deploy", partial(run, program=program))


def _way(canary: str | None, *, blue_green: bool, rolling: bool) -> Way:
    if (canary is not None) + blue_green + rolling > 1:
        raise UsageError("--canary, --blue-green, --rolling: choose one")
    if canary is not None:
        return edit.canary_way(canary.split(","))
    if blue_green:
        return edit.blue_green_way()
    return edit.rolling_way() if rolling else None


async def _deploy(
    connection: Connection,
    artifact: Artifact,
    plan: partial[Edit],
    program: _Program | None,
    options: WaitOptions,
    *,
    wait: bool,
) -> int:
    say = unsaid if options.json else shown_line
    source = plan(await looked(connection, artifact.service)).source  # what is refused is so before anything is pushed
    own = await _manifest(connection, artifact)
    before = await _manifest(connection, artifact.service.version(source)) if source else None
    note, more = "", dict[str, Any](pushed=None, manifest_from=None)
    if program is None:
        note = await _check_stored(connection, artifact)
    else:
        run_as = _run_as(program, own or before)
        pushed = await _push(connection, Offer(artifact, program.packed, run_as, program.key), force=program.force)
        like = source if before is not None and own is None and program.file is None else None
        say(_told(artifact, pushed, like, run_as))
        more = {"pushed": str(pushed), "manifest_from": like}
        own = run_as
        if pushed is Pushed.REPLACED:
            plan = partial(plan, restarted=stamp())
    if lost := missing_in(own, before):
        note = f"the manifest of {source} says {', '.join(lost)}; that of {artifact.version} does not"
    made = await edited(connection, artifact.service, plan)
    if note:
        remark(f"note: {note}")
    return await finished(connection, made, wait=wait, timeout=options.timeout, json=options.json, **more)


def _told(artifact: Artifact, pushed: Pushed, like: str | None, manifest: Manifest) -> str:
    settings = settings_in(manifest)
    how = f", to be run as {like} is: {', '.join(settings)}" if like and settings else ""
    return f"{artifact}: {'pushed' if pushed is Pushed.STORED else pushed}{how}"


async def _manifest(connection: Connection, artifact: Artifact) -> Manifest | None:
    """That of a version that is stored; None: it is not, or whoever deploys may not see it."""
    with suppress(ArtifactMissing, BucketMissing, AccessDenied, InvalidContent):
        artifacts = Artifacts(connection)
        stored = await artifacts.describe(artifact)
        manifest = await artifacts.manifest(stored)
        # Of one file its name says nothing about the next version's.
        lone = stored.content.form is Form.FILE and manifest.entry == stored.content.file
        return replace(manifest, entry="") if lone else manifest
    return None


def _run_as(program: _Program, before: Manifest | None) -> Manifest:
    """How what is to be pushed is run: as a file says, or as before."""
    if program.file is not None or before is None:
        wanted = manifest_of(program.file, program.entry, ())
    else:
        wanted = inherited(before, program.packed.tree, program.entry)
    manifest = completed_manifest(wanted, program.packed, program.file)
    if problem := problem_with_program(program.packed, manifest):
        remark(f"warning: no node can run this as a program: {problem}")  # but a runtime of somebody's own may
    if needed := needed_on_nodes(manifest, program.packed.tree):
        remark(f"warning: {needed}")
    return manifest


async def _push(connection: Connection, offer: Offer, *, force: bool) -> Pushed:
    artifacts, artifact = Artifacts(connection), offer.artifact
    content = await content_for_nodes(connection, offer)
    await artifacts.ensure(create=True, replicas=1)
    with TransferBar(f"pushing {artifact}") as bar:
        push = partial(artifacts.push, artifact, offer.packed.path, content, progress=bar)
        try:
            return await push()
        except Conflict:
            if not force:
                raise
            return await push(force=True)


async def _check_stored(connection: Connection, name: Artifact) -> str:
    """What there is to note about an artifact that is not stored: where others run the slices, it need not be.

    Raises:
        ArtifactMissing: other versions are stored. Better said now than by nodes that look for it in vain.
    """
    try:
        stored = await stored_artifacts(connection)
    except AccessDenied:
        return ""  # whoever may write blueprints need not have the right to read artifacts
    if name in stored:
        return ""
    if name.service in {each.service for each in stored}:
        close = nearest(str(name), stored)
        raise ArtifactMissing(f"there is no artifact {name}{close}; give the path of the program to push it")
    return f"{name} is not in the store; only agents that bring it themselves can run it"
