"""Follows what becomes of an edit: a line whenever something is new, until it is done, taken back, or has failed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Any

import anyio
from msgspec import to_builtins

from cdm import clock
from cdm.cli.awaiting import Awaited
from cdm.cli.connected import run_connected
from cdm.cli.editing import Made, Plan, edited, keys_of
from cdm.cli.judging import End, Ended, Failures, gone_back_to, judged, under_way
from cdm.cli.lasting import WaitOptions, check_timeout
from cdm.cli.plans import Goal
from cdm.cli.rows import PLAIN, folded, show
from cdm.cli.screen import as_json
from cdm.cli.wording import alike, in_words, serves_in_words
from cdm.dispatch.messages import Message, ValuePut, ValueRemove
from cdm.errors import InvalidKey
from cdm.explain.words import brief
from cdm.model.artifact import Artifact, Service
from cdm.model.blueprint import Blueprint
from cdm.model.keys import StatusKey, decode_artifact
from cdm.model.status import Condition, Status
from cdm.store.bucket import buckets
from cdm.store.connection import Connection
from cdm.store.watch import Watch
from cdm.wakeup import Wakeup

NOBODY = 5.0
"""Seconds without any status after which it is said that no leader has taken the blueprint up."""
APART = 1.0
"""Least seconds between two lines about the same."""
A_SECOND = 10
"""Lines a second at most, where many edits are followed together, so that they can be read."""


class StatusFollower:
    """Follows the statuses of the versions of services.

    Args:
        connection: to NATS.
        services: which ones; at least one.
        others: whether the statuses of all other services are to be known, too.
    """

    def __init__(self, connection: Connection, *services: Service, others: bool = False) -> None:
        self.statuses: dict[Artifact, Status] = {}
        self.services = set(services)
        """Those whose news wake whoever waits."""
        self._waiting: list[Wakeup] = []
        self._news = self.wakeup()
        keys = keys_of(services[0]) if len(services) == 1 and not others else ">"
        self._watch = Watch(buckets(connection)["status"], self._take, keys=keys, on_live=self._on_live)
        self._listed = anyio.Event()
        self.is_live = False
        """Whether the statuses are those of now. Where NATS is away, or nobody leads the bucket, they may be old."""

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._watch.run()

    async def listed(self) -> None:
        """Wait until all that is there is known."""
        await self._listed.wait()

    async def news(self) -> None:
        """Wait until something is new since this was last waited for; for one task."""
        await self._news.wait()

    def wakeup(self) -> Wakeup:
        """What is set whenever something is new, for one more task."""
        self._waiting.append(Wakeup())
        return self._waiting[-1]

    def of(self, service: Service) -> dict[Artifact, Status]:
        """The statuses of one service's versions."""
        return {artifact: status for artifact, status in self.statuses.items() if artifact.service == service}

    def _take(self, message: Message) -> None:
        key = message.key if isinstance(message, (ValuePut, ValueRemove)) else None
        if not isinstance(key, StatusKey):
            return
        with suppress(InvalidKey):
            artifact = decode_artifact(key.name)
            if isinstance(message, ValuePut):
                self.statuses[artifact] = message.value
            else:
                self.statuses.pop(artifact, None)
            if artifact.service in self.services:
                self.tell()

    def _on_live(self, live: bool) -> None:
        self.is_live = live
        if live:
            self._listed.set()
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits: something is new."""
        for each in self._waiting:
            each.set()


Say = Callable[[str], None]


async def followed(connection: Connection, made: Made, say: Say, timeout: float | None = None) -> Ended:
    """Follow an edit to its end.

    Args:
        connection: to NATS.
        made: the edit.
        say: shows a line.
        timeout: seconds after which it is no longer waited for; None: for ever.
    """
    (ended,) = await followed_all(connection, [(made, say)], timeout)
    return ended


async def followed_all(
    connection: Connection,
    edits: Sequence[tuple[Made, Say]],
    timeout: float | None = None,
    on_end: Callable[[Made, Ended], None] = lambda _made, _ended: None,
) -> list[Ended]:
    """Follow edits to their ends.

    Args:
        connection: to NATS.
        edits: each with what shows its lines.
        timeout: as in `followed`.
        on_end: told how each ended, once it has; not of what has not ended in time.
    """
    blueprints = [Blueprint.parse(made.edit.raw) for made, _ in edits]
    services = {made.edit.version.artifact.service for made, _ in edits}
    follower = StatusFollower(connection, *services, others=any(each.after for each in blueprints))
    ends = [Ended(End.TIMED_OUT, f"not over within {timeout or 0:g} s; it goes on")] * len(edits)

    async def follow(number: int, made: Made, say: Say, awaited: Awaited) -> None:
        # A rollout has its own deadline, which the leader watches; without one, nobody else ends the wait.
        deadline = blueprints[number].rollout.deadline_seconds
        apart = max(APART, len(edits) / A_SECOND)
        ends[number] = await _until_over(follower, awaited, made, say, deadline, apart)
        awaited.ends[made.edit.version.artifact] = ends[number]
        follower.tell()  # others may wait for it
        on_end(made, ends[number])

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as watching:
            watching.start_soon(follower.run)
            await follower.listed()
            revisions = {made.edit.version.artifact: made.revision for made, _ in edits}
            awaited = Awaited(follower.statuses, follower.services, revisions)
            async with anyio.create_task_group() as tasks:
                for number, (made, say) in enumerate(edits):
                    tasks.start_soon(follow, number, made, say, awaited)
            watching.cancel_scope.cancel()
    return ends


async def _until_over(
    follower: StatusFollower, awaited: Awaited, made: Made, say: Say, deadline: float, apart: float
) -> Ended:
    artifact, goal = made.edit.version.artifact, made.edit.goal
    failures, news = Failures(made.edit.version.status), follower.wakeup()
    line, shown, taken_up, away, due = "", "", False, False, 0.0
    idle = looked = clock.now()
    while True:
        status = follower.statuses.get(artifact)
        if status is None and taken_up:
            return Ended(End.DELETED, f"the blueprint of {artifact} was deleted")
        taken_up = taken_up or (status is not None and status.observed_revision >= made.revision)
        hopeless = taken_up and status is not None and failures.decided(status)
        back_to = gone_back_to(status)
        serving = follower.statuses.get(artifact.service.version(back_to)) if back_to else None
        if ended := judged(made.revision, status, goal, hopeless=hopeless, serving=serving):
            return ended
        rolling, now = taken_up and status is not None and under_way(status), clock.now()
        # While NATS is away nothing is heard of what becomes of it, nor does any leader do something for it.
        was_away, away = away, not follower.is_live
        held = rolling or away
        if away:
            awaited.forget()
        if taken_up and status is not None and not held and (ended := awaited.judged(artifact, status, now)):
            return ended
        if taken_up:
            line = _progress(made, status, serving, follower)
        fresh = not alike(line, shown)
        if fresh and now >= due:
            shown, fresh, due = line, False, now + apart
            say(line)
        idle = now if rolling else idle + (now - looked if was_away else 0.0)
        looked = now
        if now >= idle + deadline:
            return Ended(End.FAILED, f"not Ready within {deadline:g} s: {shown}")
        patience = inf if held else min(idle + deadline, awaited.due(artifact)) - now
        patience = min(patience, due - now if fresh else inf, NOBODY if not (taken_up or shown or held) else inf)
        with anyio.move_on_after(None if patience == inf else patience) as silence:
            await news.wait()
        if silence.cancelled_caught and follower.is_live and not taken_up and not shown:
            line = shown = "no leader has taken it up so far; is a node running? (`cdm status`)"
            say(shown)


def _progress(made: Made, status: Status | None, serving: Status | None, follower: StatusFollower) -> str:
    """How far it is. Why a version was taken back is no news to whoever scales it, or goes back from it."""
    goal = made.edit.goal
    if status is not None and status.condition is Condition.REVERTED and goal is not Goal.FORWARD:
        return serves_in_words(serving or status)
    return in_words(status, made.revision, follower.of(made.edit.version.artifact.service))


def shown_line(text: str) -> None:
    """Show a line with the time; on a terminal in several, broken between words, where it is too long."""
    line = PLAIN(f"{datetime.now().astimezone():%H:%M:%S}  {text}")
    show(folded(line, indent=10))


def unsaid(_text: str) -> None:
    """Show nothing: ``--json`` prints one document at the end."""


async def finished(
    connection: Connection, made: Made, *, wait: bool, timeout: float | None = None, json: bool = False, **more: Any
) -> int:
    """Say what was edited, follow it where that is wanted, and return the exit code."""
    edit = made.edit
    say = unsaid if json else shown_line
    say(f"{edit.version.artifact.service}: {edit.said}{'' if edit.changes else ' (unchanged)'}")
    try:
        ended = await followed(connection, made, say, timeout) if wait else None
    except anyio.get_cancelled_exc_class():  # Ctrl-C
        service = edit.version.artifact.service
        print(f"cdm: no longer waited for, but it goes on; see `cdm rollout status {service}`", file=sys.stderr)
        raise
    if json:
        print(as_json({**described(made, ended), **more}))
    elif ended is not None:
        say(f"{edit.version.artifact}: {ended.end}{f': {brief(ended.reason)}' if ended.reason else ''}")
        if ended.end is End.REVERTED and edit.goal is Goal.FORWARD:
            say(f"`cdm rollout retry {edit.version.artifact.service}` tries {edit.version.artifact.version} once more")
        if hint := ended.hint(edit.version.artifact):
            say(hint)
    return ended.code(edit.goal) if ended is not None else 0


def described(made: Made, ended: Ended | None) -> dict[str, Any]:
    """What ``--json`` prints of an edit, and of what became of it; the same fields where it was not waited for."""
    edit = made.edit
    return {
        "service": str(edit.version.artifact.service),
        "artifact": str(edit.version.artifact),
        "changed": edit.changes,
        "revision": made.revision,
        "from": edit.source,
        "result": str(ended.end) if ended else None,
        "reason": ended.reason if ended else "",
    }


def described_status(status: Status) -> dict[str, Any]:
    """A status as ``--json`` prints it."""
    told: dict[str, Any] = to_builtins(status)
    return {name: value for name, value in told.items() if name not in ("overrides", "settings", "min_healthy")}


def run_edit(options: WaitOptions, service: Service, plan: Plan, *, wait: bool) -> int:
    """Have a blueprint edited, and follow what becomes of it where that is wanted; returns the exit code."""
    check_timeout(options, wait=wait)

    async def use(connection: Connection) -> int:
        made = await edited(connection, service, plan)
        return await finished(connection, made, wait=wait, timeout=options.timeout, json=options.json)

    return run_connected(options.connection, "cdm", use)
