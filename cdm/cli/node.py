"""``cdm node``: the process that runs on every machine."""

from __future__ import annotations

import socket
from enum import StrEnum, unique
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from cdm.cli.chosen import Chosen
from cdm.cli.commands.described import examples
from cdm.cli.context import expanded
from cdm.cli.log_setup import LogFormat, LogLevel
from cdm.cli.options import (
    FLAG,
    REPLICAS,
    WHOEVER,
    ConnectionOptions,
    HttpOptions,
    Replicas,
    address_of_slices,
    check_url,
    cores,
    duration,
    node_labels,
    reserved_of,
    size,
    whole,
)
from cdm.cli.parameters import HERE
from cdm.errors import UsageError
from cdm.manager.policy import Policy
from cdm.model.artifact import node_id
from cdm.model.keys import MOST_SLOTS
from cdm.model.node import EXTERNAL, PROCESS, Role
from cdm.node.machine import Machine
from cdm.node.metadata import ADDRESS
from cdm.node.settings import NodeSettings
from cdm.runtimes.run_as import SAME, RunAs, chosen

app = App(
    name="node",
    help="Run this machine's node, or have one forgotten that is gone.",
    help_epilogue=examples("cdm node", "cdm node --id node-1 --label zone=a --reserve memory=1Gi"),
)
app.command(
    "cdm.cli.forget:forget",
    name="forget",
    help=(
        "Have nodes forgotten that are gone for good.\n\n"
        "A node that is lost, or left, stays listed by `cdm nodes`, its labels count as domains of a spread, and what "
        "is wanted of it is kept, until this is said. Exits with 4 for a node that is registered, that nobody has "
        "given up yet, or of which slices are left; and with 1 where there is no such node."
    ),
    help_epilogue=examples("cdm node forget node-3"),
)


app.command(
    "cdm.cli.leaving:leave",
    name="leave",
    help=(
        "Have this machine's node leave for good.\n\n"
        "Whatever its --on-stop says, its slices are stopped and its registration is taken back; the command waits for "
        "that. Where no process of it runs, what one left is stopped, and its registration taken back over NATS (`cdm "
        "help connection`); where NATS is not reached, that stands until its --node-ttl is over. Exits with 1 where "
        "there is nothing to stop or to take back, and where something cannot be stopped."
    ),
    help_epilogue=examples("cdm node leave", "cdm node leave --id node-1"),
)


@unique
class OnStop(StrEnum):
    """What a node does when it is told to stop."""

    LEAVE = "leave"
    DRAIN = "drain"
    KEEP = "keep"


