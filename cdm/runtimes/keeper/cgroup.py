"""A control group (cgroup v2) for each run, where the node may make one.

With cgroups no process can leave its run, all processes of a run are killed at once, and memory and the number of
processes are limited for all of them together. Without, processes are found by session, ancestry and environment.

Groups are made only inside the node's own control group, or inside the one that systemd delegated to the unit
(``Delegate=yes``, best with ``DelegateSubgroup=``: the kernel limits only groups whose parent holds no process).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from cdm.model.limits import Limits

CONTROLLERS = ("memory", "pids", "cpu")
WEIGHT_OF_A_CORE, MOST_WEIGHT = 100, 10_000
"""The kernel's default and most: processors that are short are shared by weight."""
PIDS_RESERVE = 64
"""Processes and threads that all runs together cannot use up: node and keeper need some."""


def own_group(mounts: str, groups: str) -> str | None:
    """The node's own cgroup, from the text of /proc/self/mountinfo and /proc/self/cgroup. None: no cgroup v2."""
    path = next((line[3:] for line in groups.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if path is not None and after.startswith("cgroup2 "):
            root, point = before.split()[3:5]
            return os.path.normpath(os.path.join(point, os.path.relpath(path, root)))
    return None


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name)) as file:
        return file.read()


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def _own() -> str | None:
    try:
        mounts, groups = _read("/proc/self", "mountinfo"), _read("/proc/self", "cgroup")
    except OSError:
        return None
    return own_group(mounts, groups)


def _delegated(group: str) -> bool:
    try:
        return os.getxattr(group, "user.delegate") == b"1"
    except OSError:
        return False


def _enable(group: str) -> frozenset[str]:
    """Turn the controllers on for the group's children; returns those that are on."""
    for controller in CONTROLLERS:
        with contextlib.suppress(OSError):
            _write(group, "cgroup.subtree_control", f"+{controller}")
    try:
        return frozenset(_read(group, "cgroup.subtree_control").split())
    except OSError:
        return frozenset()


def room(group: str, machine: Iterable[int]) -> int:
    """How many processes and threads may be in a group that is made below this one, with some left for the node.

    Args:
        group: where the limits begin that hold for it; they go on in the groups above.
        machine: the machine's own limits.
    """
    limits = list(machine)
    each, below = group, ""
    while each != below:
        with contextlib.suppress(OSError, ValueError):  # "max", or no file at the root
            limits.append(int(_read(each, "pids.max")))
        each, below = os.path.dirname(each), each
    most = min(limits)
    return max(most - PIDS_RESERVE, most // 2)


def most_processes() -> int:
    """How many processes and threads one slice may have where nothing else limits them."""
    own = _own()
    return room(own, _machine()) if own is not None else room("/", _machine())


def _machine() -> list[int]:
    return [int(_read("/proc/sys/kernel", name)) for name in ("pid_max", "threads-max")]


class Cgroups:
    """The control groups of one runtime.

    Args:
        base: the group that holds them all; it is made.
        controllers: which limits they can enforce.
    """

    def __init__(self, base: str, controllers: frozenset[str]) -> None:
        self.base = base
        self.controllers = controllers

    @classmethod
    def candidates(cls, token: str) -> list[str]:
        """Where the runtime with this token may have its groups, best first."""
        own = _own()
        if own is None:
            return []
        above = os.path.dirname(own)
        places = [above, own] if _delegated(above) else [own]
        return [os.path.join(place, f"cdm-{token}") for place in places]

    @classmethod
    def made(cls, token: str) -> list[str]:
        """Where such a runtime has had its groups, and did not remove them."""
        return [place for place in cls.candidates(token) if os.path.exists(place)]

    @classmethod
    def make(cls, token: str) -> Cgroups | None:
        """Make the group that holds them all; None: cgroups cannot be used here."""
        for base in cls.candidates(token):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(base)
                if os.path.exists(os.path.join(base, "cgroup.kill")):
                    above = os.path.dirname(base)
                    if "pids" in _enable(above):
                        _write(base, "pids.max", str(room(above, _machine())))
                    return cls(base, _enable(base))
                os.rmdir(base)  # Linux before 5.14
            except OSError:
                continue
        return None

    def add(self, run: str, limits: Limits, cores: float = 0.0) -> str:
        """Make a run's group. Raises `OSError`.

        Args:
            run: its name.
            limits: the manifest's.
            cores: how many it reserves; 0: it does not say, and counts like one that reserves one.
        """
        group = os.path.join(self.base, run)
        os.makedirs(group, exist_ok=True)
        if limits.memory is not None and "memory" in self.controllers:
            _write(group, "memory.max", str(limits.memory))
            _write(group, "memory.oom.group", "1")
        if limits.processes is not None and "pids" in self.controllers:
            _write(group, "pids.max", str(limits.processes))
        if cores and "cpu" in self.controllers:
            weight = round(cores * WEIGHT_OF_A_CORE)
            _write(group, "cpu.weight", str(min(max(weight, 1), MOST_WEIGHT)))
        return group


def entrance(group: str) -> str:
    """The file by which processes `enter` the group."""
    return f"{group}/cgroup.procs"


def enter(entrance: str) -> None:
    """Move the calling process into a group; it has just been forked, and does as little as can be."""
    file = os.open(entrance, os.O_WRONLY)
    try:
        os.write(file, b"0")
    finally:
        os.close(file)


def kill(group: str) -> None:
    """SIGKILL to all processes in the group and below it."""
    with contextlib.suppress(OSError):
        _write(group, "cgroup.kill", "1")


def members(group: str) -> set[int]:
    """Pids in the group and below it, without zombies, which "populated" in cgroup.events may count."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(OSError, ValueError):
            found.update(map(int, _read(folder, "cgroup.procs").split()))
    return found


def out_of_memory(group: str) -> bool | None:
    """Whether a process in the group was killed for the group's own limit of memory; None: none for any memory.

    False: what ran out was the memory of the machine, or of a group above.
    """
    try:
        events = dict(line.split() for line in _read(group, "memory.events").splitlines())
        return int(events["oom"]) > 0 if int(events["oom_kill"]) else None
    except (OSError, ValueError, KeyError):  # the group does not look after memory
        return None


def remove(group: str) -> None:
    """Remove the group and those below it, except where processes live."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
