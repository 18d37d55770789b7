"""``cdm completion``: has a shell complete what is typed."""

from __future__ import annotations

from typing import Literal

from cdm.cli.commands import whole_app

_ZSH = """
if [ "$funcstack[1]" = "_cdm" ]; then
  _cyclopts_cdm "$@"
else
  compdef _cyclopts_cdm cdm
fi
"""
"""The library's script defines a function, after which it would have the file be named."""


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a script that has a shell complete commands and options.

    Parameters
    ----------
    shell
        Which shell.
    """
    print(f"{whole_app().generate_completion(shell=shell)}{_ZSH if shell == 'zsh' else ''}", end="")
    return 0