@app.default
def node(
    connection: ConnectionOptions = HERE,
    *,
    id: Annotated[str | None, Parameter(name="--id", env_var="CDM_ID")] = None,  # noqa: A002
    role: Annotated[Role, Parameter(env_var="CDM_ROLE")] = Role.AUTO,
    managers: Annotated[int, whole("CDM_MANAGERS", least=1, most=MOST_SLOTS)] = 5,
    replicas: Annotated[Replicas, REPLICAS] = 1,
    create: Annotated[bool, Parameter(env_var="CDM_CREATE")] = True,
    label: Annotated[
        tuple[str, ...], Parameter(name="--label", env_var="CDM_LABEL", negative="", show_default=False)
    ] = (),
    label_from: Annotated[Literal["metadata"] | None, Parameter(env_var="CDM_LABEL_FROM")] = None,
    metadata_url: Annotated[str, Parameter(env_var="CDM_METADATA_URL")] = ADDRESS,
    capacity: Annotated[int | None, whole("CDM_CAPACITY")] = None,
    cpu: Annotated[float | None, cores("CDM_CPU")] = None,
    memory: Annotated[int | None, size("CDM_MEMORY", show_default=False)] = None,
    reserve: Annotated[
        tuple[str, ...], Parameter(name="--reserve", env_var="CDM_RESERVE", negative="", show_default=False)
    ] = (),
    lease_ttl: Annotated[float, duration("CDM_LEASE_TTL", ttl=True)] = 10.0,
    node_ttl: Annotated[float, duration("CDM_NODE_TTL", ttl=True)] = 10.0,
    reconcile_interval: Annotated[float, duration("CDM_RECONCILE_INTERVAL")] = 30.0,
    command_timeout: Annotated[float, duration("CDM_COMMAND_TIMEOUT")] = 60.0,
    settle: Annotated[float, duration("CDM_SETTLE")] = Policy().settle,
    on_stop: Annotated[OnStop | None, Parameter(env_var="CDM_ON_STOP")] = None,
    drain_on_stop: Annotated[bool, FLAG, Parameter(env_var="CDM_DRAIN_ON_STOP")] = False,
    drain_deadline: Annotated[float, duration("CDM_DRAIN_DEADLINE")] = 60.0,
    address: Annotated[str | None, Parameter(env_var="CDM_ADDRESS")] = None,
    runtime: Annotated[str, Parameter(env_var="CDM_RUNTIME")] = PROCESS,
    folder: Annotated[Path | None, Parameter(env_var="CDM_FOLDER")] = None,
    cache: Annotated[int, size("CDM_CACHE")] = 10 * 2**30,
    enforce_limits: Annotated[bool, Parameter(env_var="CDM_ENFORCE_LIMITS")] = True,
    secrets: Annotated[Path | None, Parameter(env_var="CDM_SECRETS")] = None,
    run_as: Annotated[str | None, Parameter(env_var="CDM_RUN_AS")] = None,
    run_as_range: Annotated[str | None, Parameter(env_var="CDM_RUN_AS_RANGE")] = None,
    trust: Annotated[Path | None, Parameter(env_var="CDM_TRUST")] = None,
    http: Annotated[str | None, Parameter(env_var="CDM_HTTP")] = None,
    who: HttpOptions = WHOEVER,
    traces: Annotated[str | None, Parameter(env_var="CDM_TRACES")] = None,
    log_format: Annotated[LogFormat, Parameter(env_var="CDM_LOG_FORMAT")] = LogFormat.CONSOLE,
    log_level: Annotated[LogLevel, Parameter(env_var="CDM_LOG_LEVEL")] = LogLevel.INFO,
) -> Chosen:
    """Run this machine's node until SIGTERM or SIGINT; with --on-stop keep, SIGHUP starts it anew.

    Parameters
    ----------
    id
        The node's name. [default: the host name]
    role
        "manager": takes part in elections; "agent": runs slices; "all": does both; "auto": both, or as an agent.
    managers
        How many nodes of role auto take part in elections; the others are agents until one of these is gone.
    replicas
        Replicas of the buckets that this node creates.
    create
        Create buckets that are missing.
    label
        A label of this node, NAME=VALUE; may be repeated.
    label_from
        "metadata": ask the cloud for the labels provider, region, zone and instance-type, once at the start.
    metadata_url
        Where the cloud is asked.
    capacity
        The most slices that this node takes. [default: no limit]
    cpu
        Cores that slices may reserve. [default: those that this process may use]
    memory
        Memory that slices may reserve: bytes, or 500M, 16Gi. [default: the machine's, or this process's limit]
    reserve
        What is kept back of these, cpu=0.5 or memory=1Gi; may be repeated.
    lease_ttl
        How long the leadership of a node that stops answering lasts.
    node_ttl
        How long this node may be silent before it counts as dead.
    reconcile_interval
        Time between two reconciliations of everything.
    command_timeout
        How long a node may take to obey a command; a transition may take twice as long.
    settle
        Time after the first node's registration for which the leader of a new cluster waits for more of them.
    on_stop
        "leave": what runs here stops, too; "drain": it is replaced first; "keep": it runs on for now. [default: leave]
    drain_on_stop
        The same as --on-stop drain.
    drain_deadline
        How long that is waited for at most; then what is left is stopped.
    address
        Where this node's slices are reached, a host name or IP address. [default: its own on its connection to NATS]
    runtime
        What runs the slices: "process", "systemd", "container" (Docker, Podman), "external" (your agent), or a plugin.
    folder
        Where artifacts and output are kept. [default: /var/lib/cdm/… for root, else ~/.local/state/cdm/…]
    cache
        The most that is kept of artifacts that no slice uses: bytes, or 500M, 10Gi.
    enforce_limits
        Refuse slices with a limit that cannot be enforced on this machine; else they run, with a warning in status.
    secrets
        Folder with the secrets that slices are given, one a file, mode 0700. [default: systemd's credentials]
    run_as
        The user that slices run as, a name or number; "same": this node's own. [default: as --run-as-range says]
    run_as_range
        Users FIRST-LAST, one for each slice. [default for root: 1900000000-1900065535; for others: none]
    trust
        File with public keys, one a line: only artifacts that one of them has signed are run. [default: anything is]
    http
        Serve HTTP beside it, as `cdm serve` does: HOST:PORT, or :PORT for all addresses of this machine. [default: not]
    traces
        Where traces of what is deployed are sent by OTLP over HTTP while this node leads, a URL. [default: nowhere]
    log_format
        Format of log lines.
    log_level
        The least severe level that is logged.
    """
    check_url(metadata_url)
    stops = _what_stopping_means(on_stop, drain=drain_on_stop)
    name = node_id(id or socket.gethostname())
    settings = NodeSettings(
        node=name,
        role=role,
        managers=managers,
        access=connection.access(),
        prefix=connection.prefix,
        create=create,
        replicas=replicas,
        drain_for=drain_deadline if stops is OnStop.DRAIN else None,
        keep=stops is OnStop.KEEP,
        labels=node_labels(label),
        labels_from_metadata=label_from == "metadata",
        metadata_address=metadata_url.rstrip("/"),
        capacity=capacity,
        machine=Machine(cpu, memory),
        reserved=reserved_of(reserve),
        address=address_of_slices(address) if address else None,
        runtime=runtime,
        folder=folder and expanded(folder),
        cache_bytes=cache,
        enforce_limits=enforce_limits,
        secrets=secrets and expanded(secrets),
        run_as=_as_whom(role, runtime, run_as, run_as_range),
        trust=trust and expanded(trust),
        lease_ttl=lease_ttl,
        node_ttl=node_ttl,
        reconcile_interval=reconcile_interval,
        policy=Policy(command_timeout=command_timeout, transition_timeout=2 * command_timeout, settle=settle),
    )
    refuse_contradictions(settings)
    if traces:
        check_url(traces, "--traces, CDM_TRACES")
    return Chosen(settings, http or None, who.files(), (traces or "").rstrip("/") or None, log_format, log_level)


