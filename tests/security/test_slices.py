"""What a slice can do to its node, to other slices and to the machine, as the program that tries it says.

Slices are given users of their own only by root, and so these tests need root.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cdm import clock
from cdm.cli import Exit
from cdm.errors import SliceFailed
from cdm.model.artifact import Artifact
from cdm.model.keys import SliceKey
from cdm.model.limits import Limits
from cdm.model.manifest import Line, Manifest, Readiness, Tcp
from cdm.model.secret import SecretForm, SecretRef
from cdm.output.reading import folder_name
from cdm.runtimes import Secrets, Surroundings, Work
from cdm.runtimes.process.claims import Claims
from cdm.runtimes.process.given import SECRETS
from cdm.runtimes.process.kept import end_kept
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.runtimes.process.users import HOMES, Users
from cdm.runtimes.run_as import OneUser, RunAs, UserRange, runs_python
from tests.harness import processes as node_harness
from tests.harness.proc import exists, read
from tests.harness.processes import command_line, environment, node_processes
from tests.harness.programs import NODE
from tests.harness.servers import NatsServer
from tests.harness.serving import Hand, made, yard
from tests.harness.waiting import eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives slices users of their own"),
]

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Registries are each test's own here: what runs beside it must not be given the same numbers."""
RANGE = UserRange(1_950_000_000 + 10_000 * WORKER, 1_950_000_999 + 10_000 * WORKER)
"""Nobody's, and not the one that nodes of this machine take."""

TRY = """\
#!{python}
import ctypes, errno, json, os, socket, subprocess, sys, time

def tried(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def write(path):
    with open(path, "ab") as file:
        file.write(b"")

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None):
        raise OSError(ctypes.get_errno(), "")

def into(path):
    os.close(os.open(os.path.join(path, "new"), os.O_CREAT | os.O_WRONLY, 0o600))

def say(**told):
    print(json.dumps(told), flush=True)

{program}
"""


def python_for_all() -> str:
    """A Python that every user may run."""
    if runs_python(RANGE):
        return os.path.realpath("/proc/self/exe")
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    if found is None:
        pytest.skip("no Python that others than root may run")
    return found


class Ward:
    """A runtime whose slices are others, and what they said."""

    def __init__(self, top: Path, run_as: RunAs = RANGE) -> None:
        self.top = top
        self.folder = top / "node"
        self.run_as = run_as
        self.registry = top / "users"
        self.runtime = self.another()

    def another(self, run_as: RunAs | None = None, folder: str = "node", *, cgroups: bool = True) -> ProcessRuntime:
        """One more runtime, on the same folder unless it is said."""
        chosen = run_as or self.run_as
        runtime = self.top / folder / "runtime"
        runtime.mkdir(parents=True, exist_ok=True)
        for each in (self.top / folder, self.top / folder / "artifacts"):
            each.mkdir(exist_ok=True)
            each.chmod(0o711)
        claims = Claims(chosen, self.registry) if isinstance(chosen, UserRange) else None
        told = Surroundings(NODE, runtime, lambda *_: None, secrets=Secrets(NODE, self.top / "secrets"), outlive=600.0)
        return ProcessRuntime(told, users=Users(runtime, chosen, claims), cgroups=cgroups)

    def content(self, program: str, name: str = "one") -> Path:
        """What a node has fetched: an artifact of one script."""
        folder = self.folder / "artifacts" / name
        folder.mkdir(mode=0o700, exist_ok=True)
        script = folder / "run"
        script.unlink(missing_ok=True)
        script.write_text(TRY.replace("{python}", python_for_all()).replace("{program}", program))
        script.chmod(0o555)
        (folder / "data").write_text("data")
        (folder / "data").chmod(0o444)
        return folder

    def work(
        self, program: str, name: str = "one", ordinal: int = 0, *, env: dict[str, Any] | None = None, **manifest: Any
    ) -> Work:
        """A slice of an artifact with this name."""
        key = SliceKey(NODE, Artifact("org.example", name, "1.0.0"), ordinal)
        told = {"readiness": Readiness(check=Line("up")), "stop_grace": 0.2, **manifest}
        return Work(key, self.content(program, name), Manifest(entry="run", env=env or {}, **told))

    async def up(self, program: str, name: str = "one", ordinal: int = 0, **manifest: Any) -> SliceKey:
        """Load a slice, and start it: it goes on after what is said here."""
        work = self.work(f"{program}\nprint('up', flush=True)\ntime.sleep(600)", name, ordinal, **manifest)
        await self.runtime.load(work)
        await self.runtime.activate(work.key)
        return work.key

    async def said(self, key: SliceKey) -> dict[str, Any]:
        """What a slice told."""
        lines = [line.text async for line in self.runtime.output(key) if line.stream == "out"]
        told: dict[str, Any] = {}
        for line in lines:
            if line.startswith("{"):
                told |= json.loads(line)
        return told

    def home(self, key: SliceKey) -> Path:
        """What a slice has of its own."""
        return self.folder / "runtime" / HOMES / folder_name(key)

    def uid(self, key: SliceKey) -> int:
        """Its user."""
        return self.home(key).lstat().st_uid


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that others can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="cdm-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def ward(top: Path) -> AsyncIterator[Ward]:
    made = Ward(top)
    await made.runtime.start()
    yield made
    await made.runtime.close()


