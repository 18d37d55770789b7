"""``cdm rollout``: how far a service's rollout is, and the operator's hand on it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import anyio
from cyclopts import App

from cdm.cli.commands.described import examples
from cdm.cli.connected import run_connected
from cdm.cli.editing import Plan, looked
from cdm.cli.following import StatusFollower, described_status, run_edit
from cdm.cli.hand import aborting, approving, awaited, check_known, pausing, retrying, taken_back_last
from cdm.cli.known import meant
from cdm.cli.lasting import WATCH, WaitOptions, WatchOptions
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, ServiceName
from cdm.cli.plans import stamp
from cdm.cli.rows import Paint, sheet, show
from cdm.cli.screen import print_json
from cdm.cli.service import ServiceLook, VersionLook
from cdm.cli.wording import ago, in_words, rollout_in_words
from cdm.errors import ServiceMissing
from cdm.explain.words import brief
from cdm.model.artifact import Service
from cdm.model.record import Rollout, RolloutPhase
from cdm.model.status import Condition, Status
from cdm.store.connection import Connection

_OVER = (RolloutPhase.COMPLETE, RolloutPhase.REVERTED, RolloutPhase.FAILED)
_BAD = (RolloutPhase.REVERTED, RolloutPhase.FAILED)

app = App(
    name="rollout",
    help="Look at a service's rollout, stop it, let it go on, take it back.",
    help_epilogue=examples("cdm rollout status org.example:slice", "cdm rollout abort org.example:slice"),
)


@app.command(
    help=(
        "Show how far a service's rollout is: its phase and step, what it waits for, and its versions.\n\n"
        "Exits with 3 where the last rollout was taken back, or failed."
    ),
    help_epilogue=examples("cdm rollout status org.example:slice"),
)
def status(
    service: ServiceName,
    /,
    connection: ConnectionOptions = HERE,
    *,
    watch: Annotated[bool, FLAG] = False,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Show how far a service's rollout is.

    Parameters
    ----------
    watch
        Show it whenever something is new, until the rollout is over.
    json
        Print JSON; with --watch an object per line.
    """
    return run_connected(connection, "cdm rollout", partial(_status, service=service, watch=watch, json=json))


@app.command(help_epilogue=examples("cdm rollout pause org.example:slice"))
def pause(service: ServiceName, /, options: WatchOptions = WATCH) -> int:
    """Stop a rollout where it is; what is lost meanwhile is made up for."""
    return _edit(options, service, partial(pausing, on=True))


@app.command(help_epilogue=examples("cdm rollout resume org.example:slice --watch"))
def resume(service: ServiceName, /, options: WatchOptions = WATCH) -> int:
    """Let a rollout go on that was stopped by hand."""
    return _edit(options, service, partial(pausing, on=False))


@app.command(help_epilogue=examples("cdm rollout approve org.example:slice --watch"))
def approve(service: ServiceName, /, options: WatchOptions = WATCH) -> int:
    """Let a rollout go on that waits for an approval; exits with 1 where it does not."""
    return _edit(options, service, approving)


@app.command(help_epilogue=examples("cdm rollout abort org.example:slice --watch"))
def abort(service: ServiceName, /, options: WatchOptions = WATCH) -> int:
    """Take a rollout back, also one that is complete."""
    return _edit(options, service, aborting)


@app.command(help_epilogue=examples("cdm rollout retry org.example:slice --watch"))
def retry(service: ServiceName, /, options: WatchOptions = WATCH) -> int:
    """Roll out once more what was taken back, or failed."""
    return _edit(options, service, partial(retrying, stamp=stamp()))


def _edit(options: WatchOptions, service: Service, plan: Plan) -> int:
    waits = WaitOptions(connection=options.connection, json=options.json)
    return run_edit(waits, service, plan, wait=options.watch)


# Looking


async def _status(connection: Connection, service: Service, *, watch: bool, json: bool) -> int:
    look = await looked(connection, service)
    try:
        check_known(look)
    except ServiceMissing as error:
        raise ServiceMissing(f"{error}{await meant(connection, service)}") from None
    _show(look, json=json)
    if watch:
        look = await _follow(connection, look, json=json)
    return 3 if look.record is not None and look.record.phase in _BAD else 0


async def _follow(connection: Connection, look: ServiceLook, *, json: bool) -> ServiceLook:
    """Show each change until the rollout is over; returns the last look."""
    follower = StatusFollower(connection, look.service)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follower.run)
        await follower.listed()
        shown = _document(look)
        while look.under_way is not None or _begins(look):
            await follower.news()
            look = await looked(connection, look.service)
            if (told := _document(look)) != shown:
                shown = told
                _show(look, json=json)
        tasks.cancel_scope.cancel()
    return look


def _begins(look: ServiceLook) -> bool:
    """Whether a blueprint was written that the leader has not read yet."""
    return any(each.raw is not None and each.unread for each in look.versions.values())


def _show(look: ServiceLook, *, json: bool) -> None:
    if json:
        print_json(_document(look))
        return
    show(lines_of(look, sheet().paint))


