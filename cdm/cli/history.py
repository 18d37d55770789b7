"""``cdm history``: every revision that is kept of a service's blueprints."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from cdm.cli.connected import run_connected
from cdm.cli.editing import looked
from cdm.cli.known import meant
from cdm.cli.led_to import Consequence, consequences
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, Json, ServiceName
from cdm.cli.rows import PLAIN, Column, listing, sheet, show
from cdm.cli.screen import print_json
from cdm.cli.service import ServiceLook, VersionLook, parsed, refusal
from cdm.errors import ServiceMissing
from cdm.explain.words import brief
from cdm.model.artifact import Service
from cdm.model.edit import changes_between
from cdm.model.event import UNKNOWN
from cdm.model.keys import BLUEPRINTS
from cdm.model.record import RolloutPhase
from cdm.store.connection import Connection


class HistoryRow(Struct, frozen=True):
    """One revision of one version's blueprint."""

    revision: int
    at: str
    version: str
    instances: int | str | None
    """None: it was deleted, or is refused."""
    by: str
    """Who wrote it, as declared."""
    changes: list[str]
    state: str
    """``in force``, ``superseded``, ``reverting``, ``reverted``, ``refused``, or nothing, where a newer one took its
    place."""
    reason: str = ""
    """Why it was taken back, or is being taken back, or is refused, where that is known."""
    led_to: Consequence | None = None
    """What became of it, as far as events tell."""


def history(service: ServiceName, /, connection: ConnectionOptions = HERE, *, json: Json = False) -> int:
    """Show what was written of the blueprints of all a service's versions."""
    look, led_to = run_connected(connection, "cdm history", partial(_look, service=service))
    found = [replace(row, led_to=led_to.get(row.revision)) for row in rows(look)]
    if json:
        print_json({"service": str(service), "revisions": found})
        return 0
    columns = [
        Column("revision", [str(row.revision) for row in found], right=True),
        Column("time (UTC)", [row.at[:19].replace("T", " ") for row in found]),
        Column("version", [row.version for row in found]),
        Column("instances", ["" if row.instances is None else str(row.instances) for row in found], right=True),
        Column("by", [row.by for row in found], below=True),
        Column("what changed", ["; ".join(row.changes) for row in found], below=True),
        Column("led to", ["" if row.led_to is None else row.led_to.shown for row in found], below=True),
        Column("state", [row.state for row in found]),
    ]
    # Below it: in the table the longest reason would make every line as long.
    reasons = [f"{row.revision} ({row.version}) {row.state}: {brief(row.reason)}" for row in found if row.reason]
    show([*listing(columns, sheet()), *map(PLAIN, reasons)])
    return 0


async def _look(connection: Connection, service: Service) -> tuple[ServiceLook, dict[int, Consequence]]:
    look = await looked(connection, service)
    if not any(each.revisions for each in look.versions.values()):
        raise ServiceMissing(f"there is no blueprint of {service}, and none is kept{await meant(connection, service)}")
    kept = {each.artifact: each.revisions[0].at for each in look.versions.values() if each.revisions}
    return look, await consequences(connection, kept)


def rows(look: ServiceLook) -> list[HistoryRow]:
    """The revisions of all versions, the oldest first."""
    found = [row for version in look.versions.values() for row in _rows_of(version)]
    return sorted(found, key=lambda row: row.revision)


def _rows_of(version: VersionLook) -> list[HistoryRow]:
    found, before = [], None
    whole = len(version.revisions) < BLUEPRINTS.history
    for each in version.revisions:
        blueprint = parsed(each, version.artifact)
        state, reason = _state(version, each.number, refusal(each, version.artifact))
        oldest = each is version.revisions[0] and not whole
        changes = ["the oldest that is kept"] if oldest else changes_between(before, each.payload)
        found.append(
            HistoryRow(
                each.number,
                datetime.fromtimestamp(each.at, UTC).isoformat(timespec="milliseconds"),
                version.version,
                blueprint.asked if blueprint else None,
                each.by or UNKNOWN,
                changes,
                state,
                reason,
            )
        )
        before = each.payload
    return found


def _state(version: VersionLook, revision: int, refused: str) -> tuple[str, str]:
    """The state of a revision, and the reason of it."""
    if refused:
        return "refused", refused
    newest, going = revision == version.in_force_revision, _goes_back(version)
    instead = version.serves_instead.revision if (going or version.reverted) and version.serves_instead else 0
    if version.raw is None or not (newest or revision == instead):
        return "", ""
    if version.superseded:
        return "superseded", ""
    if not newest or not (going or version.reverted):
        return "in force", ""
    why = version.status.reason if version.status is not None else ""
    if going and version.record is not None:
        why = version.record.reason
    if revision == instead:
        # Other content was pushed over the same blueprint, and that is taken back, not what the blueprint says.
        return "in force", f"other content {'is being' if going else 'was'} taken back: {why}"
    return "reverting" if going else "reverted", why


def _goes_back(version: VersionLook) -> bool:
    """Whether a rollout that led to this version is being taken back."""
    record = version.record
    return record is not None and record.phase is RolloutPhase.REVERTING and record.target.version == version.version