async def test_it_is_nobody_and_stays_so(ward: Ward) -> None:
    key = await ward.up(
        """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
say(
    ids=[*os.getresuid(), *os.getresgid()], groups=os.getgroups(), umask=os.umask(0),
    caps=[status[f"Cap{each}"].strip() for each in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
    nnp=status["NoNewPrivs"].strip(), home=os.environ["HOME"], tmp=os.environ["TMPDIR"],
    to_root=[tried(os.setuid, 0), tried(os.setgid, 0), tried(os.setgroups, [0]), tried(os.chroot, "/")],
    port=tried(socket.socket().bind, ("127.0.0.1", 1)),
)
"""
    )
    said = await ward.said(key)
    uid, gid = said["ids"][0], said["ids"][3]
    assert said["ids"] == [uid] * 3 + [gid] * 3
    assert uid in RANGE
    assert gid in RANGE
    assert uid == ward.uid(key)
    assert said["groups"] == []
    assert said["umask"] == 0o077
    assert {*said["caps"]} == {"0" * 16}
    assert said["nnp"] == "1"
    assert said["to_root"] == ["EPERM"] * 4
    assert said["home"] == str(ward.home(key))
    assert said["tmp"] == str(ward.home(key) / "tmp")
    assert stat.S_IMODE(ward.home(key).stat().st_mode) == 0o700


async def test_a_program_with_set_user_id_gives_it_nothing(ward: Ward) -> None:
    helper = ward.top / "id"
    shutil.copyfile("/usr/bin/id", helper)
    helper.chmod(0o6755)
    key = await ward.up(f"say(id=subprocess.run([{str(helper)!r}, '-u'], capture_output=True, text=True).stdout)")
    assert (await ward.said(key))["id"].strip() == str(ward.uid(key))


async def test_it_reads_and_runs_its_artifact_and_writes_where_it_may(ward: Ward) -> None:
    key = await ward.up(
        """
own = os.getcwd()
say(
    data=open("data").read(), listed=sorted(os.listdir(own)),
    changes=[
        tried(write, own + "/data"), tried(into, own), tried(os.chmod, own + "/run", 0o777),
        tried(os.unlink, own + "/data"), tried(os.rename, own + "/data", own + "/other"), tried(os.chmod, own, 0o777),
    ],
    places=[tried(into, os.environ["HOME"]), tried(into, os.environ["TMPDIR"]), tried(write, "/dev/stdout")],
)
"""
    )
    said = await ward.said(key)
    assert said["data"] == "data"
    assert said["listed"] == ["data", "run"]
    assert {*said["changes"]} <= {"EACCES", "EPERM"}
    assert said["places"] == ["done"] * 3


