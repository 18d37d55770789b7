"""The keeper: a small process beside the node that starts, reads, stops and reaps the programs of its slices.

It exists so that no program outlives its node for longer than is wanted. A program lives only while the keeper does
(PR_SET_PDEATHSIG), and the keeper only while `NodeTie` says so: unless runs are to outlive their node's process, it
sends SIGKILL to all of its descendants when the node's end of their socket closes, for whatever reason, and ends. It
is the parent of every program, and of every orphan that a program leaves (PR_SET_CHILD_SUBREAPER), so that it sees
every process and leaves no zombie. It has one thread, so that forking is safe, and keeps the work of reading output
away from the node's event loop. `cdm.runtimes.keeper.runs` says which processes belong to a run.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from cdm.output.files import OutputWriter
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups
from cdm.runtimes.keeper.processes import RunRecord, boot, census, childless, descendants, send
from cdm.runtimes.keeper.protocol import (
    KILL_PATIENCE,
    PROTOCOL,
    RECORDS,
    Command,
    Event,
    Gone,
    Hello,
    Lapse,
    Lapsed,
    Listener,
    Losing,
    Remember,
    Said,
    Spawn,
    SpawnRefused,
    Started,
    Stop,
    WhoListens,
)
from cdm.runtimes.keeper.runs import KILL_INTERVAL, Run, Runs, Stopping
from cdm.runtimes.keeper.spawn import RunBounds, launch, limits_processes, problem_of, reserve, shortage
from cdm.runtimes.keeper.tie import NEVER, NodeTie

CHUNK = 64 * 1024
"""Bytes read from one pipe before the others have their turn."""
DRAIN = 16
"""Chunks that are read from a pipe once nobody is left to write to it: it holds fewer."""
LOSS_INTERVAL = 60.0
"""Seconds after which it is said again that a run's output is being lost."""
MAX_LEFT = 100
"""Processes that cannot be ended that are named."""
LAPSE_INTERVAL = 1.0
"""Seconds between two checks whether a run has lapsed: no timer wakes us when the machine was suspended."""


