"""A node's options are read aside: in a process that is forked for that, and ends.

What reads options is a tenth of what a node would have in memory for as long as it runs, and is needed for a moment.
So it is imported in another process, which hands over what it read, while this one imports what a node needs. What
there is to print instead, a help or what is wrong, that process prints, and this one ends with its code.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cdm.errors import CdmError

if TYPE_CHECKING:
    from cdm.cli.chosen import Chosen

ANEW = signal.SIGHUP
"""Tells a node to start anew."""
_SHOWN = frozenset({"--help", "-h", "--version"})


def runs_a_node(words: Sequence[str]) -> bool:
    """Whether a command line is to run a node, as far as that can be told without reading it."""
    return words[:1] == ["node"] and all(word.startswith("-") for word in words[1:2]) and _SHOWN.isdisjoint(words)


class OptionsReader:
    """In the process that reads the options: the way to the other."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, chosen: Chosen) -> int:
        """Hand over what they come to; returns the exit code.

        Raises:
            BrokenPipeError: the other process has ended.
        """
        import pickle  # noqa: PLC0415  # other commands do without

        with os.fdopen(self._pipe, "wb") as pipe:
            pickle.dump(chosen, pipe)
        return 0


class NodeRunner:
    """In the process that is to run the node: what comes from the other."""

    def __init__(self, reader: int, pipe: int) -> None:
        self._reader = reader
        self._pipe = pipe

    def hear(self) -> Chosen | int:
        """Wait for the end of the other process; returns what the options come to, or the code to end with.

        Raises:
            CdmError: a signal ended it.
        """
        with os.fdopen(self._pipe, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(self._reader, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            raise CdmError(f"the options were not read: {signal.Signals(-code).name} ended the process that does that")
        if code or not told:
            return code
        import pickle  # noqa: PLC0415  # other commands do without

        chosen: Chosen = pickle.loads(told)  # noqa: S301  # from a process of this very program
        return chosen


def parted() -> OptionsReader | NodeRunner:
    """Become two processes, one to read the options and one to run the node: to be called where there is one thread.

    Raises:
        OSError: there may be no more processes.
        KeyboardInterrupt: Ctrl-C came meanwhile.
    """
    ours, theirs = os.pipe()
    try:
        with _interrupts_held_back():
            pid = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    os.close(ours if pid == 0 else theirs)
    return OptionsReader(theirs) if pid == 0 else NodeRunner(pid, ours)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Have Ctrl-C wait for the end of the block, in both processes where it forks.

    What libraries have Python do at a fork (logging has it see to its locks) loses any exception.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
