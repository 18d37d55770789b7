"""The keeper: a small process beside the node, which starts, reads, stops and reaps the programs of its slices.

It exists so that no program outlives its node. A program lives only while the keeper does (PR_SET_PDEATHSIG), and the
keeper only while the node does: when the node's end of their socket closes, for whatever reason, it sends SIGKILL to
all that it started and to all that descend from it, and ends. It is the parent of every program, and of every orphan
that a program leaves (PR_SET_CHILD_SUBREAPER), so that nothing escapes from its sight and no zombie stays. It has one
thread, so that forking is safe, and keeps output and its cost away from the node's event loop. What belongs to a run
says `cdm.runtimes.keeper.runs`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from cdm import clock
from cdm.output.files import Scribe
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups
from cdm.runtimes.keeper.runs import Kin
from cdm.runtimes.keeper.packets import Outbox
from cdm.runtimes.keeper.processes import Process, Record, boot, census, descendants, send
from cdm.runtimes.keeper.protocol import (
    MAX_PACKET,
    Event,
    Exited,
    Gone,
    Heard,
    Lapsed,
    Refused,
    Said,
    Spawn,
    Started,
    Stop,
    decode_command,
    encode,
)
from cdm.runtimes.keeper.spawn import adopt_orphans, launch, problem_of, raise_open_files, reserve

CHUNK = 64 * 1024
"""Bytes read from one pipe before the others have their turn."""
DRAIN = 16
"""Chunks that are read of a pipe once nobody is left to write to it: it holds fewer."""
BURST = 64
"""Commands that are taken at once."""
INSIST = 0.05
"""Seconds between SIGKILLs to what is still there: something may have been forked meanwhile."""
KILL_PATIENCE = 5.0
"""Seconds after the first SIGKILL when a run is reported as not to be stopped."""
LOOK = 1.0
"""Seconds between two looks whether a run has lapsed: nothing wakes us for it when the machine was suspended."""
RECORDS = "running"
"""Folder of the records of what runs."""


class Run:
    """One run, as the keeper sees it."""

    def __init__(self, spawn: Spawn, scribe: Scribe, group: Path | None) -> None:
        self.name = spawn.run
        self.lapse = spawn.lapse
        self.scribe = scribe
        self.group = group
        self.pid = 0
        self.reaped = False
        """Whether the program itself was; until then its pid, and its group's and session's number, are its own."""
        self.problem = -1
        """The pipe that tells whether exec succeeded."""
        self.streams: dict[int, str] = {}
        """Pipes that are open, and what they are."""
        self.said = False
        self.stopping = False
        self.signal: int | None = None
        """A stop signal that is still to be sent."""
        self.deadline = float("inf")
        """When SIGKILL is due next."""
        self.killed: float | None = None
        """When SIGKILL was sent first."""


class Keeper:
    """The keeper's one loop.

    Args:
        node: the socket to the node.
        folder: the runtime's own.
        token: tells the marks of this runtime's runs from those of others.
        cgroups: where runs are put; None: nowhere.
    """

    def __init__(self, node: socket.socket, folder: Path, token: str, cgroups: Cgroups | None) -> None:
        self._node = node
        self._outbox = Outbox(node)
        self._records = folder / RECORDS
        self._cgroups = cgroups
        self._boot = boot()
        self._files = raise_open_files()
        self._runs: dict[str, Run] = {}
        self._by_pid: dict[int, Run] = {}
        """By the pid of its program."""
        self._kin = Kin(token)
        self._selector = selectors.DefaultSelector()
        self._watch(node.fileno(), self._on_node)
        self._changed = False
        """Whether a child ended since it was last looked who lives."""
        self._again = float("inf")
        """When to look again, though nothing happened."""
        self._heard = float("-inf")
        """When the last heartbeat was sent that NATS took."""
        self._complained = False
        """Whether an error that cost output was told: one trace is enough."""
        self._over = False

    def run(self) -> None:
        """Serve the node until it is gone, then end everything."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(read, lambda: self._on_child(read))
        with contextlib.suppress(OSError):
            self._watch(os.pidfd_open(os.getppid()), self._on_node_dead)
        try:
            while not self._over:
                for key, _ in self._selector.select(self._wait()):
                    if key.fd in self._selector.get_map():  # not closed by one before it
                        key.data()
                self._reap()
                self._lapse()
                self._stop()
        finally:
            self._end()

    def _watch(self, descriptor: int, call: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def _unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _tell(self, event: Event) -> None:
        """Never waits: a node that is halted must not keep us from stopping what is to be stopped."""
        self._outbox.send(encode(event))
        self._watch_node()

    def _watch_node(self) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox.waiting else 0)
        if self._selector.get_key(self._node).events != wanted:
            self._selector.modify(self._node, wanted, self._on_node)

    def _wait(self) -> float | None:
        due = min((run.deadline for run in self._runs.values() if run.stopping), default=float("inf"))
        wait = min(due, self._again) - time.monotonic()
        if lapses := [run.lapse.after for run in self._runs.values() if run.lapse is not None and not run.stopping]:
            wait = min(wait, self._heard + min(lapses) - clock.now(), LOOK)
        return None if wait == float("inf") else max(wait, 0)

    # What the node says

    def _on_node_dead(self) -> None:
        self._over = True

    def _on_node(self) -> None:
        self._outbox.flush()
        self._watch_node()
        for _ in range(BURST):
            try:
                packet = self._node.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except ConnectionError:  # it did not read all that we said
                packet = b""
            if not packet:
                self._over = True
                return
            match decode_command(packet):
                case Spawn() as command:
                    self._spawn(command)
                case Stop(name, number, grace):
                    self._begin_stop(name, number, grace)
                case Heard(at):
                    self._heard = max(self._heard, at)

    def _spawn(self, spawn: Spawn) -> None:
        pipes: list[int] = []
        group: Path | None = None
        try:
            for _ in range(2):
                pipes += os.pipe()
            if self._cgroups is not None:
                group = self._cgroups.add(spawn.run, spawn.limits)
            run = Run(spawn, Scribe(Path(spawn.output), spawn.logs, spawn.line), group)
            grouped = frozenset() if self._cgroups is None else self._cgroups.controllers
            run.pid, run.problem = launch(spawn, pipes[1], pipes[3], self._files, group, grouped)
        except OSError as error:  # no process, no file descriptor, no disk
            for descriptor in pipes:
                os.close(descriptor)
            if group is not None:
                cgroup.remove(group)
            full = f"this node has no file descriptors left for one more program (RLIMIT_NOFILE {self._files[1]})"
            self._tell(Refused(spawn.run, full if error.errno == errno.EMFILE else str(error)))
            return
        self._runs[run.name] = self._by_pid[run.pid] = run
        self._kin.add(run.name, run.pid, group)
        os.close(pipes[1])
        os.close(pipes[3])
        for descriptor, stream in ((pipes[0], "out"), (pipes[2], "err")):
            os.set_blocking(descriptor, False)
            run.streams[descriptor] = stream
            self._watch(descriptor, partial(self._read, run, descriptor))
        self._watch(run.problem, lambda: self._on_exec(run))
        # Without its record a program is known by its mark still: a full disk is no reason not to run it.
        with contextlib.suppress(OSError), reserve():
            if process := self._kin.recognise(run.name, run.pid):
                Record(self._boot, run.pid, process.start).write(self._records / run.name)

    def _on_exec(self, run: Run) -> None:
        """The program runs, or could not be run."""
        data = os.read(run.problem, 4096)
        self._unwatch(run.problem)
        run.problem = -1
        if not data:
            self._tell(Started(run.name, run.pid))
            return
        problem = problem_of(data)
        self._tell(Refused(run.name, problem.text, problem.fatal))
        # The child is ending by itself: once it is reaped, nothing is left.
        run.stopping, run.deadline, run.signal = True, time.monotonic(), None

    def _begin_stop(self, name: str, number: int, grace: float) -> None:
        run = self._runs.get(name)
        if run is None:
            self._tell(Gone(name))
            return
        if not run.stopping:
            run.stopping, run.signal = True, number
        if run.problem >= 0:  # it is not the program yet, and would ignore a stop signal as we do
            grace = 0
        run.deadline = min(run.deadline, time.monotonic() + grace)
        self._changed = True  # it may have ended by itself

    # What the programs do

    def _read(self, run: Run, descriptor: int) -> bool:
        """Take a chunk of output; returns whether there may be more."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        stream = run.streams[descriptor]
        with self._losing_output():
            if data:
                run.scribe.feed(stream, data)
            else:
                run.scribe.end(stream)
        if not data:
            del run.streams[descriptor]
            self._unwatch(descriptor)
        if run.scribe.said and not run.said:
            run.said = True
            self._tell(Said(run.name))
        return bool(data)

    @contextlib.contextmanager
    def _losing_output(self) -> Iterator[None]:
        """Whatever is wrong with one slice's output, it is lost, and no more than that: all slices hang on us."""
        try:
            yield
        except Exception:  # noqa: BLE001  # see above
            if not self._complained:
                self._complained = True
                with contextlib.suppress(OSError, ValueError):
                    traceback.print_exc()

    def _drain(self, run: Run) -> None:
        for descriptor in list(run.streams):
            for _ in range(DRAIN):
                if not self._read(run, descriptor):
                    break

    def _on_child(self, wakeup: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, CHUNK)

    def _reap(self) -> None:
        """Take note of all children that ended: programs, and orphans that came to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._changed = True
            run = self._by_pid.get(pid)
            if run is None or run.reaped:
                continue
            run.reaped = True
            if run.problem >= 0:
                self._on_exec(run)
            self._tell(Exited(run.name, os.waitstatus_to_exitcode(status)))

    # Stopping

    def _lapse(self) -> None:
        """Stop what must not run on while others cannot know that it does."""
        silent = clock.now() - self._heard
        for run in list(self._runs.values()):
            if run.lapse is not None and not run.stopping and silent >= run.lapse.after:
                self._begin_stop(run.name, run.lapse.signal, run.lapse.grace)
                self._tell(Lapsed(run.name))

    def _stop(self) -> None:
        """Signal what is to be signalled, and report what is gone. One look at the machine serves all."""
        now = time.monotonic()
        waiting = [run for run in self._runs.values() if run.stopping]
        due = [run for run in waiting if run.signal is not None or run.deadline <= now]
        # While the program itself lives there is no need to look who else does.
        if self._again <= now:
            self._again, self._changed = float("inf"), True
        ended = [run for run in waiting if run.reaped and self._changed]
        self._changed = False
        if due or ended:
            with reserve():
                self._go_on(due, ended, now)

    def _go_on(self, due: list[Run], ended: list[Run], now: float) -> None:
        try:
            living = self._kin.living()
        except OSError:  # no descriptors, no memory
            living = {name: [] for name in self._runs}
        for run in due:
            if run.deadline <= now:
                self._kill(run, living.get(run.name, []), now)
            elif run.signal is not None:
                self._signal(run, living.get(run.name, []), run.signal)
            run.signal = None
        for run in {run.name: run for run in (*ended, *due)}.values():
            if run.reaped and run.name not in living:
                self._finish(run)
            elif run.killed is not None and now - run.killed > KILL_PATIENCE:
                run.stopping, run.killed, run.deadline = False, None, float("inf")
                left = tuple(process.pid for process in living.get(run.name, []))
                self._tell(Gone(run.name, run.scribe.last, left or (run.pid,)))
            elif run.reaped and not living[run.name]:
                self._again = now + INSIST
        if not self._runs:
            with contextlib.suppress(OSError):
                self._kill_all()

    def _signal(self, run: Run, living: Iterable[Process], number: int) -> None:
        if not run.reaped:  # else the number of its group may be another's
            for each in (number, signal.SIGCONT):  # what is stopped would not hear it
                with contextlib.suppress(OSError):
                    os.killpg(run.pid, each)
        for process in living:
            if run.reaped or process.group != run.pid:
                send(process, number)
                send(process, signal.SIGCONT)

    def _kill(self, run: Run, living: Iterable[Process], now: float) -> None:
        if run.killed is None:
            run.killed = now
        run.deadline = now + INSIST
        if run.group is not None:
            cgroup.kill(run.group)
        self._signal(run, living, signal.SIGKILL)

    def _finish(self, run: Run) -> None:
        """Nothing of the run lives any more."""
        if run.problem >= 0:
            self._on_exec(run)
        self._drain(run)
        for descriptor in list(run.streams):
            self._unwatch(descriptor)
        with self._losing_output():
            run.scribe.close()
        if run.group is not None:
            cgroup.remove(run.group)
        with contextlib.suppress(OSError):
            (self._records / run.name).unlink()
        self._kin.remove(run.name)
        del self._runs[run.name]
        if self._by_pid.get(run.pid) is run:
            del self._by_pid[run.pid]
        self._tell(Gone(run.name, run.scribe.last))

    def _kill_all(self) -> None:
        """SIGKILL to everything that descends from this process. Raises `OSError` where that cannot be told."""
        if self._cgroups is not None:
            cgroup.kill(self._cgroups.base)
        for process in descendants(census(), os.getpid()):
            send(process, signal.SIGKILL)

    def _childless(self) -> bool:
        """Reap; returns whether there is no child any more."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        return False

    def _end(self) -> None:
        """The node is gone: end everything at once."""
        limit = time.monotonic() + KILL_PATIENCE
        with reserve():
            # No child is left: nothing that descends from us is, for every orphan becomes a child of ours.
            while not self._childless() and time.monotonic() < limit:
                with contextlib.suppress(OSError):
                    self._kill_all()
                wait = time.monotonic() + INSIST
                while not self._childless() and time.monotonic() < wait:
                    time.sleep(0.002)
        for run in self._runs.values():
            with self._losing_output():
                run.scribe.close()
            with contextlib.suppress(OSError):
                (self._records / run.name).unlink()
        if self._cgroups is not None:
            cgroup.remove(self._cgroups.base)


def main(descriptor: int, folder: str, token: str, grouped: bool) -> None:
    """Keep until the node is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Sent to all processes of a service or a terminal: the node hears it too, and stops us when it is done.
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    node = socket.socket(fileno=descriptor)
    node.set_inheritable(False)
    Keeper(node, Path(folder), token, Cgroups.make(token) if grouped else None).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "yes")
