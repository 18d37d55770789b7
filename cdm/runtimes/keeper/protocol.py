"""What the node and its keeper say to each other: one message a packet, as MessagePack.

The node sends commands, the keeper events. A run is one start of one slice's program, with a name of its own.

A keeper may outlive its node's process, and meet one of another version of cdm: see `PROTOCOL`.
"""

from __future__ import annotations

import signal

import msgspec
from msgspec import Struct

from cdm.model.limits import Limits, Logs

PROTOCOL = 1
"""The version of all this, which the keeper tells first. A node sends only commands that this version knows, and ends
a keeper whose version it does not know itself. What is added needs a default; another number is needed only where an
older keeper must not be sent it, as a field of `Limits` or `Logs`, which refuse what they do not know. The names of the
messages are said, too: `Hello` and `Survivor` stay readable for ever."""
MARK = "CDM_RUN"
"""The environment variable by which processes of a slice are known, wherever they went: ``{token}.{run}``."""
OF_KEEPER = "keeper"
"""What the keeper itself is marked with, in the place of a run."""
MAX_PACKET = 1 << 17
"""Longest message, in bytes; the kernel's default for a socket buffer allows little more."""
KILL_PATIENCE = 5.0
"""Seconds from the first SIGKILL after which a run is reported as impossible to stop."""
RECORDS = "running"
"""The folder, inside the runtime's own, that holds a `RunRecord` of each run."""


class Lapse(Struct, frozen=True):
    """When the keeper stops a run by itself: the node may be cut off from NATS, or frozen."""

    after: float
    """Seconds since the last heartbeat was sent that NATS accepted."""
    signal: int
    grace: float
    """Seconds from the signal to SIGKILL."""


class RunUser(Struct, frozen=True):
    """The user that a program runs as, where that is not the node's own."""

    uid: int
    gid: int
    own: bool
    """Whether no other slice, and nobody else, has this uid: then every process that has it belongs to the slice."""


class Spawn(Struct, frozen=True, tag=True):
    """Start a program; answered with `Started` or `SpawnRefused`."""

    run: str
    program: str
    arguments: tuple[str, ...]
    """The first one is the name that the program is called by."""
    environment: dict[str, str]
    directory: str
    output: str
    """The folder that its output goes to."""
    limits: Limits = Limits()
    logs: Logs = Logs()
    line: str | None = None
    """A line on its standard output that is reported with `Said`."""
    lapse: Lapse | None = None
    user: RunUser | None = None
    """None: the node's own."""
    cores: float = 0.0
    """How many it reserves; 0: it does not say."""
    signal: int = signal.SIGTERM
    grace: float = 0.0
    """How it is stopped where its node is gone: seconds from the signal to SIGKILL."""


class Stop(Struct, frozen=True, tag=True):
    """Stop all processes of a run; answered with `Gone`. Stopping again can only shorten the grace."""

    run: str
    signal: int
    grace: float
    """Seconds from the signal to SIGKILL."""


class Heard(Struct, frozen=True, tag=True):
    """NATS accepted a heartbeat of the node."""

    at: float
    """When it was sent, in seconds on the machine's clock (`cdm.clock`)."""


class WhoListens(Struct, frozen=True, tag=True):
    """Tell who listens on a TCP port that was given to a run; answered with `Listener`."""

    run: str
    port: int


class Remember(Struct, frozen=True, tag=True):
    """Keep what the node wants to know of a run when it comes back; the last one counts."""

    run: str
    text: bytes


class Outlive(Struct, frozen=True, tag=True):
    """Let runs outlive the node's process; refused with `NotKept`."""

    seconds: float | None
    """How long, since the last heartbeat was sent that NATS accepted; None: not at all, as before the first of these.
    Runs with a `Lapse` have until that."""


class EndAll(Struct, frozen=True, tag=True):
    """End all runs at once, and be over, whatever outlives what."""


Command = Spawn | Stop | Heard | WhoListens | Remember | Outlive | EndAll


class Hello(Struct, frozen=True, tag=True):
    """The keeper is up; a `Survivor` for each run follows."""

    limits_processes: bool
    """Whether it can enforce `Limits.processes`."""
    protocol: int = 0
    """Its `PROTOCOL`."""
    running: int = 0
    """How many runs there are."""
    heard: float = float("-inf")
    """When the last heartbeat was sent that NATS accepted, as far as it was told."""


class NotKept(Struct, frozen=True, tag=True):
    """Runs will end with the node's process, although it wanted otherwise."""

    reason: str


class Started(Struct, frozen=True, tag=True):
    """The program runs: exec has succeeded."""

    run: str
    pid: int


class SpawnRefused(Struct, frozen=True, tag=True):
    """The program could not be run. Nothing is left of the run."""

    run: str
    problem: str
    fatal: bool = False
    """Whether trying again soon would fail the same way."""


class Said(Struct, frozen=True, tag=True):
    """The program wrote the line that is waited for."""

    run: str


class Listener(Struct, frozen=True, tag=True):
    """Who listens on the port that was asked for."""

    run: str
    stranger: int | None = None
    """A process that does not belong to the run; None: a process of the run, or it cannot be told."""


class Losing(Struct, frozen=True, tag=True):
    """Output of the run is being lost: it cannot be written. Told at once, and again from time to time."""

    run: str
    problem: str
    lost: int
    """Bytes so far."""


class Exited(Struct, frozen=True, tag=True):
    """The program itself ended; other processes of the run may live on."""

    run: str
    status: int
    """Exit status, or minus the number of the signal that ended it."""
    words: str
    """How it ended, for people."""


class Survivor(Struct, frozen=True, tag=True):
    """A run that an earlier process of the node began, and of which something may live."""

    run: str
    note: bytes
    ended: Exited | None
    """How its program ended; None: it has not."""
    whole: bool
    """Whether exec has succeeded, and it is not being stopped."""
    said: bool
    """Whether the line was written that is waited for."""
    signal: int
    grace: float
    """How it is stopped."""
    user: RunUser | None = None


class Lapsed(Struct, frozen=True, tag=True):
    """The run is being stopped: NATS accepted no heartbeat for too long."""

    run: str


class Gone(Struct, frozen=True, tag=True):
    """No process of the run lives any more, unless some are ``left`` that SIGKILL does not end."""

    run: str
    last: tuple[str, ...] = ()
    """The last lines that it wrote."""
    left: tuple[int, ...] = ()
    """Some of them, where there are very many."""


RunEvent = Started | SpawnRefused | Said | Listener | Losing | Exited | Lapsed | Gone
Event = Hello | Survivor | NotKept | RunEvent

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
