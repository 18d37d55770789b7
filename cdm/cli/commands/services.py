"""The texts of the commands that say what is to run, and show what does."""

from __future__ import annotations

from cdm.cli.commands.described import Described

DEPLOYING = (
    Described(
        "artifact",
        "cdm.cli.artifact:app",
        "Push programs to the cluster, list them, remove them.",
    ),
    Described(
        "apply",
        "cdm.cli.apply:apply",
        "Have blueprints be what files say.\n\n"
        "A document is a blueprint with `artifact: GROUP:NAME:VERSION` beside its fields. All documents are checked "
        "first: where one is wrong, nothing is written, and the exit code is 2. Each blueprint that differs is written "
        "by compare-and-set; what commands wrote there (restarted, a paused rollout) stays. Exits with 4 where a "
        "blueprint was written by others meanwhile, and, with --wait, with 3 where not all comes to serve.",
        (
            "cdm apply -f shop.yaml --wait",
            "cdm apply -f blueprints/ --owner shop --prune",
            "cdm apply org.example:slice:1.0.0 --instances 3 --set env.LEVEL=debug",
        ),
    ),
    Described(
        "plan",
        "cdm.cli.apply:plan",
        "Show what `cdm apply` would change, and what follows from that.\n\n"
        "Shows the fields that differ, and then what the leader would do first, decided by the leader's own rules: "
        "+ what it places, - what it stops, ~ what it rolls, ! what it cannot do. Writes nothing.",
        (
            "cdm plan -f shop.yaml",
            "cdm plan -f shop.yaml --out shop.plan",
            "cdm plan org.example:slice:1.0.0 --instances 5",
        ),
    ),
    Described(
        "export",
        "cdm.cli.export:export",
        "Write what the cluster is to run as one file, which `cdm apply` takes.\n\n"
        "For a backup, and to move what one cluster runs to another. Programs are not in it (`cdm artifact push`). "
        "Versions that were replaced or taken back are left out, since nothing of them is to run.",
        ("cdm export > cluster.yaml", "cdm export --context old | cdm apply --context new -f -"),
    ),
    Described(
        "deploy",
        "cdm.cli.deploy:deploy",
        "Have a version take over from the one in force, with its number of instances and its settings.\n\n"
        "Pushes the program where a path is given, writes the version's blueprint, and follows the rollout until the "
        "version serves. Exits with 3 where it was taken back or failed, and with 4 where the blueprint was written "
        "by others, or another version took over meanwhile.",
        ("cdm deploy org.example:slice:1.1.0 ./slice-1.1.0",),
    ),
    Described(
        "rollout",
        "cdm.cli.rollout:app",
        "Look at a service's rollout, stop it, let it go on, take it back, try it again.",
    ),
    Described(
        "rollback",
        "cdm.cli.rollback:rollback",
        "Have the version, or the settings, serve again that a service had before.\n\n"
        "In the middle of a rollout, that is taken back. Afterwards what was different last comes back: the version "
        "that was replaced, or the settings that the blueprint had. A restart is looked past. --to names any version "
        "that has a blueprint, or had one. Exits with 1 where there is nothing to go back to.",
        ("cdm rollback org.example:slice", "cdm rollback org.example:slice --to 1.0.0"),
    ),
    Described(
        "scale",
        "cdm.cli.scale:scale",
        "Have another number of instances of a version.\n\n"
        "Edits the version's blueprint, and leaves its other fields as they are. Exits with 1 where the version was "
        "replaced by another one.",
        ("cdm scale org.example:slice:1.0.0 5 --wait",),
    ),
    Described(
        "restart",
        "cdm.cli.scale:restart",
        "Replace every instance of a version by a new one.\n\n"
        "Writes the time into the field `restarted` of its blueprint. The instances are replaced one after another, or "
        "as the blueprint's `rollout` says. Exits with 1 where the version was replaced by another one.",
        ("cdm restart org.example:slice:1.0.0",),
    ),
    Described(
        "rebalance",
        "cdm.cli.rebalance:rebalance",
        "Have healthy instances moved to where they would be placed today.\n\n"
        "Without ARTIFACT that concerns every version with instances. Writes the time into the field `rebalanced` of "
        "the blueprints whose instances are not placed best; the leader moves one instance of each at a time: it "
        "places one, waits until it is healthy, and takes the other away. Exits with 3 where it was not over in time, "
        "and with 4 where a blueprint was written by others meanwhile.",
        ("cdm rebalance --plan", "cdm rebalance org.example:slice:1.0.0 --wait"),
    ),
)

