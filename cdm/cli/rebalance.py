"""``cdm rebalance``: has healthy instances moved to where they would be placed today."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import anyio
from cyclopts import Parameter
from msgspec import Struct
from msgspec.structs import replace

from cdm import clock
from cdm.cli.connected import run_connected
from cdm.cli.editing import edited
from cdm.cli.following import StatusFollower, shown_line, unsaid
from cdm.cli.known import nearest
from cdm.cli.lasting import WAIT, WaitOptions, check_timeout
from cdm.cli.log_setup import LogLevel
from cdm.cli.options import FLAG, whole
from cdm.cli.parameters import ArtifactName
from cdm.cli.patience import READING, Patience
from cdm.cli.plans import rebalancing, stamp
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.errors import EditRefused, InvalidBlueprint, ServiceMissing, UsageError
from cdm.manager.onlooker import Onlooker
from cdm.manager.rebalancing import balancing
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SLICES, BlueprintKey, encode
from cdm.model.status import Condition, Status
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot

NAMED = 3
"""Most instances that are named in one line."""
COMPLETE, INCOMPLETE, SUPERSEDED, TIMED_OUT = "complete", "incomplete", "superseded", "timed out"


class PlannedMove(Struct, frozen=True):
    """One instance that is to be elsewhere."""

    slice: str
    """Its key in the bucket."""
    to: NodeId
    why: str


class StayingSlice(Struct, frozen=True):
    """One instance that a hard rule forbids to be where it is, and that no node takes."""

    slice: str
    """Its key in the bucket."""
    why: str


class Rebalanced(Struct, frozen=True):
    """What is done about one artifact."""

    artifact: str
    moves: list[PlannedMove]
    waits: str
    """What the leader waits for before it moves anything; empty: nothing."""
    left_out: bool
    """Whether it was left alone because of ``--max-moves``."""
    stay: list[StayingSlice]
    """Instances that cannot be moved, though a hard rule forbids them to be where they are."""
    result: str | None = None
    """How it ended: ``complete``, ``incomplete``, ``superseded``, or ``timed out``; None: that was not waited for."""
    reason: str = ""
    """Why it is incomplete, or was not over in time."""


class _End(NamedTuple):
    """How the wait for one version ended."""

    result: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.result}: {self.reason}" if self.reason else self.result


def rebalance(
    artifacts: Annotated[tuple[ArtifactName, ...], Parameter(negative="")] = (),
    /,
    *,
    plan: Annotated[bool, FLAG] = False,
    max_moves: Annotated[int | None, whole(least=1)] = None,
    wait: Annotated[bool, FLAG] = False,
    options: WaitOptions = WAIT,
) -> int:
    """Have healthy instances moved to where they would be placed today.

    Parameters
    ----------
    plan
        Show what would be moved, and move nothing.
    max_moves
        Leave out the versions that would need more moves than this, together with those before them.
    wait
        Wait until all is moved; exit code 3 where instances stay where a rule forbids them.
    """
    if plan and wait:
        raise UsageError("--plan moves nothing that --wait could wait for: choose one of them")
    check_timeout(options, wait=wait)
    return run_connected(
        options.connection,
        "cdm rebalance",
        partial(_run, artifacts=artifacts, plan=plan, most=max_moves, wait=wait, options=options),
        level=LogLevel.ERROR,  # what the leader would warn of is the leader's business
    )


async def _run(
    connection: Connection,
    artifacts: Sequence[Artifact],
    plan: bool,
    most: int | None,
    wait: bool,
    options: WaitOptions,
) -> int:
    with Patience(READING) as patience:
        found = _chosen(Onlooker(await snapshot(connection), clock.now()), artifacts, most, patience.say)
    say = unsaid if options.json else shown_line
    ends: dict[str, _End] = {}
    if plan:
        if not options.json:
            show(_lines(found))
    else:
        asked = await _ask(connection, found, say)
        until = math.inf if options.timeout is None else clock.now() + options.timeout
        for each in asked if wait else ():
            ends[each.artifact] = await _ended(connection, each, until)
            say(f"{each.artifact}: {ends[each.artifact]}")
        if wait:
            # Of these nothing could be asked for; why they stay was said.
            stays = {each.artifact: _End(INCOMPLETE, "; ".join(_staying(each))) for each in found if each.stay}
            ends = {**stays, **ends}
    if options.json:
        nothing = _End("")
        ended = [(each, ends.get(each.artifact, nothing)) for each in found]
        print_json({"artifacts": [replace(each, result=e.result or None, reason=e.reason) for each, e in ended]})
    results = {each.result for each in ends.values()}
    if SUPERSEDED in results:
        return 4
    return 3 if results & {INCOMPLETE, TIMED_OUT} else 0


def _chosen(
    look: Onlooker, artifacts: Sequence[Artifact], most: int | None, say: Callable[[str], None]
) -> list[Rebalanced]:
    """What is to be moved of each of the artifacts, or of all; ``say`` is told how far that is."""
    known = look.cluster.desired
    for artifact in artifacts:
        if artifact not in known:
            raise ServiceMissing(f"there is no blueprint of {artifact}{nearest(str(artifact), known)}")
    found, total = list[Rebalanced](), 0
    chosen = list(dict.fromkeys(artifacts)) or sorted(known)
    for number, artifact in enumerate(chosen, 1):
        say(f"looking for moves: {number:,} of {len(chosen):,} versions")
        each = balancing(look, artifact)
        if artifacts and (problem := known[artifact].problem) is not None:
            raise EditRefused(f"{artifact}: its newest blueprint is refused ({problem}); write one that is valid first")
        if not artifacts and not each.settled:
            continue
        left_out = most is not None and total + len(each.moves) > most
        total += 0 if left_out else len(each.moves)
        if each.moves or each.stay or artifacts:
            moves = [PlannedMove(encode(move.slice), move.to, move.why) for move in each.moves]
            stay = [StayingSlice(encode(key), why) for key, why in sorted(each.stay.items())]
            found.append(Rebalanced(str(artifact), moves, each.waits, left_out, stay))
    return found


class _Asked(NamedTuple):
    """A version that is to be rebalanced."""

    artifact: str
    text: str
    """What its blueprint has in ``rebalanced`` now."""
    revision: int
    """Of that blueprint."""
    patience: float
    """Seconds without anything new about it after which it is not waited for any more."""


async def _ask(connection: Connection, found: Sequence[Rebalanced], say: Callable[[str], None]) -> list[_Asked]:
    """Have the leader move what is to be moved, and tell what is not."""
    asked, text = list[_Asked](), stamp()
    for each in found:
        if not each.moves or each.left_out:
            continue
        artifact = Artifact.parse(each.artifact)
        made = await edited(connection, artifact.service, partial(rebalancing, artifact=artifact, stamp=text))
        blueprint = Blueprint.parse(made.edit.raw)
        # A move may have nothing to tell for as long as the new instance has to be up, and to become so.
        patience = blueprint.rollout.deadline_seconds + blueprint.min_healthy
        asked.append(_Asked(each.artifact, text, made.revision, patience))
        say(f"{each.artifact}: {_count(each)}{f', once the leader may: {each.waits}' if each.waits else ''}")
    for each in found:
        if each.left_out:
            say(f"{each.artifact}: {_count(each)}, left out (--max-moves)")
        for line in _staying(each):
            say(f"{each.artifact}: {line}")
    if not asked:
        say("nothing is to be moved")
    return asked


async def _ended(connection: Connection, asked: _Asked, until: float) -> _End:
    """Wait until the leader says that nothing of it is left to be moved; returns how that ended."""
    artifact = Artifact.parse(asked.artifact)
    follower = StatusFollower(connection, artifact.service)
    end: _End | None = None
    with anyio.move_on_after(None if until == math.inf else max(until - clock.now(), 0)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower.run)
            await follower.listed()
            seen, looked_at = False, asked.revision
            while end is None:
                status = follower.statuses.get(artifact)
                end = _told(status, asked.text, asked.revision, seen=seen)
                if end is None and status is not None and status.observed_revision > looked_at:
                    looked_at = status.observed_revision
                    end = None if await _is_asked(connection, artifact, asked.text) else _End(SUPERSEDED)
                seen = artifact in follower.statuses
                if end is None:
                    with anyio.move_on_after(asked.patience if follower.is_live else None) as silence:
                        await follower.news()
                    if silence.cancelled_caught:
                        end = _End(INCOMPLETE, f"nothing new for {asked.patience:g} s{_last_said(follower, artifact)}")
            tasks.cancel_scope.cancel()
    return end or _End(TIMED_OUT, f"it goes on{_last_said(follower, artifact)}")


def _last_said(follower: StatusFollower, artifact: Artifact) -> str:
    status = follower.statuses.get(artifact)
    return f"; {status.condition}: {status.reason}" if status is not None and status.reason else ""


def _told(status: Status | None, text: str, revision: int, *, seen: bool) -> _End | None:
    """How it ended, according to the status; None: it goes on.

    Args:
        status: what the leader says; None: nothing.
        text: what was asked for.
        revision: of the blueprint that asks for it.
        seen: whether there was a status before.
    """
    if status is None:
        return _End(SUPERSEDED) if seen else None
    if status.rebalanced == text:
        return _End(INCOMPLETE, status.reason) if status.violations else _End(COMPLETE)
    if status.observed_revision < revision:
        return None
    return _End(SUPERSEDED) if status.condition is Condition.SUPERSEDED else None


async def _is_asked(connection: Connection, artifact: Artifact, text: str) -> bool:
    """Whether the blueprint still asks for this rebalancing; one that is refused leaves the one before in force."""
    stored = await buckets(connection)["blueprints"].read_near(BlueprintKey(artifact))
    if stored is None or stored.payload is None:
        return False
    try:
        return Blueprint.parse(stored.payload).rebalanced == text
    except InvalidBlueprint:
        return True


# Words


def _lines(found: Sequence[Rebalanced]) -> list[str]:
    lines: list[str] = []
    for each in found:
        left_out = ", left out (--max-moves)" if each.left_out else ""
        waits = f"; waits: {each.waits}" if each.waits else ""
        lines.append(PLAIN(f"{each.artifact}: {_count(each)}{left_out}{waits}"))
        lines += [PLAIN(f"    {_named(move.slice)} -> {move.to}, for {move.why}") for move in each.moves]
        lines += [PLAIN(f"    {line}") for line in _staying(each)]
    return lines or [PLAIN("nothing is to be moved")]


def _staying(each: Rebalanced) -> list[str]:
    """What is told of the instances that cannot be moved, a line for each rule."""
    rules: dict[str, list[str]] = {}
    for one in each.stay:
        rules.setdefault(one.why, []).append(one.slice)
    lines = []
    for why, slices in rules.items():
        stay, them = ("stays", "it") if len(slices) == 1 else ("stay", "them")
        named = ", ".join(map(_named, slices[:NAMED])) + (f" and {len(slices) - NAMED:,} more" * (len(slices) > NAMED))
        lines.append(
            f"{named} {stay} where a rule forbids {them} ({why}): no other node takes one; "
            f"cdm explain {each.artifact} says why"
        )
    return lines


def _named(key: str) -> str:
    return str(SLICES.decode(key)).removeprefix("slices/")


def _count(each: Rebalanced) -> str:
    return "1 move" if len(each.moves) == 1 else f"{len(each.moves):,} moves"