async def test_another_slice_is_out_of_its_reach(ward: Ward) -> None:
    other = await ward.up("into(os.environ['HOME'])\nsay(pid=os.getpid())", "other")
    pid = (await ward.said(other))["pid"]
    twin = await ward.up("into(os.environ['HOME'])\nsay(pid=os.getpid())", "one", 1)
    home, content = ward.home(other), ward.folder / "artifacts" / "other"
    key = await ward.up(
        f"""
pid, home, content, twin = {pid}, {str(home)!r}, {str(content)!r}, {str(ward.home(twin))!r}
say(
    process=[tried(read, f"/proc/{{pid}}/{{each}}") for each in ("environ", "mem", "maps")]
    + [tried(os.listdir, f"/proc/{{pid}}/fd"), tried(os.kill, pid, 9), tried(attach, pid)],
    files=[
        tried(os.listdir, home), tried(read, home + "/new"), tried(into, home), tried(os.listdir, content),
        tried(read, content + "/data"), tried(read, content + "/run"), tried(os.listdir, twin),
        tried(read, twin + "/new"),
    ],
)
"""
    )
    said = await ward.said(key)
    assert {*said["process"]} <= {"EACCES", "EPERM"}, said
    assert {*said["files"]} == {"EACCES"}, said
    assert exists(pid)
    assert ward.uid(twin) != ward.uid(key)
    assert ward.home(twin).stat().st_gid == ward.home(key).stat().st_gid, "they share their artifact"


async def test_the_next_process_of_the_node_goes_on_with_it_as_the_same_user(ward: Ward) -> None:
    """Its files, and those with its secrets, stay; as another user it does not go on."""
    folder = ward.top / "secrets"
    folder.mkdir(mode=0o700)
    (folder / "password").write_text("open sesame")
    says = "say(pid=os.getpid())\nprint('up', flush=True)\ntime.sleep(600)"
    secret = {"PASSWORD": SecretRef("password", SecretForm.FILE)}
    works = [replace(ward.work(says, "one", ordinal), secrets=secret) for ordinal in range(2)]
    for work in works:
        await ward.runtime.load(work)
        await ward.runtime.activate(work.key)
        (ward.home(work.key) / "file").write_text("")
    pids = [(await ward.said(work.key))["pid"] for work in works]
    users = [ward.uid(work.key) for work in works]
    first, second = works
    ward.runtime.heard(clock.now())

    await ward.runtime.detach()
    ward.runtime = ward.another()
    await ward.runtime.start()
    ward.runtime.listed([work.key for work in works])
    assert dict(ward.runtime.found) == {work.key: work.folder for work in works}
    assert ward.runtime.slices == {}
    await ward.runtime.adopt(first)
    with pytest.raises(SliceFailed, match="is not what is to run"):
        await ward.runtime.adopt(replace(second, cores=2.0))
    assert [exists(pid) for pid in pids] == [True, False]
    assert ward.runtime.slices == {first.key: True}
    assert ward.runtime.found == {}
    assert ward.uid(first.key) == users[0]
    assert (ward.home(first.key) / "file").exists()
    given = ward.folder / "runtime" / SECRETS
    (run,) = given.iterdir()
    assert (run / "password").read_text() == "open sesame"

    await ward.runtime.detach()
    ward.runtime = ward.another(OneUser(1_950_001_000, 1_950_001_000))
    await ward.runtime.start()
    with pytest.raises(SliceFailed, match="is not what is to run"):
        await ward.runtime.adopt(first)
    assert not exists(pids[0])
    assert not list(given.iterdir())


async def test_files_of_its_secrets_are_for_it_alone(ward: Ward) -> None:
    folder = ward.top / "secrets"
    folder.mkdir(mode=0o700)
    (folder / "password").write_text("open sesame")
    shows = "say(path=os.environ['PASSWORD'], secret=open(os.environ['PASSWORD']).read())"
    work = ward.work(f"{shows}\nprint('up', flush=True)\ntime.sleep(600)", "other")
    work = replace(work, secrets={"PASSWORD": SecretRef("password", SecretForm.FILE)})
    await ward.runtime.load(work)
    await ward.runtime.activate(work.key)
    said = await ward.said(work.key)
    assert said["secret"] == "open sesame"
    path = Path(said["path"])
    key = await ward.up(
        f"""
path = {str(path)!r}
say(all=[tried(read, path), tried(os.listdir, os.path.dirname(path)), tried(into, os.path.dirname(path))])
"""
    )
    assert (await ward.said(key))["all"] == ["EACCES"] * 3


