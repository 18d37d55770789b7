"""The clusters of several regions, each named by a context of the ``nats`` tool, for `cdm status`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio

from cdm.cli import Exit, exit_code, first_error
from cdm.cli.concerns import in_line
from cdm.cli.connected import interruptible
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.looking import look_at_cluster
from cdm.cli.options import ConnectionOptions
from cdm.cli.overview import overview
from cdm.cli.report import ClusterReport
from cdm.cli.rows import PLAIN, Sheet
from cdm.cli.selecting import Selection, narrowed
from cdm.errors import CdmError, UsageError
from cdm.store.connection import connect

VARIABLE = "CDM_REGIONS"
"""Names the regions, separated by spaces."""
_TOLD_BY_CONTEXT = {
    "server": "NATS_URL",
    "context": "NATS_CONTEXT",
    "js_domain": "CDM_JS_DOMAIN",
    "js_api_prefix": "CDM_JS_API_PREFIX",
}
"""Options, with their variables, that say where a cluster is."""

Regions = Mapping[str, ClusterReport | CdmError | OSError]
"""What there is in each region, or why that is not known."""


def regions_of(typed: Sequence[str], options: ConnectionOptions) -> dict[str, ConnectionOptions]:
    """How to connect to each region, by its name.

    Args:
        typed: ``CONTEXT`` or ``CONTEXT=PREFIX`` each; empty: those that the variable names.
        options: what counts for all of them, as far as the contexts do not say otherwise.

    Raises:
        UsageError: none is named, or one twice; or another option says where a cluster is.
    """
    for option, variable in _TOLD_BY_CONTEXT.items():
        if getattr(options, option) not in (None, os.environ.get(variable)):
            raise UsageError(f"--{option.replace('_', '-')}: that is told by the context of each region; leave it out")
    found: dict[str, ConnectionOptions] = {}
    for text in typed or os.environ.get(VARIABLE, "").split():
        name, _, prefix = text.partition("=")
        if not name or name in found:
            problem = "is named twice" if name else "has no name: write CONTEXT or CONTEXT=PREFIX"
            raise UsageError(f"region {text!r} {problem} (--region, {VARIABLE})")
        own: dict[str, Any] = {**dict.fromkeys(_TOLD_BY_CONTEXT), "context": name}
        found[name] = replace(options, **own, prefix=prefix or options.prefix)
    if not found:
        raise UsageError(
            f"--all-regions: {VARIABLE} names none; give it, or --region, the context of each, as CONTEXT or "
            "CONTEXT=PREFIX (`nats context ls` lists them)"
        )
    return found


def look_at_regions(regions: Mapping[str, ConnectionOptions], to: Selection) -> Regions:
    """Look at all of them at once; one that cannot be read hides no other."""
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    found: dict[str, ClusterReport | CdmError | OSError] = {}

    async def look(name: str, options: ConnectionOptions) -> None:
        try:
            async with connect(options.access(), name="cdm status", prefix=options.prefix) as connection:
                await connection.check_server()
                found[name] = narrowed(await look_at_cluster(connection), to)
        except (CdmError, OSError) as error:
            found[name] = error
        except BaseExceptionGroup as group:
            if (first := first_error(group)) is None:
                raise
            found[name] = first

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for name, options in regions.items():
                tasks.start_soon(look, name, options)

    anyio.run(interruptible, run)
    return {name: found[name] for name in regions}


def document(regions: Regions) -> dict[str, ClusterReport | dict[str, str]]:
    """What is printed as JSON: of each region what `cdm status` prints there, or the error."""
    return {name: each if isinstance(each, ClusterReport) else {"error": str(each)} for name, each in regions.items()}


def lines_of(regions: Regions, on: Sheet, *, everything: bool, whole: bool) -> Iterator[str]:
    """For people: each region below its name; arguments as of `overview`."""
    for number, (name, each) in enumerate(regions.items()):
        if number:
            yield ""
        yield on.paint(f"region {name}", "bold")
        if isinstance(each, ClusterReport):
            yield from overview(each, on, everything=everything, whole=whole)
        else:
            yield on.paint(str(each), "red")


def troubles(regions: Regions) -> Iterator[str]:
    """A line for each thing that is not well, with its region."""
    for name, each in regions.items():
        told = map(in_line, each.troubles) if isinstance(each, ClusterReport) else [str(each)]
        yield from (PLAIN(f"{name}: {line}") for line in told)


def code_of(regions: Regions, *, check: bool) -> Exit:
    """The exit code: that of the first region that cannot be read, else whether all are well."""
    unhealthy = False
    for each in regions.values():
        if not isinstance(each, ClusterReport):
            return exit_code(each)
        unhealthy |= not (each.well if check else each.healthy)
    return Exit.UNHEALTHY if unhealthy else Exit.OK
