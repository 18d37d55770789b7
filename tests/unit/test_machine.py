"""What a machine has: its cores and memory, what cgroups leave of them, and how busy it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.node.machine import LOAD_STEP, Load, Machine, coarse, detected, usual_labels

pytestmark = pytest.mark.quick

GIB = 2**30
MEMINFO = "MemTotal:        8388608 kB\nMemFree:          123 kB\n"


def root(folder: Path, **files: str) -> Path:
    """A folder with files whose names have two underscores for each slash, below ``proc`` and ``sys/fs/cgroup``."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        top = folder if name.startswith("proc") else folder / "sys/fs/cgroup"
        path = top / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_machine_without_limits_has_all_its_cores_and_memory(tmp_path: Path) -> None:
    free = root(
        tmp_path,
        proc__self__cgroup="0::/system.slice/cdm.service\n",
        memoryDOTmax="max\n",
        system__x="",
        **{"system.slice__cdm.service__memory.max": "max\n", "system.slice__cdm.service__cpu.max": "max 100000\n"},
    )
    assert detected(free, 8) == Machine(8.0, 8 * GIB)


def test_the_tightest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    limited = root(
        tmp_path,
        proc__self__cgroup="0::/system.slice/cdm.service\n",
        **{
            "system.slice__memory.max": f"{GIB}\n",
            "system.slice__cdm.service__memory.max": f"{2 * GIB}\n",
            "system.slice__cpu.max": "400000 100000\n",
            "system.slice__cdm.service__cpu.max": "150000 100000\n",
        },
    )
    assert detected(limited, 8) == Machine(1.5, GIB)


def test_the_first_version_of_cgroups_is_read_too(tmp_path: Path) -> None:
    limited = root(
        tmp_path,
        proc__self__cgroup="12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
        **{
            # A container sees its own group at the top.
            "memory__memory.limit_in_bytes": f"{GIB}\n",
            "cpu__cpu.cfs_quota_us": "25000\n",
            "cpu__cpu.cfs_period_us": "100000\n",
        },
    )
    assert detected(limited, 4) == Machine(0.25, GIB)


def test_no_limit_in_the_first_version_is_none(tmp_path: Path) -> None:
    free = root(
        tmp_path,
        proc__self__cgroup="12:memory:/\n4:cpu,cpuacct:/\n",
        **{
            "memory__memory.limit_in_bytes": "9223372036854771712\n",
            "cpu__cpu.cfs_quota_us": "-1\n",
            "cpu__cpu.cfs_period_us": "100000\n",
        },
    )
    assert detected(free, 4) == Machine(4.0, 8 * GIB)


@pytest.mark.parametrize("groups", ["", "nonsense\n", "0::/../../outside\n", "0::relative"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, groups: str) -> None:
    odd = root(tmp_path, proc__self__cgroup=groups, **{"cpu.max": "nonsense", "memory.max": ""})
    assert detected(odd, 2) == Machine(2.0, 8 * GIB)


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert detected(tmp_path, 0) == Machine(None, None)


def test_this_machine_has_something() -> None:
    found = detected()
    assert found.cpu is not None
    assert 0 < found.cpu <= len(os.sched_getaffinity(0))
    assert found.memory is not None
    assert found.memory > 2**20


def test_what_is_kept_back_is_taken_off_and_never_leaves_less_than_nothing() -> None:
    assert Machine(4.0, 8 * GIB).less(Machine(0.1, GIB)) == Machine(3.9, 7 * GIB)
    assert Machine(4.0, 8 * GIB).less(Machine(None, None)) == Machine(4.0, 8 * GIB)
    assert Machine(1.0, GIB).less(Machine(2.0, 2 * GIB)) == Machine(0.0, 0)
    assert Machine(None, None).less(Machine(1.0, GIB)) == Machine(None, None)


def test_labels_are_named_as_in_container_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_labels()["os"] == "linux"
    for machine, arch in (("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert usual_labels()["arch"] == arch


@given(st.lists(st.floats(0, 4), min_size=1))
def test_load_is_told_in_steps_and_is_about_right(loads: list[float]) -> None:
    told = None
    for load in loads:
        told = coarse(load, told)
        assert abs(told - load) <= LOAD_STEP
        assert told % LOAD_STEP == 0


def test_load_does_not_flap_between_two_steps() -> None:
    told, said = None, []
    for load in (0.37, 0.38, 0.37, 0.4, 0.3, 0.45, 0.7, 0.68, 0.72):
        told = coarse(load, told)
        said.append(told)
    assert said == [0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.75, 0.75, 0.75]


def test_this_machines_load_is_known() -> None:
    load = Load()
    assert (load() or 0.0) >= 0.0


def test_of_what_nothing_is_left_is_told_by_name() -> None:
    machine = Machine(4.0, 2**30)
    assert machine.used_up(Machine(5.0, None)) == ["cpu"]
    assert machine.used_up(Machine(4.0, 2**30)) == ["cpu", "memory"]
    assert machine.used_up(Machine(1.0, 2**20)) == []
    assert Machine(0.0, None).used_up(Machine(1.0, 1)) == []
