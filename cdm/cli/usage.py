"""What is wrong with how a command was typed, in the words that cdm has for everything else."""

from __future__ import annotations

import re
from enum import Enum
from itertools import pairwise
from typing import Any, get_args

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from cdm.cli.known import nearest
from cdm.errors import CdmError, UsageError

_AT_LEAST = re.compile(r"Must be >= (\S+)\.")
_AT_MOST = re.compile(r"Must be <= (\S+)\.")
_KINDS = {int: "a whole number", float: "a number"}


def usage_error(error: CycloptsError) -> UsageError:
    """Say it in a line, with the command whose help tells more."""
    chain = " ".join(("cdm", *(error.command_chain or ())))
    match error:
        case UnknownCommandError():
            what, *_ = error.unused_tokens or ("",)
            why = f"there is no command {what!r}{nearest(what, _commands(error.app))}"
            if what.startswith("-"):
                why = f"{what.partition('=')[0]} goes behind the command, as in `{_put_right(error, chain)}`"
            return UsageError(f"{why}; see `{chain} --help`")
        case UnknownOptionError():
            what = error.token.keyword or error.token.value
            names = [name for each in error.argument_collection for name in each.names if name.startswith("--")]
            return UsageError(f"there is no option {what}{nearest(what, names)}; see `{chain} --help`")
        case UnusedCliTokensError():
            what, *_ = error.unused_tokens or ("",)
            why = f"{what!r} is one argument too many"
            if what in _commands(error.app):
                why, chain = f"options go behind the command, `{chain} {what}`", f"{chain} {what}"
            return UsageError(f"{why}; see `{chain} --help`")
        case MissingArgumentError():
            what = error.keyword or _name(error)
            return UsageError(
                f"{what} {'needs a value' if what.startswith('-') else 'is missing'}; see `{chain} --help`"
            )
        case RepeatArgumentError():
            return UsageError(f"{error.token.keyword} is given twice")
        case CoercionError():
            return UsageError(_unreadable(error))
        case ValidationError():
            least = _AT_LEAST.fullmatch(error.exception_message)
            most = _AT_MOST.fullmatch(error.exception_message)
            why = f"must be at least {least[1]}" if least else error.exception_message
            why = f"must be at most {int(most[1]):,}" if most else why
            return UsageError(f"{_name(error)}: {_typed(error)!r}: {why}")
    error.verbose = False
    return UsageError(str(error))


def _commands(app: App | None) -> list[str]:
    return [] if app is None else [name for name in app if not name.startswith("-")]


def _put_right(error: UnknownCommandError, chain: str) -> str:
    """What was meant where an option stands before the command: what is typed behind it may be a secret."""
    tokens, commands = [*(error.unused_tokens or ())], _commands(error.app)
    found = [(last, each) for last, each in pairwise(tokens) if each in commands]
    # The value of an option may be called like a command.
    command = next((each for last, each in found if not last.startswith("-")), found[0][1] if found else "COMMAND")
    option = tokens[0].partition("=")[0]
    return " ".join((chain, command, option, *(["URL"] if option in ("-s", "--server") else [])))


def _unreadable(error: CoercionError) -> str:
    named = error.token is not None and error.token.keyword is not None
    if error.msg is not None:
        return f"{_name(error)}: {error.msg}" if named else str(error.msg)
    if isinstance(cause := error.__cause__ or error.__context__, CdmError):
        return str(cause)  # what a converter says of one of several values
    kind: Any = error.target_type
    if type(None) in get_args(kind):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if kind is bool:
        return f"{_name(error)} takes no value"
    choices = [each.value for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else get_args(kind)
    wanted = f"one of {', '.join(map(str, choices))}" if choices else _KINDS.get(kind, f"a {kind}")
    return f"{_name(error)}: {_typed(error)!r} is not {wanted}"


def _name(error: CycloptsError) -> str:
    """The parameter, as it was typed: an option, or the variable that it comes from, or an argument's name."""
    argument = error.argument
    if argument is None:
        return ""
    keyword = next((token.keyword for token in argument.tokens if token.keyword), None)
    return keyword or argument.name


def _typed(error: CycloptsError) -> str:
    """The value, as it was typed."""
    token = getattr(error, "token", None) or next(iter(error.argument.tokens if error.argument else ()), None)
    return str(token.value) if token is not None else ""
