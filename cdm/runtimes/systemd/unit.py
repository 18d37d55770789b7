"""What systemd is asked for: the properties of a slice's transient unit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from cdm.errors import SliceFailed
from cdm.model.limits import Limits
from cdm.runtimes.keeper.cgroup import MOST_WEIGHT, WEIGHT_OF_A_CORE
from cdm.runtimes.keeper.protocol import Spawn

STATE = "cdm-slices"
"""The folder, inside the one that systemd has for dynamic users, of all that slices have of their own."""
PRIVATE, LINKS = Path("/var/lib/private"), Path("/var/lib")
"""Where systemd has the folders of dynamic users, and links to them."""
CREDENTIALS = Path("/run/credentials")
GROUP = "cdm.slice"
"""The slice, in systemd's sense, that all units are in."""
HIDDEN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""Variables that would have a program answer for its node."""
SECOND = 1_000_000
UNCOUNTED = (
    "limits.file_size cannot be enforced by the runtime systemd: a slice's output would count, which goes to a file"
)

_ESCAPED = str.maketrans({each: f"\\{each}" for each in '\\"`$'})
CANNOT_EXECUTE = 203
"""The exit status of what was to become a program, and cannot."""
_BEFORE_EXEC = {
    200: "its directory cannot be entered",
    CANNOT_EXECUTE: "it cannot be executed: the user that systemd gave it may not, or what it is run by is not there",
    217: "systemd has no user for it",
    226: "its view of the file system cannot be made",
    238: "its folder cannot be made",
    243: "its secrets cannot be given to it",
}


class UnitPlace(Struct, frozen=True):
    """What a slice has of its own."""

    state: str
    """Its folder, below `PRIVATE`."""
    user: None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell the slice where it may write: ``/tmp`` is its own, too."""
        return {"HOME": str(PRIVATE / self.state), "TMPDIR": "/tmp"}  # noqa: S108


class UnitFiles(Struct, frozen=True):
    """Where the files of one run are, and what it sees of the node's."""

    content: Path
    """The artifact's."""
    hidden: Path
    """The node's folder, of which the program sees nothing but the content."""
    environment: Path
    """The file with its variables."""
    secrets: Path
    """The folder with the files of its secrets, which may be missing."""
    out: Path
    err: Path
    state: str
    """The slice's own folder, below `PRIVATE`."""


def refused(status: int) -> str | None:
    """Why a program could not be run, from the exit status of what was to become it; None: it says nothing."""
    return _BEFORE_EXEC.get(status)


def unit_name(token: str, run: str) -> str:
    """The name of a run's unit."""
    return f"cdm-{token}-{run}.service"


def state_of(token: str, name: str) -> str:
    """A slice's own folder, below `PRIVATE`, by its folder's name elsewhere."""
    return f"{STATE}/{token}/{name}"


def user_of(state: str) -> str:
    """The name of the user that systemd gives a slice, the same in all its runs."""
    return f"cdm-{hashlib.sha256(state.encode()).hexdigest()[:20]}"


def environment_file(environment: Mapping[str, str]) -> str:
    """The variables as systemd reads them from a file, which nobody else can read. Raises `SliceFailed`."""
    lines = []
    for name, value in environment.items():
        if any(ord(each) < 0x20 and each not in "\t\n" for each in value) or "\x7f" in value:
            raise SliceFailed(f"variable {name} has a control character, which systemd gives to no program", fatal=True)
        lines.append(f'{name}="{value.translate(_ESCAPED)}"\n')
    return "".join(lines)


def micros(seconds: float) -> int:
    """At least one, for none would mean without end."""
    return max(int(seconds * SECOND), 1)


