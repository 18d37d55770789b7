"""The command line's commands, with what help, man pages, shells and the ``nats`` tool say of them: one source for all.

They are registered by name, so that each one's imports are paid for only when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from cyclopts import App, Group

from cdm.cli.commands.cluster import NODES, SETTING_UP
from cdm.cli.commands.described import Described, examples
from cdm.cli.commands.helping import HELPING, INTROSPECTING
from cdm.cli.commands.services import DEPLOYING, SHOWING
from cdm.cli.screen import for_models
from cdm.version import VERSION

GROUPS = {
    "Setting up": SETTING_UP,
    "Deploying": DEPLOYING,
    "Showing": SHOWING,
    "Nodes": NODES,
    "Help": HELPING,
}
"""What there is, in the order of the help."""


def app_of(words: Sequence[str]) -> App:
    """The command line, so far as it takes to read these words: where they begin with a command, that one alone.

    To look through all others takes longer than many a command.
    """
    name = words[0] if words else ""
    found = {title: [each for each in commands if each.name == name] for title, commands in GROUPS.items()}
    return _app(found) if any(found.values()) else whole_app()


@cache
def whole_app() -> App:
    """The command line with all commands."""
    made = _app(GROUPS)
    _add(made, INTROSPECTING, Group("Unseen", show=False))
    return made


def _app(groups: Mapping[str, Sequence[Described]]) -> App:
    made = App(
        name="cdm",
        help=(
            "ClusterDeploymentManager for NATS: publish a blueprint, and its instances run, spread over the nodes.\n\n"
            "An artifact, group:name:version, is a program that was pushed. A blueprint says how many instances of it "
            "are to run: `nats kv put blueprints GROUP/NAME/VERSION 3`. A slice is one instance on one node."
        ),
        version=VERSION,
        version_flags=["--version"],
        # Markdown's parser takes longer to import than everything else.
        help_format="plaintext",
        version_format="plaintext",
        help_formatter="plain" if for_models() else None,
        help_epilogue=examples("cdm init", "cdm node", "cdm status", "cdm help connection"),
    )
    group = Group("")
    for number, (title, commands) in enumerate(groups.items(), 1):
        group = Group(title, sort_key=number)
        for each in commands:
            _add(made, each, group)
    made["--help"].group = made["--version"].group = group
    return made


def _add(made: App, command: Described, group: Group) -> None:
    epilogue = {"help_epilogue": examples(*command.examples)} if command.examples else {}
    made.command(command.where, name=command.name, help=command.help, group=group, **epilogue)