SHOWING = (
    Described(
        "status",
        "cdm.cli.status:status",
        "Show what is wrong, and blueprints, nodes and slices.\n\n"
        "What is wrong comes first. Versions that were replaced or taken back are counted, and so are nodes and "
        "slices, where there are many that have nothing to tell; --all lists them. A version, a service or a node "
        "shows only what concerns it.\n\n"
        "All is well where somebody leads, every blueprint is Ready or was replaced, no node is lost, and every key "
        "can be read. Exits with 3 where nobody leads; with --check and --wait, where not all is well. With several "
        "regions each is shown, also where another cannot be read; then the code is 1, or 5 where it is denied.",
        (
            "cdm status",
            "cdm status org.example:slice --watch",
            "cdm status --node node-2 --state FAILED",
            "cdm status --wait --timeout 5m",
            "cdm status --check || mail -s trouble ops@example.org",
            "cdm status --region east --region west",
        ),
    ),
    Described(
        "explain",
        "cdm.cli.explain:explain",
        "Show why instances are where they are, and why others are nowhere.\n\n"
        "Of a version it shows for every node whether it takes one more instance, or all that keeps it out: rules, "
        "capacity, cordon, drain, silence; and which nodes a single thing keeps out. Of a slice it shows since when "
        "it is what it is, by which blueprint, which rules hold, what happened to it before, and what its program "
        "wrote last, if it ended. Exits with 1 where there is no such version or slice.",
        ("cdm explain org.example:slice:1.0.0", "cdm explain node-1/org.example:slice:1.0.0"),
    ),
    Described(
        "history",
        "cdm.cli.history:history",
        "Show what was written of a service's blueprints: when, by whom, what changed, what it led to, and what is in "
        "force.\n\n"
        "NATS keeps the last ten revisions of each version's blueprint. By whom is what cdm's commands declare; who "
        "writes without them is unknown.",
        ("cdm history org.example:slice",),
    ),
    Described(
        "events",
        "cdm.cli.events:events",
        "Show what happened: what the leader commanded and why, what became of it, and who wrote what.\n\n"
        "Shows what is kept, seven days at most, and ends; with --follow it goes on. By whom is what cdm's commands "
        "declare; who writes without them is unknown. Exits with 1 where no events are kept.",
        (
            "cdm events --kind blueprint --since 1h",
            "cdm events --artifact org.example:slice:1.0.0 --since 10m",
            "cdm events -f --node node-1",
        ),
    ),
    Described(
        "logs",
        "cdm.cli.logs:logs",
        "Show what the slices of an artifact or a service write, from all nodes.\n\n"
        "Lines come in the order of time. Where a program ended, and where it began again, a line says so. Exits with "
        "1 where there is no such output or node, or where a node did not answer.",
        (
            "cdm logs org.example:slice:1.0.0 -f",
            "cdm logs org.example:slice:1.0.0 --previous -t",
            "cdm logs org.example:slice",
            "cdm logs org.example:slice:1.0.0 --since 10m --node node-1",
        ),
    ),
    Described(
        "endpoints",
        "cdm.cli.endpoints:endpoints",
        "Show where a service can be sent requests: address, port, weight, node and version.\n\n"
        "Those are the ACTIVE instances of all versions of the service, with the weights of a rollout that goes on. "
        "With --watch a router can follow it: the list is printed at once, and whenever it changes. With --template or "
        "--caddy a proxy is told of it instead. Exits with 1 where there is no such service.",
        (
            "cdm endpoints org.example:slice",
            "cdm endpoints org.example:slice --watch --json",
            "cdm endpoints org.example:slice --template web.tmpl --out web.conf --exec 'nginx -s reload'",
        ),
    ),
)