async def test_keeper_and_logs_are_out_of_its_reach(ward: Ward) -> None:
    runtime = ward.folder / "runtime"
    key = await ward.up(
        f"""
keeper, node, runtime = {ward.runtime.keeper}, {os.getpid()}, {str(runtime)!r}
say(
    processes=[
        tried(call, pid) for pid in (keeper, node)
        for call in (lambda pid: read(f"/proc/{{pid}}/environ"), lambda pid: read(f"/proc/{{pid}}/mem"),
                     lambda pid: os.listdir(f"/proc/{{pid}}/fd"), lambda pid: os.kill(pid, 9), attach)
    ],
    folders=[
        tried(os.listdir, each)
        for each in (runtime, runtime + "/..", runtime + "/../artifacts", runtime + "/logs", runtime + "/slices")
    ],
    changes=[tried(into, runtime), tried(into, runtime + "/slices"), tried(write, runtime + "/token")],
)
"""
    )
    said = await ward.said(key)
    assert {*said["processes"]} <= {"EACCES", "EPERM"}, said
    assert {*said["folders"], *said["changes"]} == {"EACCES"}, said


# What it leaves behind


ESCAPE = """
def escape():
    for _ in range(2):
        if os.fork():
            return
        os.setsid()
    with open(os.environ["HOME"] + "/pid", "w") as file:
        file.write(str(os.getpid()))
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
escape()
"""
"""Leaves a process that is nobody's child, in no session of the slice, and has nothing in its environment."""


async def escaped(home: Path) -> int:
    """The pid of what `ESCAPE` left, once it sleeps.

    Args:
        home: what the slice has of its own.
    """
    file = home / "pid"
    await eventually(lambda: file.exists() and file.read_text() != "")
    pid = int(file.read_text())
    await eventually(lambda: Path(f"/proc/{pid}/environ").read_bytes() == b"")
    return pid


@pytest.mark.parametrize("cgroups", [True, False])
async def test_no_process_of_it_outlives_it(top: Path, cgroups: bool) -> None:
    ward = Ward(top)
    ward.runtime = ward.another(cgroups=cgroups)
    await ward.runtime.start()
    try:
        other = await ward.up("", "other")
        key = await ward.up(ESCAPE)
        pid = await escaped(ward.home(key))
        home = ward.home(key)
        await ward.runtime.unload(key)
        assert not exists(pid)
        assert not home.exists()
        assert ward.runtime.slices == {other: True}
    finally:
        await ward.runtime.close()


async def test_everything_of_it_dies_with_its_keeper_and_is_ended_after_that(ward: Ward) -> None:
    key = await ward.up(ESCAPE + "say(pid=os.getpid())")
    pids = [await escaped(ward.home(key)), (await ward.said(key))["pid"]]
    keeper = ward.runtime.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: not any(map(exists, pids)), what="the parent-death signal, and the sweep")
    await eventually(lambda: ward.runtime.keeper not in (None, keeper))


async def test_what_is_known_by_its_user_alone_ends_where_its_node_is_given_up(top: Path) -> None:
    """With its keeper dead, and whatever range the node was given."""
    ward = Ward(top)
    ward.runtime = ward.another(cgroups=False)
    await ward.runtime.start()
    key = await ward.up(ESCAPE)
    pid, keeper = await escaped(ward.home(key)), ward.runtime.keeper
    assert keeper is not None
    await ward.runtime.detach()
    os.kill(keeper, signal.SIGKILL)
    ended = await end_kept(ward.folder / "runtime", ward.registry)
    if lives := exists(pid):
        os.kill(pid, signal.SIGKILL)
    assert not lives
    assert (ended.slices, ended.problems) == (0, ())


async def test_its_files_go_and_lead_nowhere(ward: Ward) -> None:
    victim = ward.top / "victim"
    victim.mkdir(mode=0o777)
    (victim / "file").write_text("kept")
    key = await ward.up(
        f"""
tmp = os.environ["TMPDIR"]
os.symlink({str(victim)!r}, tmp + "/link")
os.symlink({str(victim / "file")!r}, os.environ["HOME"] + "/link")
os.mkdir(tmp + "/closed")
into(tmp + "/closed")
os.chmod(tmp + "/closed", 0)
os.chdir(tmp)
for _ in range(3000):
    os.mkdir("deep")
    os.chdir("deep")
"""
    )
    home = ward.home(key)
    await ward.runtime.unload(key)
    assert not home.exists()
    assert (victim / "file").read_text() == "kept"
    assert victim.stat().st_uid == 0


