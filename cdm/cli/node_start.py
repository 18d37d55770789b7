"""``cdm node``, once its options are read: what is to be there before it runs. Nothing here reads any."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import anyio
from msgspec.structs import replace

from cdm.artifacts.signing import TrustedKeys
from cdm.cli.chosen import Chosen
from cdm.cli.http_server import http_server
from cdm.cli.log_setup import configure_logs
from cdm.cli.node_process import Tracing, run, take_our_place
from cdm.errors import UsageError
from cdm.log import Log
from cdm.model.node import EXTERNAL, PROCESS, Role
from cdm.node.folder import chosen_folder
from cdm.node.settings import NodeSettings
from cdm.runtimes import Secrets, runtime_named
from cdm.runtimes.keeper.identity import hide
from cdm.runtimes.run_as import SAME, check, runs_python

log = Log("cdm.node")


def start(chosen: Chosen) -> int:
    """Run the node to its end; returns the exit code.

    Raises:
        CdmError: it cannot run as it is to.
    """
    settings = chosen.settings
    Secrets.of(settings.node, settings.secrets, os.environ).check()
    check(settings.run_as, chosen_folder(settings.folder, settings.prefix, settings.node))
    hide()
    if settings.trust is not None:
        TrustedKeys.read(settings.trust)
    if settings.runtime != EXTERNAL:
        runtime_named(settings.runtime)
    server = http_server(chosen.http, chosen.files) if chosen.http else None
    tracing = tracing_to(chosen.traces)
    if server is not None:
        settings = replace(settings, http=server.at)
    configure_logs(chosen.log_format, chosen.log_level, id=settings.node)
    if settings.role is not Role.MANAGER and settings.runtime == PROCESS:
        _tell(settings)
    if anyio.run(run, settings, server, tracing):
        take_our_place()
    return 0


def tracing_to(url: str | None) -> Tracing:
    """What sends traces of a node there. Raises `UsageError`."""
    if not url:
        return nullcontext
    try:
        from cdm.traces.sending import traced  # noqa: PLC0415  # optional, and slow to import
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("opentelemetry"):
            raise
        raise UsageError(
            f"--traces (CDM_TRACES) needs {missing.name}, which is not installed: pip install 'cdm[otel]'"
        ) from None
    return lambda settings: traced(settings, url)


def _tell(settings: NodeSettings) -> None:
    """Say once what slices can reach."""
    if settings.run_as == SAME:
        log.info(
            "slices run as this node's own user: they can read each other's files, and the node's with its credentials"
            + ("" if os.geteuid() == 0 else "; only root can give them users of their own (--run-as-range)"),
            uid=os.geteuid(),
        )
        return
    for path in settings.access.files:
        if path.stat().st_mode & 0o044:
            log.warning("slices may read this node's credentials: chmod 600", file=str(path))
    if not runs_python(settings.run_as):
        log.warning(
            "slices may not run this node's Python, so none whose entry ends in .py works: install cdm with a"
            " Python that all users may run, or have slices run as this node's own user (--run-as same)",
            path=str(Path(sys.executable).resolve()),
        )
