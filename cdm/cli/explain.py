"""``cdm explain``: why instances are where they are, and why others are nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import anyio
from cyclopts import Parameter, Token
from msgspec.structs import replace

from cdm import clock
from cdm.allocation.verdict import Obstacle
from cdm.cli.connected import run_connected
from cdm.cli.known import nearest
from cdm.cli.log_setup import LogLevel
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, Json, artifact_of
from cdm.cli.patience import READING, Patience
from cdm.cli.rows import LEAST_WIDTH, Column, Paint, Sheet, folded, listing, sheet, show
from cdm.cli.screen import print_json
from cdm.cli.wording import ago
from cdm.errors import ModelError, ServiceMissing, SliceMissing, UsageError
from cdm.explain.past import with_history, with_past
from cdm.manager.explanation import (
    NOTHING_IN_FORCE,
    STANDINGS,
    Explanation,
    Happening,
    NodeExplanation,
    SliceExplanation,
    explained,
    explained_slice,
)
from cdm.manager.onlooker import Onlooker
from cdm.manager.standing import Standing
from cdm.model.artifact import Artifact, node_id
from cdm.model.keys import SLICES, SliceKey, encode, encode_artifact
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.revisions import Revision, revisions
from cdm.store.snapshot import snapshot


@dataclass(frozen=True)
class SlicesNamed:
    """What a text that names a slice may mean: a version may end like an ordinal."""

    keys: tuple[SliceKey, ...]


_ORDINAL = re.compile(r"(?P<artifact>.+)[/#](?P<ordinal>[0-9]{1,6})")


def subject_of(text: str) -> Artifact | SlicesNamed:
    """Read what is to be explained: an artifact, or a slice in one of the ways in which they are written.

    Raises:
        ModelError: it is neither.
        UsageError: it is a service.
    """
    name = text.removeprefix("slices/")
    node, slash, rest = name.partition("/")
    if ":" not in name:
        try:
            key = SLICES.decode(name)
        except ModelError:
            key = None
        if not isinstance(key, SliceKey):
            raise UsageError(
                f"{text!r} is neither a version, group:name:version, nor a slice, NODE/group:name:version#ORDINAL, "
                "nor a slice's key, NODE.group/name/version/ORDINAL"
            )
        return SlicesNamed((key,))
    if not slash or ":" in node:
        return artifact_of(text)
    found = []
    if (match := _ORDINAL.fullmatch(rest)) is not None:
        found.append(SliceKey(node_id(node), artifact_of(match["artifact"]), int(match["ordinal"])))
    if match is None or "#" in rest:
        found.append(SliceKey(node_id(node), artifact_of(rest)))
    return SlicesNamed(tuple(found))


def _convert(_type: Any, tokens: Sequence[Token]) -> object:
    return subject_of(tokens[0].value)


Subject = Annotated[
    Any,  # of a union with tuples in it every argument that follows would be taken
    Parameter(
        name="ARTIFACT",
        converter=_convert,
        n_tokens=1,
        accepts_keys=False,
        help="A version, group:name:version; or a slice, NODE/ARTIFACT#ORDINAL or as its key is in the bucket.",
    ),
]


def explain(
    subject: Subject,
    /,
    connection: ConnectionOptions = HERE,
    *,
    node: Annotated[str | None, Parameter(name="--node")] = None,
    json: Json = False,
) -> int:
    """Show why the instances of a version are where they are, and what keeps more of them off each node.

    Parameters
    ----------
    node
        Show only this node.
    """
    if isinstance(subject, SlicesNamed):
        if node is not None:
            raise UsageError("--node: a slice is on one node alone; give the artifact instead")
        look = partial(_look_at_slice, keys=subject.keys)
        told = run_connected(connection, "cdm explain", look, level=LogLevel.ERROR)
        _print(told, _slice_lines(told, sheet().paint), json=json)
        return 0
    found = run_connected(connection, "cdm explain", partial(_look, artifact=subject, node=node), level=LogLevel.ERROR)
    _print(found, _lines(found, sheet()), json=json)
    return 0


def _print(found: object, lines: Iterable[str], *, json: bool) -> None:
    if json:
        print_json(found)
    else:
        show(lines)


# Looking


async def _look(connection: Connection, artifact: Artifact, node: str | None) -> Explanation:
    with Patience(READING) as patience:
        look = Onlooker(await snapshot(connection), clock.now())
        known = set(look.cluster.artifacts())
        if artifact not in known:
            raise ServiceMissing(f"there is no blueprint of {artifact}, and no slice{nearest(str(artifact), known)}")
        patience.say(f"judging {len(look.placement.nodes):,} nodes")
        found = await with_history(connection, explained(look, artifact), artifact)
    desired = look.cluster.desired.get(artifact)
    if node is None and (desired is None or desired.blueprint is None):
        # How nodes are judged would mean something only if one more were wanted.
        return replace(found, summary=NOTHING_IN_FORCE, awaited=[], nearest=[], nodes=[])
    if node is None:
        return found
    only = [each for each in found.nodes if each.node == node]
    if not only:
        raise UsageError(f"--node {node}: there is no such node{nearest(node, (each.node for each in found.nodes))}")
    return replace(found, nodes=only)


async def _look_at_slice(connection: Connection, keys: tuple[SliceKey, ...]) -> SliceExplanation:
    with Patience(READING):
        messages = await snapshot(connection)
        look = Onlooker(messages, clock.now())
        for key in keys:
            if (found := explained_slice(look, key)) is not None:
                return await with_past(connection, key, await _dated(connection, key, found), messages)
    known = {str(each).removeprefix("slices/") for slices in look.cluster.on_node.values() for each in slices}
    asked = str(keys[0]).removeprefix("slices/")
    raise SliceMissing(f"there is no slice {asked}{nearest(asked, known)}")


async def _dated(connection: Connection, key: SliceKey, found: SliceExplanation) -> SliceExplanation:
    """The same with when its state and its blueprint were written, and by whom, as far as that is kept."""
    there = buckets(connection)
    read: dict[str, list[Revision]] = {}

    async def read_keys(bucket: Bucket, keys: str) -> None:
        read[bucket.layout.name] = await revisions(bucket, keys)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_keys, there["slices"], encode(key))
        tasks.start_soon(read_keys, there["blueprints"], encode_artifact(key.artifact))
    for each in read["slices"]:
        if each.number == found.revision:
            found = replace(found, since=_time(each.at))
    for each in read["blueprints"]:
        if each.number == found.blueprint:
            found = replace(found, blueprint_at=_time(each.at), blueprint_by=each.by)
    return found


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


# Words


def _lines(found: Explanation, on: Sheet) -> list[str]:
    paint = on.paint
    wanted = "an unknown number" if found.desired is None else f"{found.desired} wanted"
    others = "".join(f", {count} {what}" for what, count in found.others.items())
    head = f"  {found.condition}  {wanted}, {found.placed} placed{others}"
    lines = [f"{paint(found.artifact, 'bold')}{paint(head)}"]
    if found.leader is None:
        lines.append(paint("nobody leads: nothing is placed until somebody does", "red"))
    # A status of instances without room says the same as what follows.
    if found.reason and found.summary not in found.reason:
        lines.append(paint(f"    {found.reason}"))
    lines += [paint(f"rule: {each}") for each in found.rules]
    lines.append(paint(f"one more: {found.summary}"))
    lines += [paint(f"    {each}") for each in (*found.awaited, *found.nearest)]
    if found.history:
        lines += [paint("what happened (UTC):", "bold"), *_history_lines(found.history, "", paint)]
    if found.nodes:
        lines += _table(found.nodes, on)
    return lines


def _history_lines(history: Sequence[Happening], about: str, paint: Paint) -> Iterator[str]:
    """What happened, the latest last; ``about``: the key that goes without saying."""
    for each in history:
        at = f"    {each.at[:19].replace('T', ' ')}  "
        subject = "" if each.subject == about else each.subject.partition("/")[2]
        yield from folded(paint(f"{at}{each.kind:<12} {subject}  {each.told}".rstrip()), indent=len(at))


def _table(nodes: Sequence[NodeExplanation], on: Sheet) -> list[str]:
    fits = [("yes", "green") if each.fits else ("no", "yellow") for each in nodes]
    columns = [
        Column("node", [each.node for each in nodes], least=LEAST_WIDTH),
        Column("has", [str(each.instances) for each in nodes], right=True),
        Column("one more", [said for said, _ in fits], [style for _, style in fits]),
        Column("why", ["; ".join(_told(each)) for each in nodes], least=3 * LEAST_WIDTH),
    ]
    return listing(columns, on)


def _told(each: NodeExplanation) -> list[str]:
    score = f" ({', '.join(each.preferred)})" if each.preferred else ""
    return [
        *map(_obstacle, each.obstacles),
        *(standing for standing in each.domains if not any(standing == one.numbers for one in each.obstacles)),
        *([f"score {each.score}{score}"] if each.score else []),
        *([f"failed there: {each.failed}"] if each.failed else []),
    ]


def _obstacle(each: Obstacle) -> str:
    if each.miss.startswith(each.why):
        return each.miss
    numbers = f" ({each.numbers})" if each.numbers else ""
    return f"{each.why}{numbers}{f': {each.miss}' if each.miss not in ('', each.numbers) else ''}"


def _slice_lines(found: SliceExplanation, paint: Paint) -> list[str]:
    name = f"{found.node}/{found.artifact}{f'#{found.ordinal}' if found.ordinal else ''}"
    since = f" since {found.since[:19].replace('T', ' ')} UTC ({_ago(found.since)})" if found.since else ""
    who = "commanded by the leader" if found.said_by == "leader" else f"told by node {found.node}"
    head = f"  {found.state}{since}, {who}, term {found.term}, revision {found.revision}"
    lines = [f"{paint(name, 'bold')}{paint(head)}"]
    if found.reason:
        lines.append(paint(f"    {found.reason}"))
    if (standing := STANDINGS.get(Standing(found.standing))) is not None:
        lines.append(paint(f"    {standing}", "yellow"))
    lines.append(paint(f"    {_why_here(found)}"))
    if found.failures or found.restarts:
        lines.append(paint(f"    failures before: {found.failures}, restarts of its program: {found.restarts}"))
    for each in found.rules:
        holds = paint("holds:  ", "green") if each.holds else paint("broken: ", "red")
        why = f" ({each.why})" if each.why else ""
        lines.append(f"    {holds}{paint(f'{each.rule}{why}')}")
    lines += [paint(f"    spread: {each}") for each in found.domains]
    if found.score:
        preferred = f" ({', '.join(found.preferred)})" if found.preferred else ""
        lines.append(paint(f"    score: {found.score}{preferred}"))
    if found.history:
        lines += [paint("what happened (UTC):", "bold"), *_history_lines(found.history, f"slices/{name}", paint)]
    if found.output:
        lines += [paint("its last output:", "bold"), *(paint(f"    {each.text}") for each in found.output)]
    if found.better:
        lines.append(paint(f"    better placed on {found.better}", "yellow"))
    return lines


def _ago(since: str) -> str:
    return f"{ago(datetime.fromisoformat(since).timestamp())} ago"


def _why_here(found: SliceExplanation) -> str:
    """By which blueprint it is there."""
    if found.blueprint is None:
        return f"no blueprint is told; {_in_force(found)}"
    written = f", written {found.blueprint_at[:19].replace('T', ' ')} UTC" if found.blueprint_at else ""
    by = f" by {found.blueprint_by}" if found.blueprint_by else ""
    return f"serves blueprint revision {found.blueprint}{written}{by}; {_in_force(found)}"


def _in_force(found: SliceExplanation) -> str:
    if not found.in_force:
        return "no blueprint is in force"
    which = "it" if found.in_force == found.blueprint else f"revision {found.in_force}"
    count = "" if found.desired is None else f", {found.desired} wanted"
    return f"{which} is in force{count}"