class Keeper:
    """The keeper's one loop.

    Args:
        node: the socket to the node.
        folder: the runtime's own.
        token: tells the marks of this runtime's runs from those of others.
        cgroups: where runs are put; None: nowhere.
    """

    def __init__(self, node: socket.socket, folder: str, token: str, cgroups: Cgroups | None) -> None:
        self._first = node
        self._records = os.path.join(folder, RECORDS)
        self._cgroups = cgroups
        self._boot = boot()
        self._bounds = RunBounds.found(cgroups)
        self._runs = Runs(token)
        self._selector = selectors.DefaultSelector()
        self._node = NodeTie(self._selector, folder, self._obey, self._greeting)
        self._tell = self._node.tell
        self._limits_processes = False
        self._child_ended = False
        """Whether a child ended since the last look at which processes live."""
        self._next_look = NEVER
        """When to look again though no child ended, on the monotonic clock."""
        self._complained = False
        """Whether an error that cost output was printed: one trace is enough."""

    def run(self) -> None:
        """Serve the node until it is gone for good, then end everything."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(read, lambda: self._on_child(read))
        self._limits_processes = "pids" in self._bounds.controllers or limits_processes()
        self._node.take(self._first, os.getppid())
        try:
            while not self._node.over:
                for key, _ in self._selector.select(self._timeout()):
                    if key.fd in self._selector.get_map():  # the call before may have closed it
                        key.data()
                self._reap()
                self._lapse()
                self._stop()
                self._node.look(len(self._runs))
        finally:
            self._node.close()
            self._end()

    def _watch(self, descriptor: int, call: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def _unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _timeout(self) -> float | None:
        due = min((state.deadline for _, state in self._runs.stopping), default=NEVER)
        timeout = min(due, self._next_look) - time.monotonic()
        if lapses := [lapse.after for _, lapse in self._lapses()]:
            timeout = min(timeout, min(lapses) - self._node.silent, LAPSE_INTERVAL)
        return None if timeout == NEVER else max(timeout, 0)

    def _lapses(self) -> list[tuple[Run, Lapse]]:
        """The runs that run on, and are to be stopped by this process itself: when, and how."""
        runs = self._runs if self._node.is_alone else self._runs.lapsing
        return [(run, lapse) for run in runs if not run.stopping and (lapse := self._node.lapse(run))]

    # The node

    def _greeting(self, heard: float) -> list[Event]:
        return [Hello(self._limits_processes, PROTOCOL, len(self._runs), heard), *(run.told for run in self._runs)]

    def _obey(self, command: Command) -> None:
        match command:
            case Spawn():
                self._spawn(command)
            case Stop(name, number, grace):
                self._begin_stop(name, number, grace)
            case WhoListens(name, port):
                self._tell_listener(name, port)
            case Remember(name, text):
                if run := self._runs.named(name):
                    run.note = text

    # Starting

    def _spawn(self, spawn: Spawn) -> None:
        pipes: list[int] = []
        group: str | None = None
        try:
            for _ in range(2):
                pipes += os.pipe()
            if self._cgroups is not None:
                group = self._cgroups.add(spawn.run, spawn.limits, spawn.cores)
            output = OutputWriter(spawn.output, spawn.logs, spawn.line)
            pid, exec_pipe = launch(spawn, pipes[1], pipes[3], self._bounds, group)
        except OSError as error:  # no process, no file descriptor, no disk
            for descriptor in pipes:
                os.close(descriptor)
            if group is not None:
                cgroup.remove(group)
            self._tell(SpawnRefused(spawn.run, shortage(error, self._bounds.files, len(self._runs))))
            return
        os.close(pipes[1])
        os.close(pipes[3])
        run = Run(spawn, pid, exec_pipe, {pipes[0]: "out", pipes[2]: "err"}, output, group)
        self._runs.add(run)
        for descriptor in run.streams:
            os.set_blocking(descriptor, False)
            self._watch(descriptor, partial(self._read, run, descriptor))
        self._watch(exec_pipe, lambda: self._on_exec(run, exec_pipe))
        # A full disk is no reason not to run a program: without its record it is still known by its mark.
        with contextlib.suppress(OSError), reserve():
            if process := self._runs.program(run):
                RunRecord(self._boot, pid, process.start).write(os.path.join(self._records, run.name))

    def _on_exec(self, run: Run, exec_pipe: int) -> None:
        """The program runs, or could not be run."""
        data = os.read(exec_pipe, 4096)
        self._unwatch(exec_pipe)
        run.exec_pipe = None
        if not data:
            with self._losing_output():
                run.output.begin()
            self._tell(Started(run.name, run.pid))
            return
        problem = problem_of(data)
        self._tell(SpawnRefused(run.name, problem.text, problem.fatal))
        # The child is ending by itself: once it is reaped, nothing is left.
        self._runs.begin_stop(run, Stopping(None, time.monotonic()))

    def _tell_listener(self, name: str, port: int) -> None:
        run = self._runs.named(name)
        if run is not None:
            stranger = None
            with contextlib.suppress(OSError), reserve():
                stranger = self._runs.stranger(run, port)
            self._tell(Listener(name, stranger))

    # Output

    def _read(self, run: Run, descriptor: int) -> bool:
        """Read a chunk of output; returns whether there may be more."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        stream = run.streams[descriptor]
        with self._losing_output():
            if data:
                run.output.feed(stream, data)
            else:
                run.output.end(stream)
        if not data:
            del run.streams[descriptor]
            self._unwatch(descriptor)
        if run.output.lost and (now := time.monotonic()) >= run.losing_told + LOSS_INTERVAL:
            run.losing_told = now
            self._tell(Losing(run.name, run.output.problem, run.output.lost))
        if run.output.said and not run.said:
            run.said = True
            self._tell(Said(run.name))
        return bool(data)

    @contextlib.contextmanager
    def _losing_output(self) -> Iterator[None]:
        """An error in keeping one slice's output costs that output and nothing else: every slice needs the keeper."""
        try:
            yield
        except Exception:  # noqa: BLE001  # see above
            if not self._complained:
                self._complained = True
                import traceback  # noqa: PLC0415  # half a megabyte that is hardly ever needed

                with contextlib.suppress(OSError, ValueError):
                    traceback.print_exc()

    def _drain(self, run: Run) -> None:
        for descriptor in list(run.streams):
            for _ in range(DRAIN):
                if not self._read(run, descriptor):
                    break

    # Ends

    def _on_child(self, wakeup: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, CHUNK)

    def _reap(self) -> None:
        """Reap all children that ended: programs, and orphans that they left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._child_ended = True
            run = self._runs.of_program(pid)
            if run is None or run.reaped:
                continue
            run.reaped = True
            if run.exec_pipe is not None:
                self._on_exec(run, run.exec_pipe)
            self._tell(run.exited(os.waitstatus_to_exitcode(status)))

    def _lapse(self) -> None:
        """Stop runs with ``stop_after`` whose node is cut off, and those that their node left for too long.

        Others may start the same slices elsewhere.
        """
        if not self._lapsed():
            return
        # Where this process stood still, that heartbeats were accepted, or that another process came, is still unread.
        self._node.catch_up()
        for run, lapse in self._lapsed():
            self._begin_stop(run.name, lapse.signal, lapse.grace)
            self._tell(Lapsed(run.name))

    def _lapsed(self) -> list[tuple[Run, Lapse]]:
        """Those whose time is over, as far as was heard."""
        return [(run, lapse) for run, lapse in self._lapses() if self._node.silent >= lapse.after]

    def _begin_stop(self, name: str, number: int, grace: float) -> None:
        run = self._runs.named(name)
        if run is None:
            self._tell(Gone(name))
            return
        stopping = run.stopping or self._runs.begin_stop(run, Stopping(number, NEVER))
        if run.exec_pipe is not None:  # it is not the program yet, and would ignore a stop signal as we do
            grace = 0
        stopping.deadline = min(stopping.deadline, time.monotonic() + grace)
        self._child_ended = True  # it may have ended by itself

    def _stop(self) -> None:
        """Send the signals that are due, and report the runs that are gone. One look at the machine serves all runs."""
        now = time.monotonic()
        if self._next_look <= now:
            self._next_look, self._child_ended = NEVER, True
        stopping = self._runs.stopping
        # While its program lives a run is not gone: then there is no need to look.
        if any(state.is_due(now) or (run.reaped and self._child_ended) for run, state in stopping):
            with reserve():
                self._signal(stopping, now, child_ended=self._child_ended)
        self._child_ended = False

    def _signal(self, stopping: list[tuple[Run, Stopping]], now: float, *, child_ended: bool) -> None:
        try:
            living = self._runs.living()
        except OSError:  # no descriptors, no memory
            living = {run.name: [] for run in self._runs}
        for run, state in stopping:
            seen = living.get(run.name)
            due = state.is_due(now)
            if state.deadline <= now:
                state.killed = state.killed or now
                state.deadline = now + KILL_INTERVAL
                run.kill(seen or ())
            elif state.signal is not None:
                run.send(seen or (), state.signal)
            state.signal = None
            if not due and not (run.reaped and child_ended):
                continue
            if run.reaped and seen is None:
                self._finish(run)
            elif state.killed is not None and now - state.killed > KILL_PATIENCE:
                self._runs.give_up(run)
                left = tuple(process.pid for process in (seen or ())[:MAX_LEFT])
                self._tell(Gone(run.name, run.output.last, left or (run.pid,)))
            elif run.reaped and not seen:
                self._next_look = now + KILL_INTERVAL
        if not self._runs:
            with contextlib.suppress(OSError):
                self._kill_all()

    def _finish(self, run: Run) -> None:
        """Nothing of the run lives any more."""
        if run.exec_pipe is not None:
            self._on_exec(run, run.exec_pipe)
        self._drain(run)
        for descriptor in list(run.streams):
            self._unwatch(descriptor)
        self._put_away(run)
        if run.group is not None:
            cgroup.remove(run.group)
        self._runs.remove(run)
        self._tell(Gone(run.name, run.output.last))

    def _put_away(self, run: Run) -> None:
        with self._losing_output():
            run.output.close(run.ended)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._records, run.name))

    # The end of all

    def _kill_all(self) -> None:
        """SIGKILL to every descendant of this process. Raises `OSError` where they cannot be told."""
        if self._cgroups is not None:
            cgroup.kill(self._cgroups.base)
        for process in descendants(census(), os.getpid()):
            send(process, signal.SIGKILL)

    def _end(self) -> None:
        """The node is gone for good: end everything at once."""
        limit = time.monotonic() + KILL_PATIENCE
        with reserve():
            # Without children there are no descendants, for every orphan becomes a child of ours.
            while not childless() and time.monotonic() < limit:
                with contextlib.suppress(OSError):
                    self._kill_all()
                wait = time.monotonic() + KILL_INTERVAL
                while not childless() and time.monotonic() < wait:
                    time.sleep(0.002)
        for run in self._runs:
            self._put_away(run)
        if self._cgroups is not None:
            cgroup.remove(self._cgroups.base)