async def test_limits_of_processes_hold_for_each_slice(ward: Ward) -> None:
    forks = """
def fork():
    if not os.fork():
        time.sleep(600)
count = 0
while count < 60 and tried(fork) == "done":
    count += 1
say(count=count)
"""
    limits = Limits(processes=20)
    keys = [await ward.up(forks, "one", ordinal, limits=limits) for ordinal in range(2)]
    assert [(await ward.said(key))["count"] for key in keys] == [19, 19]


# Who has which user


def test_a_slice_keeps_its_user_while_its_folder_lives(top: Path) -> None:
    ward = Ward(top)
    users, content = Users(ward.folder / "runtime", RANGE, Claims(RANGE, ward.registry)), ward.content("")
    users.start()
    first = users.lodge("a", content)
    (first.home / "file").write_text("")
    again = Users(ward.folder / "runtime", RANGE, Claims(RANGE, ward.registry))
    again.start()
    assert again.taken() == {first.user.uid}
    assert again.lodge("a", content) == first
    assert (first.home / "file").exists()
    again.clear_all_but(["b"])
    assert first.home.exists(), "it is lodged"
    again.clear("a")
    assert not first.home.exists()
    assert again.taken() == set()
    assert {each.name for each in ward.registry.iterdir()} == {str(first.user.gid)}


def test_no_two_nodes_give_the_same(top: Path) -> None:
    ward, few = Ward(top), UserRange(1_950_000_000, 1_950_000_004)
    content = ward.content("")
    wards = []
    for name in ("node", "other"):
        ward.another(few, name)
        users = Users(top / name / "runtime", few, Claims(few, ward.registry))
        users.start()
        wards.append(users)
    given = [users.lodge("a", content).user for users in wards] + [wards[0].lodge("b", content).user]
    assert len({user.uid for user in given} | {user.gid for user in given}) == 4
    wards[1].lodge("b", content)
    with pytest.raises(SliceFailed, match="all users of --run-as-range 1950000000-1950000004 are taken"):
        wards[1].lodge("c", content)
    shutil.rmtree(top / "other")
    assert wards[0].lodge("c", content).user.uid in few, "what was taken of a folder that is gone is free"


