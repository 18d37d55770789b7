"""What systemd does for slices, and what becomes of them without their node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from cdm.clock import now
from cdm.errors import SliceFailed, UsageError
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.limits import Limits
from cdm.model.manifest import Line, Manifest, Readiness, Restart, RestartPolicy
from cdm.model.secret import SecretForm, SecretRef
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.runtimes.secrets import Secrets
from cdm.runtimes.systemd import HEARD, UNITS, made
from cdm.runtimes.systemd.bus import Properties, RefusedBySystemd, SystemdBus
from cdm.runtimes.systemd.watchdog import ALONE

pytestmark = pytest.mark.anyio
NODE = NodeId("n1")
READY = Manifest(
    entry="run", stop_grace=5, readiness=Readiness(check=Line()), restart=Restart(policy=RestartPolicy.NEVER)
)
STAY = "echo READY=1; exec sleep 600"
PATIENCE = 60.0
NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
FORK = """
import os, signal
pids = []
try:
    while len(pids) < 20:
        pids.append(os.fork())
        if not pids[-1]:
            signal.pause()
except OSError:
    print(len(pids))
for pid in pids:
    os.kill(pid, 9)
"""
"""Tells how many processes there may be beside two."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Units:
    """A runtime, and scripts for it."""

    def __init__(self, folder: Path, outlive: float | None = 600.0) -> None:
        self.folder = folder
        self.outlive = outlive
        self.told: list[tuple[str, tuple[object, ...]]] = []
        (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
        self.runtime = self.another()

    def another(self) -> ProcessRuntime:
        """What the next process of the node makes."""
        runtime = made(
            Surroundings(
                NODE,
                self.folder / "node" / "runtime",
                crashed=lambda *told: self.told.append(("crashed", told)),
                restarting=lambda *told: self.told.append(("restarting", told)),
                restarted=lambda *told: self.told.append(("restarted", told)),
                secrets=Secrets(NODE, self.folder / "secrets"),
                outlive=self.outlive,
            )
        )
        assert isinstance(runtime, ProcessRuntime)
        self.runtime = runtime
        return runtime

    async def start(self) -> None:
        await self.runtime.start()
        self.runtime.heard(now())

    def work(self, script: str, manifest: Manifest = READY, name: str = "slice") -> Work:
        """An artifact of one script."""
        content = self.folder / "node" / name
        content.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = content / "run"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return Work(SliceKey(NODE, Artifact("org.example", name, "1.0.0")), content, manifest)

    async def up(self, work: Work) -> SliceKey:
        await self.runtime.load(work)
        await self.runtime.activate(work.key)
        return work.key

    async def wrote(self, key: SliceKey) -> list[str]:
        return [line.text async for line in self.runtime.output(key) if line.stream in ("out", "err")]

    @staticmethod
    async def until(holds: Callable[[], object]) -> None:
        """Wait until it holds."""
        with anyio.fail_after(PATIENCE):
            while not holds():  # noqa: ASYNC110  # of processes and files there are no events
                await anyio.sleep(0.02)


@pytest.fixture
async def units(tmp_path: Path) -> AsyncIterator[Units]:
    found = Units(tmp_path)
    await found.start()
    try:
        yield found
    finally:
        await found.runtime.close()
        assert not of_cdm(), "units are left"


def of_cdm() -> list[str]:
    """The units of slices that are loaded."""
    told = subprocess.run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", "cdm-*.service"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split()[0] for line in told.stdout.splitlines()]


def shown(*properties: str) -> dict[str, str]:
    """Of the only unit."""
    (unit,) = of_cdm()
    told = subprocess.run(
        ["systemctl", "show", unit, *(f"--property={each}" for each in properties)],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)


def is_there(path: str) -> bool:
    return Path(path).exists()


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def test_what_a_slice_is_and_may_do(units: Units) -> None:
    """A user, a folder and a /tmp of its own; nothing else may be written, and nothing of the node's may be read."""
    (units.folder / "node" / "credentials").write_text("of the node")
    script = f"""
    id -u; echo "$HOME"; cd; echo kept >> mine && cat mine
    touch /tmp/mine && echo tmp
    touch /usr/mine /var/lib/mine /etc/mine "$(dirname "$0")/mine" 2>/dev/null && echo written
    cat {units.folder}/node/credentials 2>/dev/null && echo read
    ls {units.folder}/node
    grep NoNewPrivs /proc/self/status
    env | grep -c -E '^(NOTIFY_SOCKET|WATCHDOG_USEC)='
    {STAY}"""
    key = await units.up(units.work(script))
    uid, home, kept, tmp, content, privileges, variables, ready = await units.wrote(key)
    assert int(uid) not in (0, 65534)
    assert home.startswith("/var/lib/private/cdm-slices/")
    assert (kept, tmp, content, variables, ready) == ("kept", "tmp", "slice", "0", "READY=1")
    assert privileges.split() == ["NoNewPrivs:", "1"]
    assert (Path(home) / "mine").read_text() == "kept\n"
    assert shown("Slice")["Slice"] == "cdm.slice"
    await units.runtime.deactivate(key)
    await units.runtime.activate(key)
    again = await units.wrote(key)
    assert again[8:10] == [uid, home], "it has the same user and folder when it is started again"
    assert again[10:12] == ["kept", "kept"]
    await units.runtime.unload(key)
    assert not is_there(home)


async def test_secrets_are_nobody_elses(units: Units) -> None:
    """Neither as a variable nor as a file are they shown by systemd; a file is a credential."""
    for name, value in (("one", 'o"ne $HOME `x` \\ two'), ("two", "the second")):
        (units.folder / "secrets" / name).write_text(value)
    script = f'printf "%s\\n" "$ONE" "$(cat "$TWO")" "$TWO"; {STAY}'
    work = units.work(script)
    key = await units.up(replace(work, secrets={"ONE": SecretRef("one"), "TWO": SecretRef("two", SecretForm.FILE)}))
    told = await units.wrote(key)
    one, two, path, _ = told
    assert (one, two) == ('o"ne $HOME `x` \\ two', "the second")
    assert path.startswith("/run/credentials/cdm-")
    properties = "\n".join(shown().values())
    assert "the second" not in properties
    assert 'o"ne' not in properties
    assert not list((units.folder / "node" / "runtime" / UNITS).glob("*.env")), "it has started"
    with pytest.raises(SliceFailed, match="BELL"):
        await units.up(units.work(STAY, replace(READY, env={"BELL": "\a"}), "other"))


async def test_limits_hold_for_all_processes_of_a_slice(units: Units) -> None:
    limits = Limits(memory=40_000_000, processes=5, open_files=50, cpu_seconds=1000)
    script = f"ulimit -n; /usr/bin/python3 -c '{FORK}'; {STAY}"
    key = await units.up(replace(units.work(script, replace(READY, limits=limits)), cores=2.0))
    assert await units.wrote(key) == ["50", "3", "READY=1"]
    assert shown("MemoryMax", "TasksMax", "CPUWeight", "LimitCPU") == {
        "MemoryMax": "40000000",
        "TasksMax": "5",
        "CPUWeight": "200",
        "LimitCPU": "1000",
    }
    await units.runtime.unload(key)
    wait = 'until [ -e "${0%/*}/go" ]; do sleep 0.05; done'
    greedy = units.work(
        f"echo READY=1; {wait}; exec /usr/bin/python3 -c 'x = list(range(10**9))'",
        replace(READY, limits=replace(limits, processes=None)),
    )
    await units.up(greedy)
    (greedy.folder / "go").touch()
    await units.until(lambda: units.told)
    _, (_, reason, fatal) = units.told[0]
    assert "memory limit" in str(reason)
    assert not fatal
    with pytest.raises(SliceFailed, match="file_size") as caught:
        await units.up(units.work(STAY, replace(READY, limits=Limits(file_size=1)), "other"))
    assert caught.value.fatal


async def test_what_cannot_be_run_is_refused(units: Units) -> None:
    work = units.work(STAY)
    (work.folder / "run").write_text("#!/nowhere/sh\n")
    with pytest.raises(SliceFailed, match="cannot be executed") as caught:
        await units.up(work)
    assert caught.value.fatal


async def test_what_systemd_cannot_do_now_it_may_do_soon(units: Units) -> None:
    """Where /run is full, for example: that is no fault of the slice."""
    made_there = "/run/systemd/transient"
    await anyio.run_process(["mkdir", "-p", made_there])
    work = units.work(STAY)
    await units.runtime.load(work)
    await anyio.run_process(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", made_there])
    try:
        with pytest.raises(SliceFailed, match="No space left") as caught:
            await units.runtime.activate(work.key)
    finally:
        await anyio.run_process(["umount", made_there])
    assert not caught.value.fatal
    await units.runtime.activate(work.key)
    assert len(of_cdm()) == 1


async def test_what_has_begun_although_nobody_said_so_is_ended(units: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd answers nobody while it is executed anew."""
    begin = SystemdBus.begin

    async def begin_and_say_nothing(bus: SystemdBus, unit: str, properties: Properties) -> None:
        await begin(bus, unit, properties)
        raise RefusedBySystemd(NO_REPLY, "systemd refuses: it is executed anew")

    monkeypatch.setattr(SystemdBus, "begin", begin_and_say_nothing)
    with pytest.raises(SliceFailed, match="executed anew") as caught:
        await units.up(units.work(STAY))
    assert not caught.value.fatal
    assert not of_cdm()


async def test_a_stop_that_is_refused_is_tried_again_after_a_while(
    units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await units.up(units.work(STAY))
    stop = SystemdBus.stop
    asked: list[float] = []

    async def refuse_for_a_moment(bus: SystemdBus, unit: str) -> None:
        asked.append(now())
        if asked[-1] - asked[0] < 0.1:
            raise RefusedBySystemd(NO_REPLY, "systemd refuses: it is executed anew")
        await stop(bus, unit)

    monkeypatch.setattr(SystemdBus, "stop", refuse_for_a_moment)
    await units.runtime.deactivate(key)
    assert units.runtime.slices == {key: False}
    assert len(asked) == 2


async def test_a_machine_without_watchdogs_is_no_use(units: Units) -> None:
    """Slices would not be stopped in time; and that does not change by itself."""
    await anyio.run_process(["systemctl", "service-watchdogs", "no"])
    try:
        with pytest.raises(UsageError, match="service-watchdogs yes"):
            await units.runtime.check_machine()
    finally:
        await anyio.run_process(["systemctl", "service-watchdogs", "yes"])


async def test_output_is_kept_while_the_node_is_away(units: Units) -> None:
    """Without a gap, and without a mark; and an end meanwhile is dealt with by the restart policy."""
    # Half of it at the most before the node is away.
    wait = 'until [ $i -lt 20 ] || [ -e "${0%/*}/go" ]; do sleep 0.05; done'
    count = f"i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.05; {wait}; done"
    script = f"echo READY=1; {count}; echo last >&2; exit 3"
    work = units.work(script)
    key = await units.up(work)
    pid = int(shown("MainPID")["MainPID"])
    await units.runtime.detach()
    (work.folder / "go").touch()
    await units.until(lambda: not lives(pid))
    units.another()
    await units.start()
    assert units.runtime.found == {key: work.folder}
    await units.runtime.adopt(work)
    await units.until(lambda: units.told)
    what, (_, reason, _) = units.told[0]
    assert what == "crashed"
    assert "exit status 3" in str(reason)
    assert "last" in str(reason)
    assert await units.wrote(key) == ["READY=1", *map(str, range(1, 41)), "last"]
    remarks = [line.text async for line in units.runtime.output(key) if line.stream == "cdm"]
    assert remarks == ["ended: exit status 3"]


async def test_units_that_nobody_knows_are_ended(units: Units) -> None:
    """And whatever lies about of runs that were never begun."""
    await units.up(units.work(STAY))
    pid = int(shown("MainPID")["MainPID"])
    await units.runtime.detach()
    records = units.folder / "node" / "runtime" / UNITS
    for each in records.glob("*.json"):
        each.unlink()
    (records / "never.env").touch()
    units.another()
    await units.start()
    assert units.runtime.found == {}
    await units.until(lambda: not lives(pid) and not of_cdm())
    assert not (records / "never.env").exists()


@pytest.mark.parametrize("what", ["the bus", "systemd"])
async def test_systemd_and_its_bus_may_start_anew(units: Units, what: str) -> None:
    """Nothing that runs notices; and the node goes on with it."""
    work = replace(units.work("trap 'exit 3' USR1; echo READY=1; while :; do sleep 0.1; done"), stop_after=600.0)
    key = await units.up(work)
    pid = int(shown("MainPID")["MainPID"])
    if what == "the bus":
        await anyio.run_process(["systemctl", "kill", "--signal=SIGKILL", "dbus.service"])
    else:
        await anyio.run_process(["systemctl", "daemon-reexec"])
    assert lives(pid)
    os.kill(pid, signal.SIGUSR1)
    await units.until(lambda: units.told)
    _, (_, reason, _) = units.told[0]
    assert "exit status 3" in str(reason)
    await units.up(units.work(STAY))
    assert units.runtime.slices == {key: True}


NODE_PROCESS = """
import asyncio, sys
from pathlib import Path
from cdm.clock import now
from tests.systemd.within.test_units import READY, STAY, Units
from msgspec.structs import replace

async def main():
    units = Units(Path(sys.argv[1]), None)
    await units.start()
    beating = asyncio.create_task(beat(units))
    await units.up(replace(units.work(STAY), stop_after=5.0))
    await units.up(units.work(STAY, name="other"))
    print("up", flush=True)
    await beating

async def beat(units):
    while True:
        units.runtime.heard(now())
        await asyncio.sleep(0.2)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_what_must_not_run_twice_is_stopped_by_systemd(tmp_path: Path, number: int) -> None:
    """Where the node is frozen or dead. What may run twice is left alone for longer, and found by the next process."""
    process = await anyio.open_process([sys.executable, "-c", NODE_PROCESS, str(tmp_path)], stderr=None)
    assert process.stdout is not None
    try:
        assert (await process.stdout.receive()).strip() == b"up"
        pids = {unit: main_pid(unit) for unit in of_cdm()}
        assert len(pids) == 2
        await anyio.sleep(1.0)
        before = now()
        os.kill(process.pid, number)
        await Units.until(lambda: not all(map(lives, pids.values())))
        took = now() - before
        assert 2.5 < took < ALONE - 3, "five seconds after the last heartbeat, on a machine that may be slow"
        assert sum(map(lives, pids.values())) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.aclose()
    again = Units(tmp_path)
    await again.start()
    assert len(again.runtime.found) == 2
    await again.runtime.close()
    assert not any(map(lives, pids.values()))
    assert not of_cdm()


async def test_what_the_leader_may_have_replaced_is_not_kept_alive_by_who_is_not_heard(
    tmp_path: Path,
) -> None:
    """One that is refused, and started again and again, takes over what runs each time."""
    units = Units(tmp_path, outlive=5.0)
    await units.start()
    try:
        await units.up(units.work(STAY))
        pid = int(shown("MainPID")["MainPID"])
        await units.runtime.detach()
        (tmp_path / "node" / "runtime" / HEARD).write_text(repr(now() - 100))
        await units.another().start()
        await units.until(lambda: not lives(pid))
    finally:
        await units.runtime.close()


def main_pid(unit: str) -> int:
    told = subprocess.run(
        ["systemctl", "show", unit, "--property=MainPID", "--value"], capture_output=True, text=True, check=True
    )
    return int(told.stdout)