def lines_of(look: ServiceLook, paint: Paint) -> list[str]:
    """How a service's rollout is, and its versions, for people."""
    record = look.record
    lines = [f"{paint(str(look.service), 'bold')}{paint(f'  {_headline(look)}')}"]
    if record is not None and record.phase not in _OVER:
        lines.append(paint(f"    in this step for {ago(record.since)}"))
    there = [each for each in look.versions.values() if each.raw is not None or each.status is not None]
    living = [each for each in there if not _is_past(look, each)]
    width = max((len(each.version) for each in living), default=0)
    lines += [paint(f"    {each.version:<{width}}  {_version_line(each)}") for each in living]
    if past := len(there) - len(living):
        what = "versions that were" if past > 1 else "version that was"
        lines.append(paint(f"    and {past} {what} replaced or taken back before: `cdm history {look.service}`"))
    if (again := taken_back_last(look)) and again.raw is not None:
        lines.append(paint(f"    `cdm rollout retry {look.service}` tries {again.version} once more"))
    return lines


def _is_past(look: ServiceLook, version: VersionLook) -> bool:
    """Whether a version was replaced or taken back before the last rollout, and has no instances any more."""
    record, status = look.record, version.status
    if status is None or version.unread or status.condition not in (Condition.SUPERSEDED, Condition.REVERTED):
        return False
    if record is None or version.version in (record.source.version, record.target.version):
        return False
    last = taken_back_last(look)
    named = last is not None and last.version == version.version
    return not (named or status.desired or status.active or status.pending or status.failed)


def _headline(look: ServiceLook) -> str:
    record = look.record
    if record is None:
        return "no rollout so far"
    told = _rollout_of(look)
    if told is not None and record.phase not in _OVER:
        return brief(rollout_in_words(told)) + _share(record, told.share)
    reason = f": {brief(record.reason)}" if record.reason and record.phase in (*_BAD, RolloutPhase.REVERTING) else ""
    return f"{look.way} {record.phase} {ago(record.since)} ago{reason}"


def _share(record: Rollout, share: float) -> str:
    """How many instances are new; where these are sent no requests yet, that is said, too."""
    if not share:
        return ""
    if record.weights is not None and record.weights.target == 0:
        return f"; {share:g} % of the new instances are healthy, and all requests go to the old ones"
    return f"; {share:g} % of the instances are new"


def _rollout_of(look: ServiceLook) -> Any:
    """What the status of the version that takes over says of the rollout; None: nothing that is of this rollout."""
    if look.record is None:
        return None
    status = look.version(look.service.version(look.record.target.version)).status
    told = status.rollout or None if status is not None else None
    return told if told is not None and told.phase == look.record.phase else None


def _version_line(version: VersionLook) -> str:
    status = version.status
    if status is None:
        return "no leader has processed it yet"
    if status.observed_revision < version.revision:
        return in_words(status, version.revision)
    healthy = f", {status.healthy} healthy" if isinstance(status.healthy, int) else ""
    outdated = f", {status.outdated} with {older(version)}" if status.outdated else ""
    reason = f": {brief(status.reason)}" if status.reason and not _said_above(version, status) else ""
    wanted = f" of {status.desired}" if status.desired else ""  # of none it is said that another one took over
    return f"{status.condition}  {status.active}{wanted} active{healthy}{outdated}{reason}"


def older(version: VersionLook) -> str:
    """In what the outdated instances of a version differ from what is wanted."""
    record = version.record
    if record is None or {record.source.version, record.target.version} != {version.version}:
        return "older settings"
    source, target = record.source, record.target
    same_content = None in (source.content, target.content) or source.content == target.content
    if source.digest == target.digest:
        return "older content"
    return "older settings" if same_content else "older settings and content"


def _said_above(version: VersionLook, status: Status) -> bool:
    """Whether the line about the rollout tells the reason, too."""
    told = bool(status.rollout) and status.condition in (Condition.PROGRESSING, Condition.READY)
    return told or (version.record is not None and status.reason == version.record.reason)


def _document(look: ServiceLook) -> dict[str, Any]:
    record, told = look.record, _rollout_of(look)
    rollout: dict[str, Any] | None = None
    if record is not None:
        rollout = {
            "phase": str(record.phase),
            "from": record.source.version,
            "to": record.target.version,
            "since": round(record.since, 3),
            "reason": record.reason,
            "awaits_approval": awaited(look) > 0,
        }
        if told is not None:
            rollout |= {
                "kind": told.kind,
                "step": told.step,
                "steps": told.steps,
                "why": told.why,
                "share": told.share,
                "stuck": told.stuck,
            }
    versions = [
        {
            "version": each.version,
            "revision": each.revision,
            "in_force": each.serves,
            "status": described_status(each.status) if each.status else None,
        }
        for each in look.versions.values()
        if each.raw is not None or each.status is not None
    ]
    return {"service": str(look.service), "rollout": rollout, "versions": versions}
