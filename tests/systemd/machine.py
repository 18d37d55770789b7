"""A real systemd for tests, as PID 1 of namespaces of its own, on the files and the network of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEEDED = ("unshare", "nsenter", "setpriv", "dbus-daemon", "systemctl")
GROUPS = Path("/sys/fs/cgroup")
UP_WITHIN = 60.0
"""Seconds that it may take to come up."""
WITHIN = "CDM_TESTS_WITHIN_SYSTEMD"
"""The variable that tests have which run in such a machine."""


class CannotBoot(Exception):
    """No systemd can be made to run here."""


class Machine:
    """One that runs.

    Args:
        pid: that of its PID 1, outside.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def command(self, *arguments: str) -> list[str]:
        """The command that runs another one in there."""
        here = str(Path.cwd())
        kinds = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
        return ["nsenter", "--target", str(self.pid), *kinds, f"--wd={here}", *arguments]

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in there."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, **more)

    def pytest(self, *files: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run tests in there that are beside this file."""
        options = ("-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "--confcutdir", str(HERE / "within"))
        chosen = [str(HERE / "within" / file) for file in files]
        return self.run(
            *(sys.executable, "-m", "pytest", *options, "-q", "-rs", *chosen),
            env={**os.environ, **(environment or {}), WITHIN: "1"},
            timeout=1000,
        )


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Boot one; nothing is left of it, whatever happens. Raises `CannotBoot`."""
    if os.geteuid() != 0:
        raise CannotBoot("needs root")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise CannotBoot(f"{', '.join(missing)}: not installed")
    group = f"cdm-tests-{os.getpid()}"
    boot = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "bash", HERE / "boot", HERE / "units", group],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _up(boot)
    finally:
        boot.kill()
        boot.communicate()
        _remove(group)


def _up(boot: subprocess.Popen[str]) -> Machine:
    until = time.monotonic() + UP_WITHIN
    while time.monotonic() < until and boot.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError, subprocess.TimeoutExpired):
            pid = int(Path(f"/proc/{boot.pid}/task/{boot.pid}/children").read_text().split()[0])
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                found = Machine(pid)
                told = found.run("systemctl", "is-system-running", timeout=UP_WITHIN).stdout.strip()
                if told in ("running", "degraded"):
                    return found
        time.sleep(0.1)
    boot.kill()
    raise CannotBoot(f"systemd does not come up as PID 1 of a namespace: {boot.communicate()[1][-500:]}")


def _remove(group: str) -> None:
    """Remove its control groups, once the kernel has ended what was in there."""
    tops = [each / group for each in (GROUPS, *GROUPS.iterdir()) if (each / group / "cgroup.procs").exists()]
    until = time.monotonic() + UP_WITHIN
    while tops and time.monotonic() < until:
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        tops = [top for top in tops if top.exists()]
        time.sleep(0.05)
