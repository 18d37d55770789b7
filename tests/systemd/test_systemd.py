"""The runtime `systemd`, and the unit file of a node, with a real systemd.

The tests themselves are in the folder ``within``: each file of it is run in a process inside of its namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdm.runtimes.systemd.unit import LINKS, PRIVATE, STATE
from tests.systemd.machine import CannotBoot, Machine, machine

WITHIN = sorted(each.name for each in Path(__file__).with_name("within").glob("test_*.py"))


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    pytest.importorskip("dbus_fast", reason="the extra systemd is not installed")
    try:
        with machine() as found:
            yield found
    except CannotBoot as why:
        pytest.skip(f"no systemd runs here: {why}")


@pytest.mark.parametrize("file", WITHIN)
def test_within_a_machine_that_systemd_runs(booted: Machine, file: str) -> None:
    ran = booted.pytest(file)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    left = booted.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "cdm-*.service")
    assert left.stdout == "", "units are left"
    assert STATE not in booted.run("ls", str(LINKS), str(PRIVATE)).stdout, "folders of slices are left"
