"""``cdm artifact get`` and ``cdm artifact copy``: programs out of the store, into files or another cluster's store."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec import Struct

from cdm.artifacts.packing import SUFFIXES
from cdm.artifacts.repository import Artifacts
from cdm.artifacts.stored import Pushed, StoredArtifact, UnreadableArtifact
from cdm.cli.connected import run_connected
from cdm.cli.known import nearest
from cdm.cli.log_setup import remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, ArtifactName, Json
from cdm.cli.pushing import too_old
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.cli.transfer_bar import TransferBar
from cdm.cli.wording import bytes_shown
from cdm.errors import ArtifactMissing, BucketMissing, Conflict, InvalidContent, UsageError
from cdm.model.artifact import Artifact
from cdm.model.content import Content, Form, problem_with_name
from cdm.store.connection import Connection, connect

STDOUT = Path("-")


def get(
    artifact: ArtifactName,
    file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    connection: ConnectionOptions = HERE,
    *,
    manifest: Path | None = None,
    force: Annotated[bool, FLAG] = False,
    json: Json = False,
) -> int:
    """Write what is stored of an artifact to a file: the program, or the archive of a folder, and its manifest.

    Parameters
    ----------
    file
        Where to, or into which folder; - is standard output. [default: what was pushed is called, in this folder]
    manifest
        Write its manifest, in JSON, to this file.
    force
        Replace files that are there.
    """
    if file != STDOUT and str(file).startswith("-"):
        raise UsageError(f"there is no option {file}; see `cdm artifact get --help`")
    if file == STDOUT and (json or sys.stdout.isatty()):
        raise UsageError("-: --json would be in the program" if json else "-: that is a terminal; name a file")
    if manifest is not None:
        _check_free(manifest, force=force)
    getting = partial(_get, name=artifact, file=file, force=force)
    path, content, run_as = run_connected(connection, "cdm artifact", getting)
    if manifest is not None:
        manifest.write_bytes(run_as)
    told = {"artifact": str(artifact), "file": str(path), "size": content.data_size, "sha256": content.sha256}
    if json:
        print_json(told)
    elif path != STDOUT:
        show([PLAIN(f"{artifact}: written to {path} ({bytes_shown(content.data_size)}, sha256 {content.sha256[:12]})")])
    return 0


async def _get(connection: Connection, name: Artifact, file: Path | None, force: bool) -> tuple[Path, Content, bytes]:
    """Write it; returns where to, what it is, and its manifest."""
    artifacts = Artifacts(connection)
    stored = await _described(artifacts, name)
    content = stored.content
    path = file or Path()
    if path != STDOUT:
        path = path / _called(name, content) if path.is_dir() else path
        _check_free(path, force=force)
    # In the same folder, so that it is there as a whole or not at all.
    beside = None if path == STDOUT else path.parent
    with tempfile.TemporaryDirectory(prefix=".cdm-get-", dir=beside) as folder, TransferBar(f"reading {name}") as bar:
        data = Path(folder) / "data"
        tail = await artifacts.fetch(stored, data, bar)
        if path == STDOUT:
            with data.open("rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer)
        else:
            data.chmod(content.mode or 0o644)
            data.replace(path)
    # Earlier versions stored it beside the bytes.
    return path, content, content.manifest.stored if content.manifest is not None else tail


def _check_free(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise Conflict(f"{path} is there already; --force replaces it")


def _called(name: Artifact, content: Content) -> str:
    """What a file with it is called, so that another push of it is the same."""
    called = content.file
    if problem_with_name(called):  # of a folder nobody judged it
        called = name.name
    return called if content.form is Form.FILE or called.endswith(SUFFIXES) else f"{called}.tar"


# Into another cluster


class Copied(Struct, frozen=True):
    """What became of an artifact in the other cluster."""

    artifact: str
    result: Pushed
    size: int
    sha256: str

    @property
    def shown(self) -> str:
        """In a line."""
        said = {Pushed.STORED: "copied", Pushed.UNCHANGED: "there already", Pushed.SIGNED: "there already, signed now"}
        return f"{self.artifact}: {said.get(self.result, self.result)} ({bytes_shown(self.size)})"


def copy(
    artifacts: Annotated[tuple[ArtifactName, ...], Parameter(negative="", show_default=False)] = (),
    /,
    connection: ConnectionOptions = HERE,
    *,
    to: Annotated[str, Parameter(name="--to")],
    to_prefix: str | None = None,
    everything: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    force: Annotated[bool, FLAG] = False,
    json: Json = False,
) -> int:
    """Copy artifacts into the store of another cluster, as they are: same digests, manifests and signatures.

    Parameters
    ----------
    to
        The other cluster: a context of the nats tool, or the URL of a server.
    to_prefix
        The prefix of its buckets. [default: as that of this cluster's]
    everything
        Copy all artifacts.
    force
        Replace what the other cluster has under these names.
    """
    if everything == bool(artifacts):
        raise UsageError("name the artifacts, or write --all for all")
    there = ConnectionOptions(
        server=to if "://" in to else None,
        context=None if "://" in to else to,
        prefix=connection.prefix if to_prefix is None else to_prefix,
    )
    copied, left_out = list[Copied](), list[UnreadableArtifact]()

    async def use(here: Connection) -> None:
        origin = Artifacts(here)
        if everything:
            found = await origin.listing()
            stored = [each for each in found if isinstance(each, StoredArtifact)]
            left_out.extend(each for each in found if isinstance(each, UnreadableArtifact))
        else:
            stored = [await _described(origin, each) for each in dict.fromkeys(artifacts)]
        async with connect(access, name="cdm artifact", prefix=there.prefix) as connected:
            await connected.check_server()
            await _check_readable(connected, stored)
            goal = Artifacts(connected)
            before = await _before(goal, stored, force=force)
            await goal.ensure(create=True)
            for each in stored:
                result = await _copied(origin, goal, each, before.get(each.artifact), force=force)
                copied.append(Copied(str(each.artifact), result, each.content.data_size, each.content.sha256))
                if not json:
                    show([PLAIN(copied[-1].shown)])

    access = there.access()
    run_connected(connection, "cdm artifact", use)
    if json:
        print_json({"artifacts": copied, "left_out": left_out})
    elif not copied:
        show(["there are no artifacts"])
    for each in left_out:
        remark(f"{each.name} is left out: {each.problem}")
    return 1 if left_out else 0


async def _described(artifacts: Artifacts, name: Artifact) -> StoredArtifact:
    try:
        return await artifacts.describe(name)
    except ArtifactMissing:
        known = (each.artifact for each in await artifacts.listing() if isinstance(each, StoredArtifact))
        close = nearest(str(name), known)
        raise ArtifactMissing(f"there is no artifact {name}{close}; `cdm artifact ls` lists them") from None


async def _check_readable(target: Connection, wanted: Sequence[StoredArtifact]) -> None:
    """Raise `Conflict` where a node of the other cluster cannot read what is to be copied."""
    if any(each.content.tail for each in wanted) and (old := await too_old(target)):
        raise Conflict(f"{old} cannot read artifacts as they are stored here; upgrade it first")


async def _before(
    target: Artifacts, wanted: Sequence[StoredArtifact], *, force: bool
) -> dict[Artifact, StoredArtifact]:
    """Which of them the other cluster has already, the very same; where it has others, nothing is to be copied.

    Raises:
        Conflict: it has others.
    """
    same: dict[Artifact, StoredArtifact] = {}
    others: list[str] = []
    for each in wanted:
        try:
            there = await target.describe(each.artifact)
        except BucketMissing:
            return {}
        except ArtifactMissing:
            continue
        except InvalidContent:
            others.append(str(each.artifact))
            continue
        if there.content.bare == each.content.bare:
            same[each.artifact] = there
        else:
            others.append(str(each.artifact))
    if others and not force:
        named = ", ".join(others)
        raise Conflict(
            f"the other cluster has another content or manifest of {named}; nothing was copied; --force replaces it"
        )
    return same


async def _copied(
    source: Artifacts, target: Artifacts, stored: StoredArtifact, there: StoredArtifact | None, *, force: bool
) -> Pushed:
    """Copy one; ``there``: the very same, where the other cluster has it already."""
    signatures = stored.content.signatures
    if there is not None:
        if signatures.items() <= there.content.signatures.items():
            return Pushed.UNCHANGED
        await target.sign(there, signatures)
        return Pushed.SIGNED
    with tempfile.TemporaryDirectory(prefix="cdm-copy-") as folder, _halves(f"copying {stored.artifact}") as halves:
        data, (reading, writing) = Path(folder) / "data", halves
        tail = await source.fetch(stored, data, reading)
        return await target.push(stored.artifact, data, stored.content, force=force, progress=writing, tail=tail)


@contextmanager
def _halves(what: str) -> Iterator[tuple[partial[None], partial[None]]]:
    """One bar for what is read first, and written then."""
    with TransferBar(what) as bar:

        def show_half(half: int, done: int, total: int) -> None:
            bar(half * total + done, 2 * total)

        yield partial(show_half, 0), partial(show_half, 1)
