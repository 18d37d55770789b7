"""The command line: ``cdm``. Which commands there are, and what is said of them, is in `cdm.cli.commands`."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

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
    gc.set_threshold(GARBAGE_THRESHOLD)
    code = run(sys.argv[1:] if arguments is None else arguments)
    # The process ends: looking through all that was imported once more takes longer than many a command.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    from cyclopts import CycloptsError  # noqa: PLC0415  # slow to import

    from cdm.cli.commands import app_of  # noqa: PLC0415  # likewise

    try:
        result: Any = app_of(arguments)(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        from cdm.cli.usage import usage_error  # noqa: PLC0415  # rarely needed

        return _failed(usage_error(error))
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
    return result if isinstance(result, int) else Exit.OK


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
