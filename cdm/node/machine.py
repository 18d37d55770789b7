"""What the machine has: cores and memory as far as this process may use them, and how busy it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LOAD_STEP = 0.25
"""Steps in which load is told."""
_STAYS_WITHIN = 0.75
"""How far, in steps, load may be from what was told before another is told, so that it does not flap."""
USUAL_LABELS = ("arch", "os")
"""Labels that every node has, unless its operator gives them other values."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Machine(NamedTuple):
    """What slices on this machine have between them."""

    cpu: float | None
    """Cores; None: not known."""
    memory: int | None
    """Bytes; None: not known."""

    def less(self, reserved: Machine) -> Machine:
        """What is left when so much is kept back."""
        cpu = None if self.cpu is None else round(max(self.cpu - (reserved.cpu or 0.0), 0.0), 3)
        memory = None if self.memory is None else max(self.memory - (reserved.memory or 0), 0)
        return Machine(cpu, memory)

    def used_up(self, reserved: Machine) -> list[str]:
        """The names of what there is, and of which nothing is left when so much is kept back."""
        left = self.less(reserved)
        return [name for name, has, rest in zip(self._fields, self, left, strict=True) if has and rest == 0]


def detected(root: Path = Path("/"), cores: int | None = None) -> Machine:
    """What this process may use: its cores and the machine's memory, or what its cgroups (v2 or v1) allow, if less.

    Args:
        root: where ``proc`` and ``sys`` are.
        cores: how many it may run on; None: as the system says.
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [*_quotas(root), *([float(cores)] if cores else [])]
    limits = [*_limits(root), *_total(root)]
    return Machine(round(min(quotas), 3) if quotas else None, min(limits, default=None))


def usual_labels() -> dict[str, str]:
    """The labels that each machine can tell of itself: ``arch`` as container images name it, and ``os``."""
    machine = platform.machine().lower()
    labels = {"arch": _ARCHITECTURES.get(machine, machine), "os": platform.system().lower()}
    return {name: value for name, value in labels.items() if value}


class Load:
    """How busy the machine's processors have been in the last minute, in coarse steps."""

    def __init__(self) -> None:
        self._told: float | None = None

    def __call__(self) -> float | None:
        """1.0 means that each processor has just enough to do; None: the system does not say."""
        try:
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
        except OSError:
            return None
        self._told = coarse(load, self._told)
        return self._told


def coarse(load: float, told: float | None) -> float:
    """A load in steps: what was told before for as long as it is about right, else the nearest step."""
    if told is not None and abs(load - told) <= _STAYS_WITHIN * LOAD_STEP:
        return told
    return round(load / LOAD_STEP) * LOAD_STEP


def _quotas(root: Path) -> Iterator[float]:
    """How many cores' time each cgroup above this process has."""
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split() or [
            _read(group / "cpu.cfs_quota_us").strip(),
            _read(group / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            yield int(words[0]) / int(words[1])


def _limits(root: Path) -> Iterator[int]:
    """How much memory each cgroup above this process may use."""
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (limit := _read(group / name).strip()).isdigit():
                yield int(limit)


def _total(root: Path) -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        match line.split():
            case ["MemTotal:", kilobytes, "kB"] if kilobytes.isdigit():
                yield int(kilobytes) * 1024


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The cgroups that this process is in, innermost first, as far as they can be seen from where it is."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may be the one that the host sees, of which nothing is there.
        parts = [part for part in inside.split("/") if part]
        for depth in range(len(parts) if ".." not in parts else 0, -1, -1):
            yield top.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    """A file's text; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
