"""The keeper's tie to its node: to the process that started it and, where slices outlive that, to the next one.

Without `Outlive` the keeper is over when the node's end of the socket closes. With it the keeper then waits at its
`Door`, and its runs have until the node counts as dead: so long after the last heartbeat that NATS accepted.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable, Iterable

from cdm import clock
from cdm.runtimes.keeper.door import Door, peer
from cdm.runtimes.keeper.packets import PacketQueue
from cdm.runtimes.keeper.protocol import (
    MAX_PACKET,
    Command,
    EndAll,
    Event,
    Heard,
    Lapse,
    NotKept,
    Outlive,
    decode_command,
    encode,
)
from cdm.runtimes.keeper.runs import Run

BURST = 64
"""Commands that are read at once."""
NEVER = float("inf")


class NodeTie:
    """One node at a time, or none for a while.

    Args:
        selector: the keeper's; what is registered there is called.
        folder: the runtime's own.
        obey: called with commands that are about runs.
        greet: what a process is told first.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        folder: str,
        obey: Callable[[Command], None],
        greet: Callable[[float], Iterable[Event]],
    ) -> None:
        self._selector = selector
        self._folder = folder
        self._obey = obey
        self._greet = greet
        self._node: socket.socket | None = None
        self._packets: PacketQueue | None = None
        self._process: int | None = None
        """Tells when the node's process is dead."""
        self._door: Door | None = None
        """None: runs do not outlive their node."""
        self._outlives = 0.0
        self._heard = -NEVER
        """When the last heartbeat was sent that NATS accepted."""
        self.over = False
        """Whether the keeper has no node any more, and will not have one."""

    def take(self, node: socket.socket, pid: int) -> None:
        """From now on this is the node."""
        self._node, self._packets = node, PacketQueue(node)
        self._selector.register(node, selectors.EVENT_READ, self._on_readable)
        with contextlib.suppress(OSError):
            self._process = os.pidfd_open(pid)
            self._selector.register(self._process, selectors.EVENT_READ, self._on_dead)
        for event in self._greet(self._heard):
            self.tell(event)

    def tell(self, event: Event) -> None:
        """Never waits: a node that is halted must not keep the keeper from stopping runs. Without a node it is lost."""
        if self._packets is not None:
            self._packets.send(encode(event))
            self._watch_node()

    def lapse(self, run: Run) -> Lapse | None:
        """When a run is to be stopped by the keeper itself; None: not at all."""
        if run.lapse is None and self._node is None:
            return Lapse(self._outlives, run.signal, run.grace)
        return run.lapse

    @property
    def is_alone(self) -> bool:
        """Whether there is no node at present, so that every run has a time by which it is to be stopped."""
        return self._node is None

    @property
    def silent(self) -> float:
        """Seconds since the last heartbeat was sent that NATS accepted."""
        return clock.now() - self._heard

    def look(self, runs: int) -> None:
        """Without a node: see whether there still is anything to wait for.

        Args:
            runs: how many there are.
        """
        if self._node is None and not self.over:
            self.over = not runs or self._door is None or not self._door.stands

    def catch_up(self) -> None:
        """Hear all that was said by now, also by another process that waits at the door: we may have stood still."""
        while self._on_readable():
            pass
        if self._node is None and not self.over:
            self._on_knock()

    def close(self) -> None:
        """Nobody is waited for any more."""
        if self._door is not None:
            self._door.close()

    def _watch_node(self) -> None:
        if self._node is not None and self._packets is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._packets.waiting else 0)
            if self._selector.get_key(self._node).events != events:
                self._selector.modify(self._node, events, self._on_readable)

    def _on_dead(self) -> None:
        """Its process is dead, though others may hold its end of the socket. What it said before counts."""
        while self._on_readable():
            pass
        self._lose()

    def _on_readable(self) -> bool:
        """Obey what there is; returns whether there may be more."""
        if self._packets is not None:
            self._packets.flush()
            self._watch_node()
        for _ in range(BURST):
            if self._node is None or self.over:
                return False
            try:
                packet = self._node.recv(MAX_PACKET)
            except BlockingIOError:
                return False
            except ConnectionError:  # it closed the socket with events unread; what it sent before comes after this
                continue
            if not packet:
                self._lose()
                return False
            match decode_command(packet):
                case Heard(at):
                    self._heard = max(self._heard, at)
                case Outlive(seconds):
                    self._outlive(seconds)
                case EndAll():
                    self.over = True
                case command:
                    self._obey(command)
        return True

    def _outlive(self, seconds: float | None) -> None:
        self._outlives = seconds or 0.0
        if seconds is None:
            self.close()
            self._door = None
        elif self._door is None:
            try:
                self._door = Door(self._folder)
            except OSError as error:
                self.tell(NotKept(str(error)))

    def _lose(self) -> None:
        if self._node is None:
            return
        self._selector.unregister(self._node)
        self._node.close()
        self._node = self._packets = None
        if self._process is not None:
            self._selector.unregister(self._process)
            os.close(self._process)
            self._process = None
        if self._door is None:
            self.over = True
        elif not self.over:
            self._selector.register(self._door.socket, selectors.EVENT_READ, self._on_knock)

    def _on_knock(self) -> None:
        node = self._door.admit() if self._door is not None else None
        if node is not None and self._door is not None:
            self._selector.unregister(self._door.socket)
            self.take(node, peer(node)[0])
