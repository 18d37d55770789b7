"""A process that has imported all of cdm, does nothing with it, and is forked for each command: `tests.harness.forked`.

It is started with the number of a socket. Each request there is what is to run, and comes with four descriptors: input,
output and error output of the command, and a pipe that is told its pid, and how it ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, NamedTuple

import cdm

TOLD = struct.Struct("=i")
"""How pids and exit codes are told."""
LONGEST = 2**20
"""Most bytes of a request."""
_LATER = (
    *("anyio._backends._asyncio", "concurrent.futures.thread", "cyclopts.help", "rich.live", "rich.panel"),
    *("rich.progress", "rich.table", "ruamel.yaml", "structlog"),
)
"""What commands import when they need it."""


class _Command(NamedTuple):
    """A command that runs."""

    pid: int
    told: int
    """The pipe."""


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork commands until nobody can ask for more; returns None then, and in each child what was asked for."""
    running: dict[int, _Command] = {}  # by a descriptor of the process, which can be read once it has ended
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                poll.unregister(descriptor)
                os.close(descriptor)
                _bury(running.pop(descriptor))
                continue
            request, descriptors, *_ = socket.recv_fds(control, LONGEST, 4)
            if not request:
                return None
            pid = os.fork()
            if pid == 0:
                control.close()
                for other, command in running.items():
                    os.close(other)
                    os.close(command.told)
                return _become(json.loads(request), descriptors)
            for each in descriptors[:3]:
                os.close(each)
            os.write(descriptors[3], TOLD.pack(pid))
            opened = os.pidfd_open(pid)
            running[opened] = _Command(pid, descriptors[3])
            poll.register(opened, select.POLLIN)


def _bury(command: _Command) -> None:
    _, status = os.waitpid(command.pid, 0)
    with suppress(BrokenPipeError):  # nobody may want to know
        os.write(command.told, TOLD.pack(os.waitstatus_to_exitcode(status)))
    os.close(command.told)


def _become(request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """Have the input, output, environment and folder of the command."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = ["cdm", *request["arguments"]]
    return request


def _import_all() -> None:
    for module in pkgutil.walk_packages(cdm.__path__, "cdm."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as missing:  # an extra that is not installed
                if (missing.name or "").startswith("cdm"):
                    raise
    for name in _LATER:
        importlib.import_module(name)


def main() -> None:
    """Serve, or run what was asked for."""
    _import_all()
    gc.collect()
    gc.freeze()
    if serve(socket.socket(fileno=int(sys.argv[1]))) is not None:
        importlib.import_module("cdm.cli").main()


if __name__ == "__main__":
    main()