def test_a_number_that_a_directory_gave_to_somebody_is_left_out(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SSSD does: no file names the user."""

    def found(number: int) -> object:
        place = os.open(top / "users", os.O_RDONLY)
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)  # while the directory is asked nobody else waits
        os.close(place)
        if number != few.last:
            return object()
        raise KeyError

    few = UserRange(1_950_000_000, 1_950_000_004)
    monkeypatch.setattr("pwd.getpwuid", found)
    claims = Claims(few, top / "users")
    claims.open()
    descriptor = os.open(top, os.O_RDONLY)
    try:
        assert claims.claim(top, descriptor) == few.last
        with pytest.raises(SliceFailed, match="are taken"):
            claims.claim(top / "other", descriptor)
    finally:
        os.close(descriptor)


def test_a_number_is_not_given_while_a_process_has_it(top: Path) -> None:
    one = UserRange(1_950_000_000, 1_950_000_000)
    claims = Claims(one, top / "users")
    claims.open()
    (top / "users" / "1950000000").symlink_to("/nowhere")
    with subprocess.Popen(["sleep", "600"], user=one.first) as process:
        claims.open()
        process.kill()
    assert [each.name for each in (top / "users").iterdir()] == ["1950000000"]
    claims.open()
    assert not [*(top / "users").iterdir()]


async def test_what_was_left_is_cleared_once_the_slices_are_known(top: Path) -> None:
    ward = Ward(top)
    users, content = Users(ward.folder / "runtime", RANGE, Claims(RANGE, ward.registry)), ward.content("")
    users.start()
    kept, gone = ward.work("").key, ward.work("", "other").key
    homes = [users.lodge(folder_name(key), content).home for key in (kept, gone)]
    await ward.runtime.start()
    try:
        ward.runtime.listed([kept])
        await eventually(lambda: not homes[1].exists())
        assert homes[0].exists()
        await ward.runtime.unload(kept)  # it was never loaded by this process
        assert not homes[0].exists()
    finally:
        await ward.runtime.close()


# Folders of earlier times


def test_what_a_slice_has_is_handed_over_and_nothing_else(top: Path) -> None:
    ward = Ward(top)
    content, victim = ward.content(""), top / "victim"
    victim.mkdir()
    (victim / "mine").write_text("")
    os.chown(victim / "mine", 12345, 12345)
    before = Users(ward.folder / "runtime", OneUser(12345, 12345), None)
    before.start()
    home = before.lodge("a", content).home
    (home / "sub").mkdir()
    (home / "sub" / "file").write_text("")
    (home / "linked").hardlink_to(victim / "mine")
    (home / "link").symlink_to(victim)
    (home / "roots").write_text("")
    for each in ("sub", "sub/file", "link"):
        os.chown(home / each, 12345, 12345, follow_symlinks=False)
    after = Users(ward.folder / "runtime", RANGE, Claims(RANGE, ward.registry))
    after.start()
    uid = after.lodge("a", content).user.uid
    owners = {each: (home / each).lstat().st_uid for each in ("", "sub", "sub/file", "link", "linked", "roots")}
    assert owners == {"": uid, "sub": uid, "sub/file": uid, "link": uid, "linked": 12345, "roots": 0}
    assert victim.stat().st_uid == 0
    assert (victim / "mine").stat().st_uid == 12345


@pytest.mark.parametrize("trap", ["slices", "slice", "logs", "roots"])
async def test_what_was_planted_there_is_not_followed(top: Path, trap: str) -> None:
    ward = Ward(top)
    victim, runtime = top / "victim", ward.folder / "runtime"
    victim.mkdir()
    (victim / "file").write_text("kept")
    key = ward.work("").key
    if trap == "slice":
        (runtime / HOMES).mkdir()
        ward.home(key).symlink_to(victim)
    elif trap == "roots":
        ward.home(key).mkdir(parents=True)
        (ward.home(key) / "file").hardlink_to(victim / "file")
    else:
        (runtime / trap).symlink_to(victim)
    mode = victim.stat().st_mode
    await ward.runtime.start()
    try:
        assert await ward.up("") == key
        assert ward.uid(key) in RANGE
        assert not ward.home(key).is_symlink()
    finally:
        await ward.runtime.close()
    assert [each.name for each in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "kept"
    assert (victim.stat().st_uid, victim.stat().st_mode) == (0, mode)
    assert (victim / "file").stat().st_uid == 0


async def test_one_user_for_all_of_them(top: Path) -> None:
    ward = Ward(top, OneUser(12345, 12346))
    await ward.runtime.start()
    try:
        keys = [await ward.up("say(ids=[os.getuid(), os.getgid()], tmp=os.environ['TMPDIR'])", name) for name in "ab"]
        said = [await ward.said(key) for key in keys]
        assert [each["ids"] for each in said] == [[12345, 12346]] * 2
        assert said[0]["tmp"] != said[1]["tmp"]
        await ward.runtime.unload(keys[0])
        assert ward.runtime.slices == {keys[1]: True}
        assert not ward.home(keys[0]).exists()
    finally:
        await ward.runtime.close()


async def test_a_port_that_it_has_itself_is_no_strangers(ward: Ward) -> None:
    key = await ward.up(
        "server = socket.create_server(('127.0.0.1', int(os.environ['CDM_PORT'])))",
        port="auto",
        readiness=Readiness(check=Tcp(), timeout=20),
    )
    assert ward.runtime.slices == {key: True}


async def test_a_program_that_it_may_not_run_is_told_as_such(ward: Ward) -> None:
    program = ward.top / "closed" / "program"
    program.parent.mkdir(mode=0o700)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    work = ward.work("")
    work = Work(work.key, work.folder, Manifest(entry="program", env={"PATH": str(program.parent)}))
    await ward.runtime.load(work)
    with pytest.raises(SliceFailed, match=r"user 19500\d+, which this slice runs as, may not run it") as caught:
        await ward.runtime.activate(work.key)
    assert caught.value.fatal


# The whole of it: a real node, whose credentials are there to be taken

PASSWORD = "a-long-password"
INTRUDER = """
node, keeper, seed, artifacts = {node}, os.getppid(), {seed!r}, {artifacts!r}
calls = (
    lambda pid: read(f"/proc/{{pid}}/environ"), lambda pid: read(f"/proc/{{pid}}/mem"),
    lambda pid: os.listdir(f"/proc/{{pid}}/fd"), lambda pid: os.kill(pid, 9), attach,
)
say(
    processes=[tried(call, pid) for pid in (node, keeper) for call in calls],
    files=[
        tried(read, seed), tried(os.listdir, artifacts), tried(into, artifacts), tried(os.listdir, artifacts + "/..")
    ],
    others=[tried(os.listdir, artifacts + "/" + each) for each in sys.argv[1:]],
    own=[tried(read, __file__), tried(write, __file__), tried(os.listdir, os.path.dirname(__file__))],
)
print("up", flush=True)
time.sleep(600)
"""


async def test_a_node_and_its_credentials_are_out_of_reach(
    server: NatsServer, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {**environment(), "NATS_USER": "node-1", "NATS_PASSWORD": PASSWORD}
    monkeypatch.setattr(node_harness, "environment", lambda: known)
    seed, folder = top / "node-1.nk", top / "n1"
    seed.write_text("SUAM")
    seed.chmod(0o600)
    ready = Manifest(readiness=Readiness(check=Line("up")), stop_grace=0.2)
    options = ("--role", "agent", "--runtime", "process", "--folder", str(folder), "--run-as-range", str(RANGE))
    async with yard(server, top) as ground:
        await made(server, ground.user)
        hand = Hand(ground.user)

        async def up(name: str, *others: str) -> str:
            program = INTRUDER.format(node=node.pid, seed=str(seed), artifacts=str(folder / "artifacts"))
            source = top / name
            source.write_text(TRY.replace("{python}", python_for_all()).replace("{program}", f"# {name}\n{program}"))
            await ground.push_file(Artifact("g", name, "1"), source, replace(ready, args=others))
            await hand.up(hand.key(f"g/{name}/1"))
            return hand.key(f"g/{name}/1")

        def users() -> dict[str, int]:
            return {each.name: each.lstat().st_uid for each in (folder / "runtime" / HOMES).iterdir()}

        with node_processes(server, top) as running:
            node = running.start("n1", *options, fresh=True)
            keys = [await up("victim")]
            (content,) = [each.name for each in (folder / "artifacts").iterdir() if each.is_dir()]
            keys.append(await up("thief", content, f"{content}.seal"))
            log = (
                folder / "runtime" / "logs" / folder_name(SliceKey(NODE, Artifact("g", "thief", "1"))) / "00000001.log"
            )
            said = json.loads(log.read_text().partition(" out ")[2].splitlines()[0])
            assert {*said["processes"]} <= {"EACCES", "EPERM"}, said
            assert {*said["files"], *said["others"]} <= {"EACCES", "ENOTDIR"}, said
            assert said["own"] == ["done", "EACCES", "done"]
            assert PASSWORD.encode() in read(f"/proc/{node.pid}/environ"), "it was there to be read"
            node.unharmed()
            before = users()
            assert len({*before.values()}) == 2
            assert all(uid in RANGE for uid in before.values())

            node.kill()
            await ground.nothing_left()
            node = running.start("n1", *options)
            await eventually(lambda: len(ground.living) == 2, what="both serve again")
            assert users() == before, "each is who it was"
            for key in keys:
                await hand.unload(key)
            assert users() == {}


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


async def test_a_folder_that_slices_cannot_pass_through_ends_the_node_at_once(shut: Path) -> None:
    for option in ("--run-as-range=1950000000-1950000999", "--run-as=12345"):
        options = ("--runtime", "process", "--folder", str(shut / "node"), "--server", "127.0.0.1:1", option)
        ended = await command_line("node", *options, env={"CDM_RUN_AS": ""} if "range" in option else {})
        told = ended.stderr.decode()
        assert ended.returncode == Exit.USAGE, told
        assert "may not be entered by user 1" in told
        assert "--run-as same" in told
        assert told.count("\n") == 1


async def test_a_node_whose_slices_are_itself_says_so_once(server: NatsServer, top: Path) -> None:
    with node_processes(server, top) as running:
        node = running.start("n1", "--runtime", "process", "--folder", str(top / "n1"), "--run-as", "same")
        await eventually(lambda: "node is up" in node.log)
        assert node.log.count("slices run as this node's own user") == 1
        assert stat.S_IMODE((top / "n1").stat().st_mode) == 0o700
