"""The process of ``cdm node``: what signals tell it, and the process that takes its place."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NoReturn

import anyio
import anyio.abc

from cdm.cli.aside import ANEW
from cdm.cli.signals import open_signals
from cdm.errors import CdmError
from cdm.log import Log
from cdm.node.folder import chosen_folder
from cdm.node.kept import end_left
from cdm.node.node import Node, NodeSettings
from cdm.node.node import node as make_node
from cdm.node.notify import notify, reloading

if TYPE_CHECKING:
    from cdm.http.server import HttpServer

log = Log("cdm.node")

Tracing = Callable[[NodeSettings], AbstractAsyncContextManager[NodeSettings]]
"""Sends traces of a node that has the settings of a block, for its time."""
GARBAGE_THRESHOLD = 20_000
"""New objects after which a node's process looks for garbage: less often than Python, for most of what a mirror takes
in is kept; more often than a command that ends, for it has others wait meanwhile."""
LEAVE = signal.SIGUSR1
"""Tells a node to leave, although its slices are to outlive its process."""


class _Told:
    """What a node's process was told by signals."""

    def __init__(self) -> None:
        self.stop = anyio.Event()
        self.at_once = anyio.Event()
        self.first: signal.Signals | None = None
        self.node: Node | None = None
        """None: there is none yet."""

    def stops(self, number: signal.Signals) -> None:
        """The first signal counts."""
        self.first = number
        if number is LEAVE and self.node is not None:
            self.node.leave()
        self.stop.set()

    def leaves(self, settings: NodeSettings) -> bool:
        """Whether that was to leave, so that nothing of the node is to run on."""
        return self.first is LEAVE or (self.first is not None and not settings.keep)


async def run(settings: NodeSettings, server: HttpServer | None, tracing: Tracing) -> bool:
    """Run the node; returns whether another process is to take this one's place.

    Args:
        settings: the node's.
        server: what tells of it over HTTP.
        tracing: what sends its traces.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    told = _Told()
    async with anyio.create_task_group() as tasks:
        if server is not None:
            tasks.start_soon(server.run_beside)
        with anyio.CancelScope() as starting:
            await tasks.start(_stop_on_signal, told, starting)
            async with tracing(settings) as watched, make_node(watched) as node:
                told.node = node
                tasks.start_soon(_hurry, node, told.at_once)
                if server is not None:
                    tasks.start_soon(server.follow_node, node)
                starting.shield = True
                await node.run(told.stop)
        if told.leaves(settings):
            with anyio.CancelScope() as ending:
                tasks.start_soon(_cancel, ending, told.at_once)
                await _end_left(settings)
        tasks.cancel_scope.cancel()
    return settings.keep and told.first is ANEW


async def _end_left(settings: NodeSettings) -> None:
    """Stop what an earlier process left; there is nothing of it unless this one was told to leave while it started."""
    try:
        ended = await end_left(chosen_folder(settings.folder, settings.prefix, settings.node), settings.node)
    except CdmError as error:
        log.debug("nothing is stopped that an earlier process left", reason=str(error))
    else:
        for problem in ended.problems:
            log.error("what an earlier process left is not all stopped", reason=problem)
        if (ended.slices or ended.strays) and not ended.problems:
            log.info("what an earlier process left is stopped", slices=ended.slices, strays=ended.strays)


async def _cancel(scope: anyio.CancelScope, at_once: anyio.Event) -> None:
    await at_once.wait()
    scope.cancel()


async def _hurry(node: Node, at_once: anyio.Event) -> None:
    await at_once.wait()
    node.hurry()


async def _stop_on_signal(told: _Told, starting: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Stop a running node in good order, or at once at the second signal; one that still waits for NATS just ends."""
    with open_signals(signal.SIGTERM, signal.SIGINT, LEAVE, ANEW) as signals:
        task_status.started()
        async for number in signals:
            if told.stop.is_set():
                log.warning("stopping at once", signal=signal.Signals(number).name)
                told.at_once.set()
                starting.shield = False
                starting.cancel()
            else:
                told.stops(number)
            if not starting.shield:
                starting.cancel()


def take_our_place() -> NoReturn:
    """Become another process of this node, of the version that is installed by now, with the pid of this one."""
    notify(reloading())
    log.info("starting anew")
    signal.signal(ANEW, signal.SIG_IGN)  # which the next process inherits, until it can obey
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # no shell
