"""How a program ended, in words that name the limit which ended it, or may have.

A program that gets no more memory often says nothing of it, and what the kernel kills cannot.
"""

from __future__ import annotations

import signal

from cdm.model.limits import Limits
from cdm.model.quantity import memory_shown
from cdm.runtimes.keeper.cgroup import out_of_memory

_SHORT_OF_MEMORY = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTRAP}
)
"""What ends programs that cannot have the memory that they ask for, beside their own exit status."""


def told_of_ending(status: int, limits: Limits, group: str | None, *, asked: bool = False) -> str:
    """How a program ended, for people.

    Args:
        status: its exit status, or minus the number of the signal that ended it.
        limits: what was set for it.
        group: its cgroup, if it has one, which must be there still.
        asked: whether it was being stopped.
    """
    plain, number = _plain(status), -status
    if status == 0 or asked:
        return plain
    short = out_of_memory(group) if group is not None else None
    if short is not None:
        memory = f"over its memory limit of {memory_shown(limits.memory)}" if limits.memory is not None else ""
        why = memory if short and memory else "the machine, or all that the node may use of it, was out of memory"
        return f"killed: {why}" if number == signal.SIGKILL else f"{plain} (a process of it was killed: {why})"
    if number == signal.SIGXCPU and limits.cpu_seconds is not None:
        return f"{plain} (its limit is {limits.cpu_seconds} s of CPU time)"
    if number == signal.SIGXFSZ and limits.file_size is not None:
        return f"{plain} (the largest file that it may write has {limits.file_size:,} bytes)"
    if limits.memory is not None and (status > 0 or number in _SHORT_OF_MEMORY):
        return f"{plain} (its memory limit is {memory_shown(limits.memory)})"
    return plain


def _plain(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
