"""``cdm status``: what is wrong, blueprints, nodes and slices; once, as they change, or until all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from cdm.cli.concerns import in_line
from cdm.cli.connected import run_connected
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.looking import look_at_cluster
from cdm.cli.options import FLAG, ConnectionOptions, duration
from cdm.cli.overview import overview, sums
from cdm.cli.parameters import HERE, Json
from cdm.cli.report import ClusterReport
from cdm.cli.rows import PLAIN, sheet, show
from cdm.cli.screen import print_json
from cdm.cli.selecting import Selection, narrowed, selection_of
from cdm.errors import UsageError
from cdm.store.connection import Access, Connection, connect

Subject = Annotated[
    str | None,
    Parameter(
        name="SUBJECT",
        show_default=False,
        help="A version (group:name:version), a service (group:name) or a node: show only what concerns it.",
    ),
]


def status(
    subject: Subject = None,
    /,
    connection: ConnectionOptions = HERE,
    *,
    node: Annotated[str | None, Parameter(name="--node")] = None,
    state: Annotated[Sequence[str], Parameter(name="--state", negative="", show_default=False)] = (),
    everything: Annotated[bool, FLAG, Parameter(name="--all")] = False,
    watch: Annotated[bool, FLAG] = False,
    wait: Annotated[bool, FLAG] = False,
    timeout: Annotated[float | None, duration()] = None,
    check: Annotated[bool, FLAG] = False,
    all_regions: Annotated[bool, FLAG] = False,
    region: Annotated[Sequence[str], Parameter(name="--region", negative="", show_default=False)] = (),
    json: Json = False,
) -> int:
    """Show what is wrong, blueprints, nodes and slices; the exit code is 3 where nobody leads.

    Parameters
    ----------
    node
        Only this node, and what is on it.
    state
        Only slices in this state, FAILED for example; may be repeated.
    everything
        List also versions that were replaced or taken back, and all nodes and slices, however many there are.
    watch
        Go on showing it as it changes, until Ctrl-C: a screen on a terminal, elsewhere lines of what is new.
    wait
        Wait until all is well, and tell meanwhile what is not; the exit code is 3 where that is not so in time.
    timeout
        With --wait: wait no longer than this.
    check
        Print nothing but a line for each thing that is not well; the exit code is 3 where there is any.
    all_regions
        Read the cluster of each region that CDM_REGIONS names, as for --region, separated by spaces.
    region
        Read the cluster of this region, a context of the nats tool, CONTEXT or CONTEXT=PREFIX; may be repeated.
    """
    to = selection_of(subject, node, state)
    chosen = [name for name, given in (("--watch", watch), ("--wait", wait), ("--check", check)) if given]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)}: choose one of them")
    if all_regions and region:
        raise UsageError("--all-regions and --region: choose one of them")
    several = all_regions or bool(region)
    if several and (watch or wait):
        raise UsageError(f"{chosen[0]}: not with several regions; choose one by --context")
    if timeout is not None and not wait:
        raise UsageError("--timeout: nothing is waited for; leave it out, or --wait until all is well")
    if several:
        return _regions(region, connection, to, everything=everything, check=check, json=json)
    if watch:
        configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
        asyncio.run(_watch(connection.access(), connection.prefix, to, everything, json))
        return 0
    if wait:
        return _wait(connection, to, timeout, json=json)
    found = narrowed(run_connected(connection, "cdm status", look_at_cluster, level=LogLevel.ERROR), to)
    if json:
        print_json(found)
    elif check:
        show(PLAIN(in_line(each)) for each in found.troubles)
    else:
        show(overview(found, sheet(), everything=everything, whole=bool(to)))
    return 0 if (found.well if check else found.healthy) else 3


def _regions(
    typed: Sequence[str], options: ConnectionOptions, to: Selection, *, everything: bool, check: bool, json: bool
) -> int:
    from cdm.cli import regions  # noqa: PLC0415  # rarely needed

    found = regions.look_at_regions(regions.regions_of(typed, options), to)
    if json:
        print_json(regions.document(found))
    elif check:
        show(regions.troubles(found))
    else:
        show(regions.lines_of(found, sheet(), everything=everything, whole=bool(to)))
    return regions.code_of(found, check=check)


async def _watch(access: Access, prefix: str, to: Selection, everything: bool, json: bool) -> None:
    from cdm.cli.signals import until_stopped  # noqa: PLC0415  # rarely needed
    from cdm.cli.watching import watch  # noqa: PLC0415  # rarely needed

    async def work(_tasks: object) -> None:
        async with connect(access, name="cdm status", prefix=prefix) as connection:
            await connection.check_server()
            await watch(connection, to, everything=everything, json=json)

    await until_stopped(work)


def _wait(options: ConnectionOptions, to: Selection, timeout: float | None, *, json: bool) -> int:
    from cdm.cli.following import shown_line, unsaid  # noqa: PLC0415  # rarely needed
    from cdm.cli.watching import wait_until_well  # noqa: PLC0415  # rarely needed

    say = unsaid if json else shown_line

    async def use(connection: Connection) -> ClusterReport:
        return await wait_until_well(connection, to, say, timeout)

    found = run_connected(options, "cdm status", use, level=LogLevel.ERROR)
    if json:
        print_json(found)
    elif found.well:
        say(f"all is well: {sums(found)}")
    else:
        say(f"not well within {timeout:g} s:")
        show(PLAIN(f"    {in_line(each)}") for each in found.troubles)
    return 0 if found.well else 3
