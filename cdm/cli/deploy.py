"""``cdm deploy``: a version takes over from the one that is in force."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from cdm.artifacts.packing import Packed, pack, problem_with_program
from cdm.artifacts.repository import Artifacts
from cdm.cli.artifact import TransferBar, completed_manifest, manifest_of
from cdm.cli.editing import Plan, edited
from cdm.cli.following import finished, shown_line, unsaid
from cdm.cli.known import nearest, stored_artifacts
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.plans import artifact_of, deploying
from cdm.errors import AccessDenied, ArtifactMissing, Conflict, UsageError
from cdm.model import edit
from cdm.model.artifact import Artifact
from cdm.model.content import Content
from cdm.store.connection import Access, Connection, connect

Way = dict[str, Any] | None


def deploy(
    artifact: str,
    path: Path | None = None,
    /,
    connection: ConnectionOptions = ConnectionOptions(),  # noqa: B008  # frozen
    *,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    canary: str | None = None,
    blue_green: Annotated[bool, FLAG] = False,
    rolling: Annotated[bool, FLAG] = False,
    instances: NonNegativeInt | None = None,
    entry: str | None = None,
    manifest: Path | None = None,
    wait: bool = True,
    timeout: Annotated[float | None, duration()] = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Have a version take over from the one in force, with its number of instances and its settings.

    Parameters
    ----------
    artifact
        The version that is to serve, group:name:version.
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
        File (TOML or JSON) that says how to run what is pushed.
    wait
        Wait until the version serves, or is taken back.
    timeout
        Wait no longer than this; the rollout goes on.
    json
        Print JSON.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    name = artifact_of(artifact)
    way = _way(canary, blue_green=blue_green, rolling=rolling)
    if path is None and (entry or manifest):
        raise UsageError("--entry, --manifest: they say how to run what is pushed, and no path is given")
    plan = partial(deploying, artifact=name, source=source, instances=instances, way=way)
    run = partial(_deploy, connection.access(), connection.prefix, name, plan)
    if path is None:
        return anyio.run(partial(run, None, None, wait=wait, timeout=timeout, json=json))
    wanted = manifest_of(manifest, entry, ())
    with tempfile.TemporaryDirectory(prefix="cdm-push-") as folder:
        packed = pack(path, Path(folder))
        content = packed.content(completed_manifest(wanted, packed, manifest))
        if problem := problem_with_program(packed, content.manifest):
            raise UsageError(f"no node can run this as a program: {problem}")
        return anyio.run(partial(run, packed, content, wait=wait, timeout=timeout, json=json))


def _way(canary: str | None, *, blue_green: bool, rolling: bool) -> Way:
    if (canary is not None) + blue_green + rolling > 1:
        raise UsageError("--canary, --blue-green, --rolling: choose one")
    if canary is not None:
        return edit.canary_way(canary.split(","))
    if blue_green:
        return edit.blue_green_way()
    return edit.rolling_way() if rolling else None


async def _deploy(
    access: Access,
    prefix: str,
    name: Artifact,
    plan: Plan,
    packed: Packed | None,
    content: Content | None,
    *,
    wait: bool,
    timeout: float | None,
    json: bool,
) -> int:
    say = unsaid if json else shown_line
    async with connect(access, name="cdm deploy", prefix=prefix) as connection:
        await connection.check_server()
        pushed, note = None, ""
        if packed is not None and content is not None:
            pushed = str(await _push(connection, name, packed, content))
            say(f"{name}: pushed" if pushed == "stored" else f"{name}: {pushed}")
        else:
            note = await _check_stored(connection, name)
        made = await edited(connection, name.service, plan)
        if note:
            print(f"cdm: note: {note}", file=sys.stderr)
        more = {"pushed": pushed} if pushed else {}
        return await finished(connection, made, wait=wait, timeout=timeout, json=json, **more)


async def _push(connection: Connection, name: Artifact, packed: Packed, content: Content) -> str:
    artifacts = Artifacts(connection)
    await artifacts.ensure(create=True, replicas=1)
    try:
        with TransferBar(f"pushing {name}") as bar:
            return str(await artifacts.push(name, packed.path, content, progress=bar))
    except Conflict as error:
        raise Conflict(f"{error} (of `cdm artifact push`)") from None


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
