"""``cdm doctor``: looks the cluster over, and says of all that is not well how to mend it."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated, NamedTuple

import anyio
from cyclopts import Parameter
from msgspec import Struct

from cdm.cli.connected import interruptible
from cdm.cli.doctor_formats import nagios, nagios_failed, prometheus
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, Json
from cdm.cli.patience import Patience
from cdm.cli.rows import folded, sheet, show
from cdm.cli.screen import print_json
from cdm.doctor.examination import examine
from cdm.doctor.finding import Finding, Severity, worst
from cdm.doctor.gathering import gather
from cdm.doctor.mending import mend
from cdm.doctor.picture import Picture
from cdm.errors import CdmError, Uncertain, Unreachable, UsageError, innermost
from cdm.store.connection import Access, connect

UNHEALTHY = 3
_SHOWN = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}


@unique
class DoctorFormat(StrEnum):
    """How findings are printed."""

    TEXT = "text"
    JSON = "json"
    NAGIOS = "nagios"
    PROMETHEUS = "prometheus"


class Diagnosis(Struct, frozen=True):
    """What is printed as JSON."""

    version: int
    """Of this form."""
    severity: Severity
    findings: list[Finding]
    mended: list[str]
    """What ``--fix`` did, and what it could not."""


class _Look(NamedTuple):
    """What one run comes to."""

    picture: Picture
    findings: list[Finding]
    mended: list[str]


def doctor(
    connection: ConnectionOptions = HERE,
    *,
    format: Annotated[DoctorFormat, Parameter(name="--format")] = DoctorFormat.TEXT,  # noqa: A002
    fix: Annotated[bool, FLAG] = False,
    json: Json = False,
) -> int:
    """Look at the server, the buckets and the nodes; the exit code is 3 where a warning or worse was found.

    Parameters
    ----------
    format
        How to print it: for people, as JSON, as a plugin of Nagios (whose exit codes are its own), or as metrics.
    fix
        Mend what is safe to mend: settings of buckets.
    """
    if json and format not in (DoctorFormat.TEXT, DoctorFormat.JSON):
        raise UsageError(f"--json: it is to be printed as {format} already; leave one of them out")
    form = DoctorFormat.JSON if json else format
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    try:
        with Patience("looking at the server, the buckets and the nodes"):
            found = _look(connection.access(), connection.prefix, fix=fix)
    except (CdmError, BaseExceptionGroup) as error:
        ours = _first(error)
        if form is not DoctorFormat.NAGIOS or ours is None:
            raise
        told, code = nagios_failed(str(ours), reachable=not isinstance(ours, (Unreachable, Uncertain)))
        print(told)
        return code
    return _print(found, form)


def _look(access: Access, prefix: str, *, fix: bool) -> _Look:
    async def run() -> _Look:
        async with connect(access, name="cdm doctor", prefix=prefix) as connection:
            picture = await gather(connection)
            findings = examine(picture)
            mended: list[str] = []
            if fix and (mended := await mend(connection, findings)):
                picture = await gather(connection)
                findings = examine(picture)
            return _Look(picture, findings, mended)

    return anyio.run(interruptible, run)


def _print(found: _Look, form: DoctorFormat) -> int:
    severity = worst(found.findings)
    match form:
        case DoctorFormat.JSON:
            print_json(Diagnosis(1, severity, found.findings, found.mended))
        case DoctorFormat.NAGIOS:
            told, code = nagios(found.findings)
            print(told)
            return code
        case DoctorFormat.PROMETHEUS:
            print(prometheus(found.findings, found.picture), end="")
            return 0  # what was found is in the metrics
        case DoctorFormat.TEXT:
            _show(found)
    return UNHEALTHY if severity in (Severity.WARNING, Severity.CRITICAL) else 0


def _show(found: _Look) -> None:
    paint, wide = sheet().paint, max(map(len, Severity))
    lines = [paint(told) for told in found.mended]
    for each in found.findings:
        where = f" {each.where}" if each.where else ""
        severity = paint(f"{each.severity:<{wide}}", _SHOWN[each.severity])
        line = f"{severity}  {paint(each.kind, 'bold')}{paint(f'{where}: {each.what}')}"
        lines += folded(line, indent=wide + 2)
        if each.mend:
            lines += folded(paint(f"{'':{wide}}  -> {each.mend}"), indent=wide + 5)
    show(lines)


def _first(error: BaseException) -> CdmError | None:
    """The first error in a group of them; None: it is not cdm's own."""
    found = innermost(error)
    return found if isinstance(found, CdmError) else None
