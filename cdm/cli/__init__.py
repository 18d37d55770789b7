"""The command line: ``cdm node``, ``init``, ``status``, ``health``, ``artifact``, ``logs``, ``demo``.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the cluster is unhealthy, 4 conflict (the node id is
taken, the artifact is there already), 5 NATS refused the credentials, or a permission is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from cyclopts import App, CycloptsError

from cdm.errors import AccessDenied, CdmError, Conflict, FolderTaken, ModelError, NodeIdTaken, UsageError
from cdm.log import printable
from cdm.version import VERSION


class Exit(IntEnum):
    """What the process's exit code says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    CONFLICT = 4
    DENIED = 5


app = App(
    name="cdm",
    help="ClusterDeploymentManager for NATS: publish a blueprint, and its instances run, spread over the nodes.",
    version=VERSION,
    version_flags=["--version"],
    # Markdown's parser takes longer to import than all the rest.
    help_format="plaintext",
    version_format="plaintext",
    help_epilogue=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cluster unhealthy, 4 conflict (node id is taken, "
        "artifact is there already), 5 denied (credentials, or a permission)."
    ),
)
# By name, so that a command's own imports are paid for only when it runs.
app.command("cdm.cli.node:node", name="node", help="Run this machine's node until SIGTERM or SIGINT.")
app.command("cdm.cli.init:init", name="init", help="Create the buckets.")
app.command("cdm.cli.status:status", name="status", help="Show leader, nodes, blueprints and slices.")
app.command("cdm.cli.health:health", name="health", help="Ask whether a node runs and is connected.")
app.command("cdm.cli.artifact:app", name="artifact", help="Push programs to the cluster, list them, remove them.")
app.command("cdm.cli.logs:logs", name="logs", help="Show what an artifact's slices write, from all nodes.")
app.command("cdm.cli.demo.demo:demo", name="demo", help="Play a whole cluster's life on this machine, in ten seconds.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        result: Any = app(arguments, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:
        return Exit.USAGE  # cyclopts has said what is wrong
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough. What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as problem:
        return _failed(CdmError(str(problem)))
    except BaseExceptionGroup as group:
        ours = _first(group)
        if ours is None:
            raise
        return _failed(ours)
    except CdmError as error:
        return _failed(error)
    return result if isinstance(result, int) else Exit.OK


def _failed(error: CdmError) -> int:
    from rich.console import Console  # noqa: PLC0415  # only who needs it waits for it
    from rich.markup import escape  # noqa: PLC0415

    told = escape(printable(str(error)))
    # Of an artifact a:b:1 its ":b:" is no emoji.
    Console(stderr=True, soft_wrap=True, emoji=False).print(f"[bold red]cdm:[/] {told}", highlight=False)
    match error:
        case NodeIdTaken() | FolderTaken() | Conflict():
            return Exit.CONFLICT
        case UsageError() | ModelError():
            return Exit.USAGE
        case AccessDenied():
            return Exit.DENIED
        case _:
            return Exit.FAILED


def _first(group: BaseExceptionGroup[BaseException]) -> CdmError | None:
    """The one error of ours in a task group's bundle, if there is nothing else in it."""
    ours, others = group.split(CdmError)
    if others is not None or ours is None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, CdmError) else None
