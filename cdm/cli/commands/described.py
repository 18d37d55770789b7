"""What the commands' texts are made of."""

from __future__ import annotations

from typing import NamedTuple

EXITS = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 unhealthy (nobody leads, a node does not answer, a rollout "
    "was taken back or failed), 4 conflict (the node id is taken, the artifact exists, the blueprint was written "
    "by others), 5 denied (credentials or a permission)."
)
CONNECTION = "connection"
"""What `cdm help` tells about besides commands."""
SEE_ALSO = f"Options of the connection to NATS: `cdm help {CONNECTION}`."
_EXAMPLES = "Examples:"


class Described(NamedTuple):
    """A command, and what is said of it."""

    name: str
    where: str
    """The module, and what of it is called, ``cdm.cli.status:status``; imported when the command runs."""
    help: str
    """A line, and, behind an empty one, more."""
    examples: tuple[str, ...] = ()
    """Command lines; empty for one with an `App` of its own, which has them itself."""


def examples(*commands: str) -> str:
    """What stands below a command's help: these command lines, and what holds for all commands."""
    return "\n".join((_EXAMPLES, *(f"  {each}" for each in commands), "", SEE_ALSO, "", EXITS))


def examples_in(epilogue: str) -> list[str]:
    """The command lines in what `examples` made."""
    block, _, _ = epilogue.partition("\n\n")
    title, *lines = block.splitlines()
    return [line.strip() for line in lines] if title == _EXAMPLES else []
