"""The command line: ``cdm``. Which commands there are, and what is said of them, is in `cdm.cli.commands`."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from cdm.cli import aside
from cdm.cli.screen import complain
from cdm.cli.streams import discard_output, open_missing
from cdm.errors import (
    AccessDenied,
    AddressTaken,
    CdmError,
    Conflict,
    FolderTaken,
    ModelError,
    NodeIdTaken,
    UsageError,
    innermost,
)

if TYPE_CHECKING:
    from cdm.cli.chosen import Chosen

GARBAGE_THRESHOLD = 100_000
"""New objects after which Python's garbage collector looks at them, instead of 700. What a command imports is kept, and
most commands end before there are so many: looking through it took a twentieth of the time."""


class Exit(IntEnum):
    """Exit codes of the process."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    CONFLICT = 4
    DENIED = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    open_missing()
    _hear_of_children()
    gc.set_threshold(GARBAGE_THRESHOLD)
    words = sys.argv[1:] if arguments is None else arguments
    code = _code_of(lambda: _run_node(words)) if aside.runs_a_node(words) else run(words)
    # The process ends: looking through all that was imported once more takes longer than many a command.
    gc.freeze()
    sys.exit(code)


def _hear_of_children() -> None:
    """Have the system keep how a process ends that this one starts, until it is asked for.

    Where SIGCHLD is ignored, it forgets that; and a program is born with what its parent ignores.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _run_node(words: Sequence[str]) -> int:
    """Run a node, whose options another process reads; returns the exit code, in each of the two processes.

    Raises:
        CdmError: it cannot run as it is to.
    """
    signal.signal(aside.ANEW, signal.SIG_IGN)  # it is starting: a reload says nothing new to it, and must not end it
    import cdm.cli.chosen  # noqa: F401, PLC0415  # both need it: it is imported once

    try:
        part = aside.parted()
    except OSError:  # there may be no more processes: it reads them itself
        return _obey(words, _start)
    if isinstance(part, aside.OptionsReader):
        return _obey(words, part.tell)
    from cdm.cli.node_start import start  # noqa: PLC0415  # while the other process reads the options

    heard = part.hear()
    return heard if isinstance(heard, int) else start(heard)


def _start(chosen: Chosen) -> int:
    from cdm.cli.node_start import start  # noqa: PLC0415  # slow to import

    return start(chosen)


def run(arguments: Sequence[str], start: Callable[[Chosen], int] = _start) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: what stands behind the command's name.
        start: what is done where a node is to run.
    """
    return _code_of(lambda: _obey(arguments, start))


def _obey(arguments: Sequence[str], start: Callable[[Chosen], int]) -> int:
    from cyclopts import CycloptsError  # noqa: PLC0415  # slow to import

    from cdm.cli.commands import app_of  # noqa: PLC0415  # likewise

    try:
        result: int | Chosen | None = app_of(arguments)(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        from cdm.cli.usage import usage_error  # noqa: PLC0415  # rarely needed

        raise usage_error(error) from None
    match result:
        case None:
            return Exit.OK
        case int():
            return result
        case _:
            return start(result)


def _code_of(work: Callable[[], int]) -> int:
    """Do something; returns its exit code, also where it fails, which is told."""
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # of the library: after Ctrl-C, and where nobody reads the help that is printed
        return 130 if end.code == 130 else _unread()
    except BrokenPipeError:
        return _unread()
    except OSError as problem:
        return _failed(problem)
    except BaseExceptionGroup as group:
        first = first_error(group)
        if first is None:
            raise
        return _unread() if isinstance(first, BrokenPipeError) else _failed(first)
    except CdmError as error:
        return _failed(error)
    return code


def _failed(error: CdmError | OSError) -> int:
    complain(str(error))
    return exit_code(error)


def exit_code(error: CdmError | OSError) -> Exit:
    """The exit code of a command that fails with this error."""
    match error:
        case NodeIdTaken() | FolderTaken() | AddressTaken() | Conflict():
            return Exit.CONFLICT
        case UsageError() | ModelError():
            return Exit.USAGE
        case AccessDenied():
            return Exit.DENIED
        case _:
            return Exit.FAILED


def _unread() -> int:
    """Whoever read the output has seen enough: it ends quietly, as what the signal for that ends."""
    discard_output()
    return 128 + signal.SIGPIPE


def first_error(group: BaseExceptionGroup[BaseException]) -> CdmError | OSError | None:
    """The first error in a group of them, if all are cdm's own, or the system's."""
    known, others = group.split((CdmError, OSError))
    error = innermost(known) if known is not None and others is None else None
    return error if isinstance(error, (CdmError, OSError)) else None
