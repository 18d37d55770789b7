"""The standard streams: of a process that was started without them, or whose output nobody reads any more."""

from __future__ import annotations

import os
import sys

_STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}


def open_missing() -> None:
    """Open /dev/null on those of the descriptors 0, 1 and 2 that are closed; to be called before anything is opened.

    What is opened later would get their numbers: a socket would be what a program that is started inherits as its
    output, and what somebody writes to "stderr" would go to NATS.
    """
    for number, name in _STREAMS.items():
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def write_out(data: bytes) -> None:
    """Write to standard output, past Python's buffer."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def discard_output() -> None:
    """Nobody reads the output any more: what is left of it in a buffer has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
