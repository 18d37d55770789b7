"""The texts of the commands that set a cluster up, and look after its nodes."""

from __future__ import annotations

from cdm.cli.commands.described import Described

SETTING_UP = (
    Described(
        "init",
        "cdm.cli.init:init",
        "Create cdm's buckets in NATS.\n\n"
        "Creates those that are missing, and updates the settings of those that exist. Safe to repeat: no value is "
        "touched. Nodes do the same when they start, unless told otherwise.",
        ("cdm init", "cdm init --replicas 3"),
    ),
    Described(
        "node",
        "cdm.cli.node:app",
        "Run this machine's node until SIGTERM or SIGINT.\n\n"
        "The node registers, takes part in elections, and runs the slices that the leader places on it. The elected "
        "leader serves the blueprints. A second signal stops at once.",
    ),
    Described(
        "serve",
        "cdm.cli.serve:serve",
        "Tell over HTTP how the cluster is, until SIGTERM or SIGINT.\n\n"
        "A process of its own that only reads: endpoints for proxies and monitoring. `cdm node --http` serves the same "
        "beside a node. Needs the extra http. While NATS is away the last answer stands. Exits with 4 where another "
        "process listens at the address.",
        ("cdm serve", "cdm serve --http 10.0.0.5:8280 --context router"),
    ),
    Described(
        "secure",
        "cdm.cli.secure:secure",
        "Write a configuration of nats-server in which everybody may do what is theirs, and a key for everybody.\n\n"
        "Each node has an account of its own: whoever holds its key can do no more than lie about that node. On a "
        "folder that is there it adds the nodes that are new, gives --rotate another key and takes --remove away, and "
        "leaves all other keys as they are. Connects to nothing but for --push, prints no seed, and overwrites nothing "
        "that it did not write. Exits with 4 where something else is in its way.",
        ("cdm secure --out site --nodes node-1,node-2,node-3", "cdm secure --out site --nodes node-4 --push"),
    ),
    Described(
        "demo",
        "cdm.cli.demo.demo:demo",
        "Play a cluster's whole life on this machine, in twenty seconds.\n\n"
        "Starts an embedded nats-server in a temporary folder and three real nodes, which run a small web service; "
        "scales it, has a new version take over, and a bad one come to nothing, kills a slice and the leader, and "
        "corrects drift. Every step is checked, also by asking the service, which answers all through scaling and "
        "releases; exits with 1 if one fails. Nothing is left behind. With --page a browser shows it; with --stay the "
        "cluster goes on after that, to be played with.",
        ("cdm demo", "cdm demo --page --stay"),
    ),
)

NODES = (
    Described(
        "nodes",
        "cdm.cli.nodes:nodes",
        "Show the nodes, what is left on those that are drained, and those that are gone.\n\n"
        "Of a node that is drained it tells since when, who wanted that and why, until when, and for each slice that "
        "is left what it waits for. A node that is gone is listed, with since when and what it had, until "
        "`cdm node forget`.",
        ("cdm nodes", "cdm nodes node-1 --json"),
    ),
    Described(
        "cordon",
        "cdm.cli.cordon:cordon",
        "Have nodes keep what they have, and take nothing new.\n\n"
        "Writes the intent of each node, which outlives its process. `cdm uncordon` takes it back. Exits with 1 where "
        "there is no such node.",
        ("cdm cordon node-1 --reason 'disk is failing'",),
    ),
    Described(
        "uncordon",
        "cdm.cli.cordon:uncordon",
        "Have nodes take slices again that were cordoned or drained.\n\n"
        "Nothing is moved back by itself; `cdm rebalance` does. Exits with 1 where there is no such node.",
        ("cdm uncordon node-1 node-2",),
    ),
    Described(
        "drain",
        "cdm.cli.drain:drain",
        "Have nodes emptied: what runs there is replaced elsewhere first, and then taken away.\n\n"
        "An instance goes once its replacement is healthy; one that must not run twice (stop_after) stops first, once "
        "another node takes it. The leader does it, whoever that is, and it goes on when this command has ended. "
        "Exits with 3 where what was waited for was not over in time, and with 4 where others want something else of "
        "a node meanwhile.",
        (
            "cdm drain node-1 --wait --reason 'new kernel'",
            "cdm drain node-1 --deadline 1h --on-deadline force",
            "cdm drain node-1 node-2 node-3 --parallel 1",
        ),
    ),
    Described(
        "health",
        "cdm.cli.health:health",
        "Ask whether a node runs and is connected.\n\n"
        "For health checks of container engines and supervisors: asks the node over NATS, with the same options and "
        "variables as `cdm node`. Exits with 3 where it does not answer, and with 1 where NATS cannot be reached.",
        ("cdm health", "cdm health --id node-1"),
    ),
    Described(
        "doctor",
        "cdm.cli.doctor:doctor",
        "Look the cluster over, and say how to mend what is not well.\n\n"
        "Looks at the server, the buckets and what they hold, the nodes, their clocks and disks, and at what this "
        "credential may do. Writes nothing without --fix. Exits with 3 where it finds a warning or worse; with "
        "--format nagios with that format's own codes (0, 1, 2, 3), and with --format prometheus with 0, for what is "
        "found is in the metrics.",
        ("cdm doctor", "cdm doctor --fix", "cdm doctor --format nagios"),
    ),
)
