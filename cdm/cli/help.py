"""``cdm help``: what a command does, the options of the connection, and man pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from cdm.cli.commands import app
from cdm.cli.commands.described import CONNECTION, examples
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE
from cdm.cli.screen import for_models
from cdm.errors import UsageError


def help_on(
    words: Annotated[tuple[str, ...], Parameter(name="COMMAND", negative="", show_default=False)] = (),
    /,
    *,
    man: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
) -> int:
    """Show what a command does.

    Parameters
    ----------
    words
        A command, as `rollout abort`; or `connection`: the options that each command takes which connects.
    man
        Write a man page for each command into this folder, which is made where it is missing.
    """
    if man is not None:
        from cdm.cli.manual import write_pages  # noqa: PLC0415  # rarely needed

        if words:
            raise UsageError("--man writes the pages of all commands: leave COMMAND out")
        for path in write_pages(man):
            print(path)
    elif words == (CONNECTION,):
        connection_help().help_print([])
    else:
        chain, _, rest = app.parse_commands(words)
        if rest:
            # As if it had been typed so, for the same words about it.
            app.parse_args(words, exit_on_error=False, print_error=False)
            raise UsageError(f"{' '.join(words)!r} is no command; see `cdm help`")
        app.help_print(chain)
    return 0


def connection_help() -> App:
    """The options of the connection, as those of a command that has no others."""
    made = App(
        name="cdm COMMAND",
        help="Every command that connects to NATS takes these options. Each is also a variable.",
        help_flags=[],
        version_flags=[],
        help_format="plaintext",
        help_formatter="plain" if for_models() else None,
        help_epilogue=examples("cdm status --context production", "cdm nodes --server nats://10.0.0.1:4222"),
    )
    made.default(_connection)
    return made


def _connection(*, connection: Annotated[ConnectionOptions, Parameter(group="Connection")] = HERE) -> None:
    """Take the options."""
