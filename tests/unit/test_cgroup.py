"""Where control groups are made, and what is written there. Folders stand in for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdm.model.limits import Limits
from cdm.runtimes.keeper import cgroup
from cdm.runtimes.keeper.cgroup import Cgroups, own_group
from cdm.runtimes.keeper.ending import told_of_ending
from cdm.runtimes.keeper.spawn import rlimits

UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 32 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
NAMESPACED = "35 24 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("mounts", "groups", "path"),
    [
        (UNIFIED, "0::/system.slice/cdm.service\n", "/sys/fs/cgroup/system.slice/cdm.service"),
        (UNIFIED, "0::/\n", "/sys/fs/cgroup"),
        (HYBRID, "8:memory:/a\n0::/b\n", "/sys/fs/cgroup/unified/b"),
        (NAMESPACED, "0::/docker/abc/node\n", "/sys/fs/cgroup/node"),
        (HYBRID, "8:memory:/a\n", None),
        ("33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "0::/\n", None),
        ("", "", None),
    ],
)
def test_the_own_group(mounts: str, groups: str, path: str | None) -> None:
    assert own_group(mounts, groups) == path


def test_limits_go_where_there_is_a_controller(tmp_path: Path) -> None:
    limits = Limits(memory=1000, processes=7)
    both = Cgroups(str(tmp_path), frozenset({"memory", "pids"})).add("both", limits)
    assert {each.name: each.read_text() for each in Path(both).iterdir()} == {
        "memory.max": "1000",
        "memory.oom.group": "1",
        "pids.max": "7",
    }
    assert not any(Path(Cgroups(str(tmp_path), frozenset()).add("none", limits, 0.5)).iterdir())
    assert not any(Path(Cgroups(str(tmp_path), frozenset({"memory", "pids"})).add("unlimited", Limits())).iterdir())


@pytest.mark.parametrize(("cores", "weight"), [(0.5, "50"), (0.001, "1"), (2, "200"), (1000, "10000")])
def test_processors_are_shared_by_what_is_reserved(tmp_path: Path, cores: float, weight: str) -> None:
    group = Cgroups(str(tmp_path), frozenset({"cpu"})).add("one", Limits(memory=1000, processes=7), cores)
    assert {each.name: each.read_text() for each in Path(group).iterdir()} == {"cpu.weight": weight}
    assert not any(Path(Cgroups(str(tmp_path), frozenset({"cpu"})).add("other", Limits())).iterdir())


def test_processes_are_limited_by_one_of_them() -> None:
    limits = Limits(processes=7, memory=1000)
    assert sorted(rlimits(limits).values()) == [7, 1000]
    assert list(rlimits(limits, grouped=frozenset({"pids"})).values()) == [1000]
    assert rlimits(Limits()) == {}
    assert list(rlimits(Limits(cpu_seconds=0)).values()) == [0]


def test_a_group_that_is_not_there_holds_nobody(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert cgroup.members(nowhere) == set()
    cgroup.kill(nowhere)
    cgroup.remove(nowhere)


def test_members_of_groups_below_are_members(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "cgroup.procs").write_text("1\n2\n")
    (tmp_path / "below" / "cgroup.procs").write_text("3\n")
    assert cgroup.members(str(tmp_path)) == {1, 2, 3}


ITS_OWN, OF_OTHERS, NONE = "max 4\noom 1\noom_kill 2\n", "max 0\noom 0\noom_kill 1\n", "max 9\noom 0\noom_kill 0\n"
MACHINE = "the machine, or all that the node may use of it, was out of memory"


@pytest.mark.parametrize(
    ("status", "events", "said"),
    [
        (-9, ITS_OWN, "killed: over its memory limit of 64Mi"),
        (1, ITS_OWN, "exit status 1 (a process of it was killed: over its memory limit of 64Mi)"),
        (-9, OF_OTHERS, f"killed: {MACHINE}"),
        (-9, NONE, "killed by SIGKILL (its memory limit is 64Mi)"),
        (-6, None, "killed by SIGABRT (its memory limit is 64Mi)"),
        (1, None, "exit status 1 (its memory limit is 64Mi)"),
        (0, ITS_OWN, "exit status 0"),
        (-15, NONE, "killed by SIGTERM"),
        (-24, NONE, "killed by SIGXCPU (its limit is 7 s of CPU time)"),
        (-25, NONE, "killed by SIGXFSZ (the largest file that it may write has 1,000 bytes)"),
        (-63, NONE, "killed by signal 63"),
    ],
)
def test_the_limit_that_ended_a_program_is_named(tmp_path: Path, status: int, events: str | None, said: str) -> None:
    limits = Limits(memory=64 * 2**20, cpu_seconds=7, file_size=1000)
    if events is not None:
        (tmp_path / "memory.events").write_text(f"low 0\nhigh 0\n{events}oom_group_kill 0\n")
    assert told_of_ending(status, limits, str(tmp_path)) == said
    plain = said.partition(" (")[0]
    if not said.startswith("killed: "):
        assert told_of_ending(status, limits, str(tmp_path), asked=True) == plain, (
            "it was stopped: no limit was in the way"
        )
    if events is None:
        assert told_of_ending(status, limits, None) == said
        assert told_of_ending(status, Limits(), None) == plain