def _what_stopping_means(chosen: OnStop | None, *, drain: bool) -> OnStop:
    if drain and chosen not in (None, OnStop.DRAIN):
        raise UsageError(f"--drain-on-stop (CDM_DRAIN_ON_STOP) contradicts --on-stop {chosen} (CDM_ON_STOP)")
    return OnStop.DRAIN if drain else chosen or OnStop.LEAVE


def _as_whom(role: Role, runtime: str, user: str | None, users: str | None) -> RunAs:
    """As whom slices run. Raises `UsageError`."""
    if runtime != PROCESS and (users or user not in (None, "", "same")):
        raise UsageError(
            f"--run-as and --run-as-range (CDM_RUN_AS, CDM_RUN_AS_RANGE) are for --runtime {PROCESS}, not {runtime}"
        )
    return SAME if runtime != PROCESS or (role is Role.MANAGER and not (user or users)) else chosen(user, users)


OF_SLICES = {
    "capacity": "--capacity (CDM_CAPACITY)",
    "machine": "--cpu or --memory (CDM_CPU, CDM_MEMORY)",
    "reserved": "--reserve (CDM_RESERVE)",
    "runtime": "--runtime (CDM_RUNTIME)",
    "folder": "--folder (CDM_FOLDER)",
    "cache_bytes": "--cache (CDM_CACHE)",
    "enforce_limits": "--no-enforce-limits (CDM_ENFORCE_LIMITS)",
    "drain_for": "--on-stop drain (CDM_ON_STOP) or --drain-on-stop (CDM_DRAIN_ON_STOP)",
    "keep": "--on-stop keep (CDM_ON_STOP)",
    "secrets": "--secrets (CDM_SECRETS)",
    "run_as": "--run-as or --run-as-range (CDM_RUN_AS, CDM_RUN_AS_RANGE)",
    "trust": "--trust (CDM_TRUST)",
}
"""Settings that concern the slices on this machine, and their options."""


def refuse_contradictions(settings: NodeSettings) -> None:
    """Refuse options that contradict the role; raises `UsageError`.

    An agent may have options about leading, so that all machines can share one environment file.
    """
    usual = NodeSettings(settings.node)
    for field, option in OF_SLICES.items():
        if settings.role is Role.MANAGER and getattr(settings, field) != getattr(usual, field):
            raise UsageError(f"{option} contradicts --role manager (CDM_ROLE), which runs no slices")
    if settings.keep and settings.runtime == EXTERNAL:
        raise UsageError("--on-stop keep (CDM_ON_STOP) contradicts --runtime external: your own agent keeps its slices")
    for field in ("trust", "secrets") if settings.runtime == EXTERNAL else ():
        if getattr(settings, field) != getattr(usual, field):
            raise UsageError(
                f"{OF_SLICES[field]} contradicts --runtime external: there your own agent decides what runs"
            )