def unit_properties(
    spawn: Spawn, shown: str, files: UnitFiles, watchdog: float, until: float | None
) -> dict[str, tuple[str, Any]]:
    """By name: D-Bus signature, and value.

    Args:
        spawn: what to run.
        shown: what the unit is called for people.
        files: where they are.
        watchdog: seconds without a word from the node after which it is stopped, counted from its start.
        until: when it must not be started any more, in seconds since the machine started; None: that does not matter.
    """
    limits = spawn.limits
    found: dict[str, tuple[str, Any]] = {
        "Description": ("s", shown),
        "Type": ("s", "exec"),
        "AddRef": ("b", True),
        "Slice": ("s", GROUP),
        "ExecStartEx": ("a(sasas)", [[spawn.program, list(spawn.arguments), ["no-env-expand"]]]),
        "WorkingDirectory": ("s", spawn.directory),
        "EnvironmentFiles": ("a(sb)", [[str(files.environment), False]]),
        "UnsetEnvironment": ("as", list(HIDDEN)),
        "DynamicUser": ("b", True),
        "User": ("s", user_of(files.state)),
        "StateDirectory": ("as", [files.state]),
        "ProtectSystem": ("s", "strict"),
        "NoNewPrivileges": ("b", True),
        "PrivateTmp": ("b", True),
        "ProtectControlGroups": ("b", True),
        "TemporaryFileSystem": ("a(ss)", [[str(files.hidden), "ro,mode=0755"]]),
        "BindReadOnlyPaths": ("a(ssbt)", [[str(files.content), str(files.content), False, 0]]),
        "InaccessiblePaths": ("as", ["-/run/systemd/notify", "-/run/dbus", "-/run/systemd/private"]),
        "StandardInput": ("s", "null"),
        "StandardOutputFileToAppend": ("s", str(files.out)),
        "StandardErrorFileToAppend": ("s", str(files.err)),
        "IgnoreSIGPIPE": ("b", False),
        "KillMode": ("s", "control-group"),
        "KillSignal": ("i", spawn.signal),
        "TimeoutStopUSec": ("t", micros(spawn.grace)),
        "NotifyAccess": ("s", "main"),
        "WatchdogUSec": ("t", micros(watchdog)),
        "WatchdogSignal": ("i", spawn.signal),
        "TimeoutAbortUSec": ("t", micros(spawn.grace)),
        "OOMPolicy": ("s", "kill"),
        "CPUWeight": ("t", min(max(round((spawn.cores or 1) * WEIGHT_OF_A_CORE), 1), MOST_WEIGHT)),
    }
    if until is not None:
        test = 'read up rest </proc/uptime && test "${up%.*}" -lt "$0"'
        found["ExecConditionEx"] = ("a(sasas)", [["/bin/sh", ["sh", "-c", test, str(int(until))], ["no-env-expand"]]])
    if files.secrets.is_dir():
        found["LoadCredential"] = ("a(ss)", [[each.name, str(each)] for each in sorted(files.secrets.iterdir())])
    if limits.memory is not None:
        found["MemoryMax"] = ("t", limits.memory)
    if limits.processes is not None:
        found["TasksMax"] = ("t", limits.processes)
    for name, limit in (("CPU", limits.cpu_seconds), ("NOFILE", limits.open_files)):
        if limit is not None:
            found |= {f"Limit{name}": ("t", limit), f"Limit{name}Soft": ("t", limit)}
    return found


def controllers() -> frozenset[str]:
    """What can be limited for all processes of a unit, by the kernel's names: what the control groups here have."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return frozenset((root / "cgroup.controllers").read_text().split())
    return frozenset(each.name for each in root.iterdir())


def unenforced(limits: Limits, there: frozenset[str]) -> str | None:
    """Which limit cannot be enforced.

    Args:
        limits: the manifest's.
        there: the `controllers`.
    """
    if limits.file_size is not None:
        return UNCOUNTED
    for name, limit, controller in (
        ("memory", limits.memory, "memory"),
        ("processes", limits.processes, "pids"),
    ):
        if limit is not None and controller not in there:
            return f"limits.{name} cannot be enforced on this node: its control groups have no controller {controller}"
    return None
