"""The commands as the ``nats`` tool wants to know them, so that it has them as its own: ``nats cdm status``.

`nats plugins register cdm /path/to/cdm` asks for them once, with ``--fisk-introspect``. It then parses by them, and
runs ``cdm`` with what it parsed.
"""

from __future__ import annotations

from typing import Any

from cdm.cli.pages import CommandPage, Typed, page
from cdm.cli.screen import print_json
from cdm.version import VERSION


def introspect() -> int:
    """Print the commands as JSON."""
    whole = page()
    print_json(
        {
            "name": "cdm",
            "help": "\n\n".join((whole.title, *whole.text)),
            "version": VERSION,
            "commands": [_command(each) for each in whole.commands],
        }
    )
    return 0


def _command(of: CommandPage) -> dict[str, Any]:
    # A command of that tool does something itself, or has others below it. `cdm node` does both: it is no command to be
    # run by another tool, and `nats cdm node` has only what is below it.
    own: dict[str, Any] = {"args": [*map(_argument, of.arguments)], "flags": [*map(_flag, of.options)]}
    return {
        "name": of.path[-1],
        "help": of.title,
        **({"help_long": "\n\n".join(of.text)} if of.text else {}),
        **({"commands": [*map(_command, of.commands)]} if of.commands else own),
    }


def _argument(given: Typed) -> dict[str, Any]:
    return {"name": given.names[0].lower(), "help": given.help, "required": given.required, "cumulative": given.several}


def _flag(given: Typed) -> dict[str, Any]:
    long = next(name for name in given.names if name.startswith("--"))
    short = next((name[1:] for name in given.names if not name.startswith("--")), "")
    return {
        "name": long.removeprefix("--"),
        "help": given.help,
        **({"short": ord(short)} if short else {}),
        **({"place_holder": given.value} if given.value else {}),
        "boolean": not given.value,
        "cumulative": given.several and bool(given.value),
    }
