"""``cdm events``: what happened, as the leader told it, and what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.abc
import anyio.to_thread
from cyclopts import Parameter, Token
from msgspec import Struct

from cdm.cli.known import nearest
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs, remark
from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.parameters import HERE, service_or_artifact
from cdm.cli.rows import Paint, folded, sheet
from cdm.cli.screen import as_json
from cdm.cli.signals import until_stopped
from cdm.cli.streams import write_out
from cdm.errors import UsageError
from cdm.explain.words import BAD, event_in_words
from cdm.model.artifact import Artifact, NodeId, Service, node_id
from cdm.model.event import KINDS, Event
from cdm.store.connection import Access, connect
from cdm.store.events import EventReader, StoredEvent

FOLLOWED_FROM = 600.0
"""Seconds before now with which ``--follow`` begins, unless told otherwise."""
Form = Callable[[StoredEvent], str]


def _kind(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    kinds = tuple(part for token in tokens for part in token.value.lower().split(","))
    for each in kinds:
        if each not in KINDS:
            raise UsageError(f"--kind: there is no kind {each!r}{nearest(each, KINDS)}; there are {', '.join(KINDS)}")
    return kinds


def _artifact(_type: Any, tokens: Sequence[Token]) -> Artifact | Service:
    return service_or_artifact(tokens[0].value)


def events(
    connection: ConnectionOptions = HERE,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="", show_default=False)] = False,
    since: Annotated[float | None, duration()] = None,
    artifact: Annotated[
        Artifact | Service | None, Parameter(converter=_artifact, n_tokens=1, accepts_keys=False)
    ] = None,
    node: str | None = None,
    kind: Annotated[tuple[str, ...], Parameter(converter=_kind, negative="", show_default=False)] = (),
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show what happened.

    Parameters
    ----------
    follow
        Go on with what happens, until Ctrl-C or SIGTERM. [without --since: from ten minutes ago]
    since
        Nothing older than this: 90s, 10m, 1h30m, 2d. [default: all that is kept]
    artifact
        Only of this artifact, group:name:version, or of all versions of a service, group:name.
    node
        Only of this node.
    kind
        Only of this kind, as blueprint, unload or failed; may be repeated.
    json
        Print each event as a JSON object, as it is stored.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    if follow and since is None:
        since = FOLLOWED_FROM
    form: Form = _as_json if json else partial(_as_text, paint=sheet().paint)
    only = EventChoice(artifact, None if node is None else node_id(node), kind)
    return anyio.run(_run, connection.access(), connection.prefix, only, since, follow, form)


class EventChoice(Struct, frozen=True):
    """Which events are shown."""

    artifact: Artifact | Service | None
    node: NodeId | None
    kinds: tuple[str, ...]

    def includes(self, event: Event) -> bool:
        """Whether it is one of them, as far as the server does not tell."""
        told = event.data.artifact
        if isinstance(self.artifact, Service) and told.rpartition(":")[0] != str(self.artifact):
            return False
        return not self.kinds or event.kind in self.kinds


async def _run(access: Access, prefix: str, only: EventChoice, since: float | None, follow: bool, form: Form) -> int:
    found = 0

    async def show(page: Sequence[StoredEvent]) -> None:
        nonlocal found
        text = "".join(form(each) for each in page if only.includes(each.event))
        if text:
            found += 1
            # In a thread: a reader that takes its time must not keep the server from hearing of this command.
            await anyio.to_thread.run_sync(write_out, text.encode(errors="replace"), abandon_on_cancel=True)

    async def work(tasks: anyio.abc.TaskGroup) -> None:
        async with connect(access, name="cdm events", prefix=prefix) as connection:
            await connection.check_server()
            reader = EventReader(
                connection,
                kind=only.kinds[0] if len(only.kinds) == 1 else None,
                node=only.node,
                artifact=only.artifact if isinstance(only.artifact, Artifact) else None,
            )
            begin = None if since is None else time.time() - since
            if follow:
                tasks.start_soon(connection.lost)
                async for page in reader.follow(begin, remark):
                    await show(page)
            async for page in reader.read(begin):
                await show(page)

    stopped = await until_stopped(work)
    if not (found or stopped):
        remark("there are no such events")
    return 128 + stopped if stopped and not follow else 0


def _as_json(stored: StoredEvent) -> str:
    return f"{as_json(stored.event)}\n"


def _as_text(stored: StoredEvent, *, paint: Paint) -> str:
    event = stored.event
    about = event.subject.partition("/")[2].removesuffix(".intent").removesuffix(".seen").removeprefix("_rollout.")
    when = event.time.replace("T", " ")
    to_kind, to_words = f"{when}  ", f"{when}  {event.kind:<12}  {about:<32}  "
    line = paint(f"{to_words}{event_in_words(event)}".rstrip(), "red" if event.kind in BAD else "")
    # Below the words, where these have half of the line.
    indent = len(to_words if 2 * len(to_words) <= sheet().width else to_kind)
    parts = folded(line, indent)
    return "".join(f"{part}\n" for part in parts)
