"""``cdm help``: what a command does, and the options of the connection."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from cdm.cli.commands import whole_app
from cdm.cli.commands.described import CONNECTION, examples
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE
from cdm.cli.screen import for_models
from cdm.errors import UsageError


def help_on(
    words: Annotated[tuple[str, ...], Parameter(name="COMMAND", negative="", show_default=False)] = (),
    /,
) -> int:
    """Show what a command does.

    Parameters
    ----------
    words
        A command, as `rollout abort`; or `connection`: the options that each command takes which connects.
    """
    if words == (CONNECTION,):
        connection_help().help_print([])
    else:
        app = whole_app()
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
