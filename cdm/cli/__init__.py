"""The command line: ``cdm node``, ``init``, ``status``, ``deploy``, ``rollout`` and the others that are listed here.

The commands are registered by name, with the texts that ``--help`` shows, so that each one's imports are paid for
only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from cyclopts import App, CycloptsError

from cdm.cli.screen import complain
from cdm.cli.streams import discard_output, open_missing
from cdm.errors import AccessDenied, CdmError, Conflict, FolderTaken, ModelError, NodeIdTaken, UsageError
from cdm.version import VERSION


class Exit(IntEnum):
    """Exit codes of the process."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    CONFLICT = 4
    DENIED = 5


_EXITS = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 unhealthy (nobody leads, a node does not answer, a rollout "
    "was taken back or failed), 4 conflict (the node id is taken, the artifact exists, the blueprint was written "
    "by others), 5 denied (credentials or a permission)."
)


def _examples(*commands: str) -> str:
    """What stands below a command's help."""
    return "\n".join(("Examples:", *(f"  {each}" for each in commands), "", _EXITS))


app = App(
    name="cdm",
    help=(
        "ClusterDeploymentManager for NATS: publish a blueprint, and its instances run, spread over the nodes.\n\n"
        "An artifact, group:name:version, is a program that was pushed. A blueprint says how many instances of it are "
        "to run: `nats kv put blueprints GROUP/NAME/VERSION 3`. A slice is one instance on one node."
    ),
    version=VERSION,
    version_flags=["--version"],
    # Markdown's parser takes longer to import than everything else.
    help_format="plaintext",
    version_format="plaintext",
    help_epilogue=_EXITS,
)
app.command(
    "cdm.cli.node:app",
    name="node",
    help=(
        "Run this machine's node until SIGTERM or SIGINT.\n\n"
        "The node registers, takes part in elections, and runs the slices that the leader places on it. The elected "
        "leader serves the blueprints. A second signal stops at once."
    ),
)
app.command(
    "cdm.cli.init:init",
    name="init",
    help=(
        "Create cdm's buckets in NATS.\n\n"
        "Creates those that are missing, and updates the settings of those that exist. Safe to repeat: no value is "
        "touched. Nodes do the same when they start, unless told otherwise."
    ),
)
app.command(
    "cdm.cli.secure:secure",
    name="secure",
    help=(
        "Write a configuration of nats-server in which everybody may do what is theirs, and a key for everybody.\n\n"
        "Each node has an account of its own: whoever holds its key can do no more than lie about that node. On a "
        "folder that is there it adds the nodes that are new, gives --rotate another key and takes --remove away, and "
        "leaves all other keys as they are. Connects to nothing, prints no seed, and overwrites nothing that it did "
        "not write. Exits with 4 where something else is in its way."
    ),
)
app.command(
    "cdm.cli.status:status",
    name="status",
    help=(
        "Show what is wrong, and blueprints, nodes and slices.\n\n"
        "What is wrong comes first. Versions that were replaced or taken back are counted, and so are nodes and "
        "slices, where there are many that have nothing to tell; --all lists them. A version, a service or a node "
        "shows only what concerns it.\n\n"
        "All is well where somebody leads, every blueprint is Ready or was replaced, no node is lost, and every key "
        "can be read. Exits with 3 where nobody leads; with --check and --wait, where not all is well."
    ),
    help_epilogue=_examples(
        "cdm status",
        "cdm status org.example:slice --watch",
        "cdm status --node node-2 --state FAILED",
        "cdm status --wait --timeout 5m",
        "cdm status --check || mail -s trouble ops@example.org",
    ),
)
app.command(
    "cdm.cli.nodes:nodes",
    name="nodes",
    help=(
        "Show the nodes, what is left on those that are drained, and those that are gone.\n\n"
        "Of a node that is drained it tells since when, who wanted that and why, until when, and for each slice that "
        "is left what it waits for. A node that is gone is listed, with since when and what it had, until "
        "`cdm node forget`."
    ),
)
app.command(
    "cdm.cli.cordon:cordon",
    name="cordon",
    help=(
        "Have nodes keep what they have, and take nothing new.\n\n"
        "Writes the intent of each node, which outlives its process. `cdm uncordon` takes it back. Exits with 1 where "
        "there is no such node.\n\n"
        "Example: cdm cordon node-1 --reason 'disk is failing'"
    ),
)
app.command(
    "cdm.cli.cordon:uncordon",
    name="uncordon",
    help=(
        "Have nodes take slices again that were cordoned or drained.\n\n"
        "Nothing is moved back by itself; `cdm rebalance` does. Exits with 1 where there is no such node.\n\n"
        "Example: cdm uncordon node-1 node-2"
    ),
)
app.command(
    "cdm.cli.drain:drain",
    name="drain",
    help=(
        "Have nodes emptied: what runs there is replaced elsewhere first, and then taken away.\n\n"
        "An instance goes once its replacement is healthy; one that must not run twice (stop_after) stops first, once "
        "another node takes it. The leader does it, whoever that is, and it goes on when this command has ended. "
        "Exits with 3 where what was waited for was not over in time, and with 4 where others want something else of "
        "a node meanwhile.\n\n"
        "Examples: cdm drain node-1 --wait --reason 'new kernel'; cdm drain node-1 --deadline 1h --on-deadline force; "
        "cdm drain node-1 node-2 node-3 --parallel 1"
    ),
)
app.command(
    "cdm.cli.explain:explain",
    name="explain",
    help=(
        "Show why instances are where they are, and why others are nowhere.\n\n"
        "Of a version it shows for every node whether it takes one more instance, or all that keeps it out: rules, "
        "capacity, cordon, drain, silence; and which nodes a single thing keeps out. Of a slice it shows since when "
        "it is what it is, by which blueprint, and which rules hold. Exits with 1 where there is no such version or "
        "slice."
    ),
)
app.command(
    "cdm.cli.health:health",
    name="health",
    help=(
        "Ask whether a node runs and is connected.\n\n"
        "For health checks of container engines and supervisors: asks the node over NATS, with the same options and "
        "variables as `cdm node`. Exits with 3 where it does not answer, and with 1 where NATS cannot be reached."
    ),
)
app.command(
    "cdm.cli.doctor:doctor",
    name="doctor",
    help=(
        "Look the cluster over, and say how to mend what is not well.\n\n"
        "Looks at the server, the buckets and what they hold, the nodes, their clocks and disks, and at what this "
        "credential may do. Writes nothing without --fix. Exits with 3 where it finds a warning or worse; with "
        "--format nagios with that format's own codes (0, 1, 2, 3), and with --format prometheus with 0, for what is "
        "found is in the metrics."
    ),
    help_epilogue=_examples("cdm doctor", "cdm doctor --fix", "cdm doctor --format nagios"),
)
app.command("cdm.cli.artifact:app", name="artifact", help="Push programs to the cluster, list them, remove them.")
app.command(
    "cdm.cli.deploy:deploy",
    name="deploy",
    help=(
        "Have a version take over from the one in force, with its number of instances and its settings.\n\n"
        "Pushes the program where a path is given, writes the version's blueprint, and follows the rollout until the "
        "version serves. Exits with 3 where it was taken back or failed, and with 4 where the blueprint was written "
        "by others, or another version took over meanwhile."
    ),
)
app.command(
    "cdm.cli.apply:apply",
    name="apply",
    help=(
        "Have blueprints be what files say.\n\n"
        "A document is a blueprint with `artifact: GROUP:NAME:VERSION` beside its fields. All documents are checked "
        "first: where one is wrong, nothing is written, and the exit code is 2. Each blueprint that differs is written "
        "by compare-and-set; what commands wrote there (restarted, a paused rollout) stays. Exits with 4 where a "
        "blueprint was written by others meanwhile, and, with --wait, with 3 where not all comes to serve."
    ),
    help_epilogue=_examples(
        "cdm apply -f shop.yaml --wait",
        "cdm apply -f blueprints/ --owner shop --prune",
        "cdm apply org.example:slice:1.0.0 --instances 3 --set env.LEVEL=debug",
    ),
)
app.command(
    "cdm.cli.apply:plan",
    name="plan",
    help=(
        "Show what `cdm apply` would change, and what follows from that.\n\n"
        "Shows the fields that differ, and then what the leader would do first, decided by the leader's own rules: "
        "+ what it places, - what it stops, ~ what it rolls, ! what it cannot do. Writes nothing."
    ),
    help_epilogue=_examples(
        "cdm plan -f shop.yaml",
        "cdm plan -f shop.yaml --out shop.plan",
        "cdm plan org.example:slice:1.0.0 --instances 5",
    ),
)
app.command(
    "cdm.cli.export:export",
    name="export",
    help=(
        "Write what the cluster is to run as one file, which `cdm apply` takes.\n\n"
        "For a backup, and to move what one cluster runs to another. Programs are not in it (`cdm artifact push`). "
        "Versions that were replaced or taken back are left out, since nothing of them is to run."
    ),
    help_epilogue=_examples(
        "cdm export > cluster.yaml",
        "cdm export --context old | cdm apply --context new -f -",
    ),
)
app.command(
    "cdm.cli.rollout:app",
    name="rollout",
    help="Look at a service's rollout, stop it, let it go on, take it back, try it again.",
)
app.command(
    "cdm.cli.rollback:rollback",
    name="rollback",
    help=(
        "Have the version, or the settings, serve again that a service had before.\n\n"
        "In the middle of a rollout, that is taken back. Afterwards what was different last comes back: the version "
        "that was replaced, or the settings that the blueprint had. A restart is looked past. --to names any version "
        "that has a blueprint, or had one. Exits with 1 where there is nothing to go back to."
    ),
)
app.command(
    "cdm.cli.scale:scale",
    name="scale",
    help=(
        "Have another number of instances of a version.\n\n"
        "Edits the version's blueprint, and leaves its other fields as they are. Exits with 1 where the version was "
        "replaced by another one."
    ),
)
app.command(
    "cdm.cli.scale:restart",
    name="restart",
    help=(
        "Replace every instance of a version by a new one.\n\n"
        "Writes the time into the field `restarted` of its blueprint. The instances are replaced one after another, or "
        "as the blueprint's `rollout` says. Exits with 1 where the version was replaced by another one."
    ),
)
app.command(
    "cdm.cli.rebalance:rebalance",
    name="rebalance",
    help=(
        "Have healthy instances moved to where they would be placed today.\n\n"
        "Without ARTIFACT that concerns every version with instances. Writes the time into the field `rebalanced` of "
        "the blueprints whose instances are not placed best; the leader moves one instance of each at a time: it "
        "places one, waits until it is healthy, and takes the other away. Exits with 3 where it was not over in time, "
        "and with 4 where a blueprint was written by others meanwhile."
    ),
)
app.command(
    "cdm.cli.history:history",
    name="history",
    help=(
        "Show what was written of a service's blueprints: when, by whom, what changed, what it led to, and what is in "
        "force.\n\n"
        "NATS keeps the last ten revisions of each version's blueprint. By whom is what cdm's commands declare; who "
        "writes without them is unknown."
    ),
)
app.command(
    "cdm.cli.events:events",
    name="events",
    help=(
        "Show what happened: what the leader commanded and why, what became of it, and who wrote what.\n\n"
        "Shows what is kept, seven days at most, and ends; with --follow it goes on. By whom is what cdm's commands "
        "declare; who writes without them is unknown. Exits with 1 where no events are kept."
    ),
    help_epilogue=_examples(
        "cdm events --kind blueprint --since 1h",
        "cdm events --artifact org.example:slice:1.0.0 --since 10m",
        "cdm events -f --node node-1",
    ),
)
app.command(
    "cdm.cli.logs:logs",
    name="logs",
    help=(
        "Show what an artifact's slices write, from all nodes.\n\n"
        "Lines come in the order of time. Exits with 1 where there is no such output or node, or where a node did not "
        "answer."
    ),
)
app.command(
    "cdm.cli.endpoints:endpoints",
    name="endpoints",
    help=(
        "Show where a service can be sent requests: address, port, weight, node and version.\n\n"
        "Those are the ACTIVE instances of all versions of the service, with the weights of a rollout that goes on. "
        "With --watch a router can follow it: the list is printed at once, and whenever it changes. Exits with 1 "
        "where there is no such service."
    ),
)
app.command(
    "cdm.cli.demo.demo:demo",
    name="demo",
    help=(
        "Play a cluster's whole life on this machine, in twenty seconds.\n\n"
        "Starts an embedded nats-server in a temporary folder and three real nodes, which run a small web service; "
        "scales it, has a new version take over, and a bad one come to nothing, kills a slice and the leader, and "
        "corrects drift. Every step is checked, also by asking the service, which answers all through scaling and "
        "releases; exits with 1 if one fails. Nothing is left behind."
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    open_missing()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        result: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        from cdm.cli.usage import usage_error  # noqa: PLC0415  # rarely needed

        return _failed(usage_error(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        discard_output()  # whoever read it has seen enough
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
    complain(str(error))
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
    """The first error in a group of them, if all are cdm's own."""
    ours, others = group.split(CdmError)
    if others is not None or ours is None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, CdmError) else None
