"""``cdm artifact`` as its users meet it: output, exit codes, messages."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from cdm.artifacts.packing import pack
from cdm.cli.deploy import _Program, _run_as
from tests.cli.test_cli import run
from tests.harness.processes import environment
from tests.harness.servers import NatsServer
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio

NAME = "org.example:b:1.0.0"
KEY = "org.example/b/1.0.0"


def artifact(server: NatsServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = run("artifact", *map(str, arguments), env={"NATS_URL": server.url})
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    return done


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "hello.py"
    path.write_text("print('hello')")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "service"
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "serve").write_text("#!/bin/sh\n")
    (path / "data").write_text("data")
    return path


@pytest.mark.quick
async def test_push_ls_and_rm(server: NatsServer, script: Path, tree: Path) -> None:
    first = artifact(server, "push", NAME, script)
    assert first.returncode == 0
    assert "org.example:b:1.0.0: pushed (14 bytes, sha256 " in first.stdout
    again = artifact(server, "push", NAME, script)
    assert again.returncode == 0
    assert "unchanged" in again.stdout
    assert artifact(server, "push", "g:tree:1+b", tree, "--entry", "bin/serve").returncode == 0
    shown = artifact(server, "ls")
    assert shown.returncode == 0
    for word in (NAME, "hello.py", "g:tree:1+b", "bin/serve"):
        assert word in shown.stdout
    listed = json.loads(artifact(server, "ls", "--json").stdout)["artifacts"]
    assert [each["artifact"] for each in listed] == ["g:tree:1+b", NAME]
    assert listed[1]["form"] == "file"
    assert listed[1]["size"] == 14
    assert listed[1]["manifest"]["entry"] == "hello.py"
    assert len(listed[1]["sha256"]) == 64
    mistyped = artifact(server, "rm", "g:tee:1+b")
    assert mistyped.returncode == 1
    assert "there is no artifact g:tee:1+b (did you mean g:tree:1+b?); `cdm artifact ls`" in mistyped.stderr
    removed = artifact(server, "rm", NAME)
    assert removed.returncode == 0
    assert "removed" in removed.stdout
    missing = artifact(server, "rm", NAME)
    assert missing.returncode == 1
    assert f"there is no artifact {NAME}; `cdm artifact ls` lists them" in missing.stderr
    assert json.loads(artifact(server, "rm", "g:tree:1+b", "--json").stdout)["result"] == "removed"
    assert "there are no artifacts" in artifact(server, "ls").stdout


async def test_what_is_damaged_in_the_store_is_repaired_by_the_same_push(server: NatsServer, script: Path) -> None:
    assert artifact(server, "push", NAME, script).returncode == 0
    async with raw(server) as user:
        await user.api("STREAM.PURGE.OBJ_artifacts", {"filter": "$O.artifacts.C.>"})
    again = artifact(server, "push", NAME, script)
    assert again.returncode == 0
    assert f"{NAME}: repaired: " in again.stdout
    assert "a part of it is missing" in again.stderr
    assert "unchanged" in artifact(server, "push", NAME, script).stdout


async def test_another_content_or_manifest_is_a_conflict(server: NatsServer, script: Path) -> None:
    assert json.loads(artifact(server, "push", NAME, script, "--json").stdout)["result"] == "stored"
    assert json.loads(artifact(server, "push", NAME, script, "--json").stdout)["result"] == "unchanged"
    other = artifact(server, "push", NAME, script, "--env", "A=1")
    assert other.returncode == 4
    assert f"{NAME} is already stored with another manifest" in other.stderr  # and not with an emoji for :b:
    assert "--force" in other.stderr
    await anyio.Path(script).write_text("print('other')")
    other = artifact(server, "push", NAME, script)
    assert other.returncode == 4
    assert f"{NAME} is already stored with other content" in other.stderr
    forced = artifact(server, "push", NAME, script, "--force", "--json")
    assert forced.returncode == 0
    assert json.loads(forced.stdout)["result"] == "replaced"


async def test_what_a_slice_names_is_kept_until_it_is_removed_by_force(server: NatsServer, script: Path) -> None:
    digest = json.loads(artifact(server, "push", NAME, script, "--json").stdout)["sha256"]
    async with raw(server) as user:
        await user.record()
        await user.put("slices", f"n1.{KEY}", {"state": "ACTIVE", "term": 1, "content": digest})
    assert "kept" not in artifact(server, "ls").stdout
    await anyio.Path(script).write_text("print('other')")
    assert "replaced" in artifact(server, "push", NAME, script, "--force").stdout
    shown = artifact(server, "ls").stdout
    assert "and 1 content (14 bytes) of earlier pushes, kept for slices and rollouts that name them" in shown
    assert digest[:12] not in shown
    listed = json.loads(artifact(server, "ls", "--json").stdout)
    assert [each["artifact"] for each in listed["artifacts"]] == [NAME]
    assert [(each["artifact"], each["sha256"]) for each in listed["kept"]] == [(NAME, digest)]
    removed = artifact(server, "rm", NAME)
    assert removed.stdout == f"{NAME}: removed\n", "no slice names what is there now"
    assert artifact(server, "rm", NAME).returncode == 1
    assert artifact(server, "rm", NAME, "--force").returncode == 0
    assert json.loads(artifact(server, "ls", "--json").stdout) == {"artifacts": [], "kept": []}
    await anyio.Path(script).write_text("print('hello')")
    assert artifact(server, "push", NAME, script).returncode == 0
    assert "removed; its content is kept while" in artifact(server, "rm", NAME).stdout
    assert "and 1 content" in artifact(server, "ls").stdout


async def test_the_manifest_is_read_and_options_go_before_it(server: NatsServer, tree: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cdm.toml"
    manifest.write_text("entry = 'data'\nstop_grace = 3\n[env]\nA = 'a'\nB = 'b'\n")
    options = ("--manifest", manifest, "--entry", "bin/serve", "--env", "B=1=2", "--env", "C=")
    pushed = artifact(server, "push", NAME, tree, *options, "--json")
    found = json.loads(pushed.stdout)["manifest"]
    assert found["entry"] == "bin/serve"
    assert found["env"] == {"A": "a", "B": "1=2", "C": ""}
    assert found["stop_grace"] == 3


async def test_a_folder_again_is_no_change_and_an_archive_is_taken(
    server: NatsServer, tree: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        done = artifact(server, "push", NAME, tree, "--entry", "bin/serve")
        os.utime(tree / "data", (1, 1))
    assert "unchanged" in done.stdout
    with tarfile.open(tmp_path / "service.tar.gz", "w:gz") as made:
        made.add(tree, ".")
    assert artifact(server, "push", "g:packed:1", tmp_path / "service.tar.gz", "--entry", "bin/serve").returncode == 0


async def test_what_names_outside_of_the_manifest_are_like_does_not_matter(
    server: NatsServer, tree: Path, tmp_path: Path
) -> None:
    (tree / "bin" / "\udcff").write_text("data")
    odd = shutil.copytree(tree, tmp_path / "\udcff")
    with tarfile.open(tmp_path / "\udcff.tar.gz", "w:gz") as made:
        made.add(odd / "bin", "bin")
    for name, path in (("g:tree:1", odd), ("g:archive:1", tmp_path / "\udcff.tar.gz")):
        pushed = artifact(server, "push", name, path, "--entry", "bin/serve", "--json")
        assert pushed.returncode == 0
        assert json.loads(pushed.stdout)["file"] == path.name.replace("\udcff", "\N{REPLACEMENT CHARACTER}")
    assert artifact(server, "ls").returncode == 0


async def test_a_program_that_nodes_are_to_have_is_pointed_out_wherever_it_is_pushed(
    server: NatsServer, tree: Path
) -> None:
    """What is on the PATH of whoever pushes says nothing about nodes."""
    for name, told in (("sh", ""), ("nobody-has-this", ""), ("serve", " (did you mean bin/serve?)")):
        done = artifact(server, "push", f"g:{name}:1", tree, "--entry", name)
        assert done.returncode == 0
        assert done.stderr == f"cdm: warning: nodes need {name!r} on their PATH: it is not in the content{told}\n"
    # The next version is run as the one before, whatever is on this machine's PATH.
    env = {"NATS_URL": server.url}
    assert run("init", env=env).returncode == 0
    assert run("deploy", "g:nobody-has-this:1", "--no-wait", env=env).returncode == 0
    done = run("deploy", "g:nobody-has-this:2", str(tree / "data"), "--no-wait", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert "warning: nodes need 'nobody-has-this' on their PATH" in done.stderr
    listed = json.loads(artifact(server, "ls", "--json").stdout)["artifacts"]
    assert listed[1]["manifest"]["entry"] == "nobody-has-this"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push", "a:b", "{script}"], "write the version too"),
        (["push", NAME, "{folder}/nothing"], "does not exist"),
        (["push", NAME, "/dev/null"], "is not a file, folder or archive"),
        (["push", NAME, "{folder}/broken.tar.gz"], "broken.tar.gz"),
        (["push", NAME, "{tree}"], "entry: "),
        (["push", NAME, "{tree}", "--entry", "bin/none"], "entry: 'bin/none'"),
        (["push", NAME, "{tree}", "--entry", "../x"], "entry: '../x'"),
        (["push", NAME, "{tree}", "--entry", "bin"], "entry: 'bin' is a folder"),
        (["push", NAME, "{script}", "--env", "x"], "variable 'x' is not of the form NAME=VALUE (--env)"),
        (["push", NAME, "{script}", "--env", "x=1", "--env", "x=2"], "given twice"),
        (["push", NAME, "{script}", "--env", "a-b=1"], "env"),
        (["push", NAME, "{script}", "--env", "A=\udcff"], "is not UTF-8"),
        (["push", NAME, "{folder}/\udcff.sh"], "name is not UTF-8"),
        (["push", NAME, "{folder}/lone"], "name that is not UTF-8"),
        (["push", NAME, "{folder}/lone", "--entry", "\udcff/run"], "is not UTF-8"),
        (["push", NAME, "{folder}/\udcff"], "does not exist"),
        (["push", NAME, "{script}", "--manifest", "{folder}/none.toml"], "none.toml"),
        (["push", NAME, "{script}", "--manifest", "{folder}/wrong.toml"], "entri"),
        (["push", NAME, "{script}", "--manifest", "{folder}/elsewhere.json"], "directory: "),
        (["rm", "a:b"], "write the version too"),
    ],
)
async def test_what_cannot_be_pushed_is_told_in_a_line_and_exits_with_2(
    arguments: list[str], told: str, script: Path, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8b\x08broken")
    (tmp_path / "\udcff.sh").write_text("echo")
    (tmp_path / "lone" / "\udcff").mkdir(parents=True)
    (tmp_path / "lone" / "\udcff" / "run").write_text("echo")
    (tmp_path / "wrong.toml").write_text("entri = 'x'")
    (tmp_path / "elsewhere.json").write_text('{"directory": "data"}')
    filled = [each.format(script=script, tree=tree, folder=tmp_path) for each in arguments]
    refused = run("artifact", *filled, env={"NATS_URL": "nats://127.0.0.1:1"})
    assert refused.returncode == 2, refused.stderr
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.quick
def test_what_only_another_runtime_can_run_is_deployed_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").write_text("echo")
    program = _Program(pack(tmp_path / "plain", tmp_path), None, None, False, None)
    assert _run_as(program, None).entry == "plain"
    assert capsys.readouterr().err.startswith("cdm: warning: no node can run this as a program: ")


async def test_a_file_that_no_node_can_run_is_pointed_out(server: NatsServer, tmp_path: Path) -> None:
    """It may be meant for another runtime."""
    (tmp_path / "folder").mkdir()
    files = {"hello": "#!/bin/sh\necho", "hello.py": "print()", "hello.pyz": "PK", "plain": "echo", "folder/plain": "?"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "hello").chmod(0o700)
    shell = tmp_path / "shell.toml"
    shell.write_text("entry = 'sh'\nargs = ['plain']")
    with tarfile.open(tmp_path / "plain.tar.gz", "w:gz") as made:
        made.add(tmp_path / "plain", "plain")
    sources = [tmp_path / name for name in ("hello", "hello.py", "hello.pyz", "folder", "plain.tar.gz")]
    for number, source in enumerate((*sources, Path("/bin/sh"))):
        done = artifact(server, "push", f"g:n:{number}", source)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
    done = artifact(server, "push", "g:n:shell", tmp_path / "plain", "--manifest", shell)
    assert done.returncode == 0, done.stderr
    assert "no node can run" not in done.stderr
    done = artifact(server, "push", "g:plain:1", tmp_path / "plain", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("cdm: warning: no node can run this as a program: ")
    assert "begins neither with #! nor with an ELF header" in done.stderr
    assert json.loads(done.stdout)["result"] == "stored"


async def test_a_program_need_not_be_executable_where_it_is_pushed_from(server: NatsServer, tmp_path: Path) -> None:
    """Nodes make it executable: nothing is warned of, and nothing else comes of a chmod."""
    script = tmp_path / "hello"
    script.write_text("#!/bin/sh\n")
    for mode, said in ((0o644, "pushed"), (0o755, "unchanged"), (0o600, "unchanged"), (0o711, "unchanged")):
        script.chmod(mode)
        done = artifact(server, "push", NAME, script)
        assert done.returncode == 0, done.stderr
        assert f"{NAME}: {said}" in done.stdout
        assert done.stderr == ""


async def test_one_that_a_blueprint_waited_for_says_when_it_is_tried_again(server: NatsServer, script: Path) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", KEY, 2)
    first = artifact(server, "push", NAME, script)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith(f"cdm: note: blueprint {NAME} asks for 2 instances of it; ")
    assert f"at once: cdm restart {NAME}" in first.stderr
    for options in ((), ("--force",)):
        assert artifact(server, "push", NAME, script, *options).stderr == ""
    assert artifact(server, "rm", NAME, "--force").returncode == 0
    async with raw(server) as user:
        await user.put("status", KEY, {"condition": "Reverted"})
    told = artifact(server, "push", NAME, script).stderr
    service = NAME.rpartition(":")[0]
    assert told.endswith(f"; it was taken back: `cdm rollout retry {service}` tries it once more\n"), told


async def test_one_that_a_blueprint_wants_is_removed_with_force_only(server: NatsServer, script: Path) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", KEY, 0)
        for value, told in ((3, "3 instances"), ({"instances": 1}, "1 instance "), ("three", "cannot be read")):
            artifact(server, "push", NAME, script)
            await user.put("blueprints", KEY, value)
            refused = artifact(server, "rm", NAME)
            assert refused.returncode == 4
            assert told in refused.stderr
            assert "--force" in refused.stderr
        assert artifact(server, "rm", NAME, "--force").returncode == 0
        assert artifact(server, "rm", NAME).returncode == 1
        for gone in (0, None):
            artifact(server, "push", NAME, script)
            await (user.delete("blueprints", KEY) if gone is None else user.put("blueprints", KEY, gone))
            assert artifact(server, "rm", NAME).returncode == 0


async def test_without_a_store_it_is_said_what_to_do(server: NatsServer, script: Path) -> None:
    for arguments in (("ls",), ("rm", NAME)):
        failed = artifact(server, *arguments)
        assert failed.returncode == 1
        assert "cdm init" in failed.stderr
    assert run("artifact", "ls", "--server", "nats://127.0.0.1:1").returncode == 1
    assert "artifacts" in json.loads(run("init", "--server", server.url, "--json").stdout)["buckets"]
    assert artifact(server, "push", NAME, script, "--prefix", "other").returncode == 0
    assert artifact(server, "rm", NAME).returncode == 1
    assert NAME in artifact(server, "ls", "--prefix", "other").stdout


SLOW = """
import time
from cdm import cli
from cdm.cli import transfer_bar
transfer_bar.PATIENCE = {patience}
raise SystemExit(cli.run(["artifact", "push", "g:n:1", {path!r}]))
"""


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (100.0, False)])
async def test_on_a_terminal_a_long_push_shows_how_far_it_is(
    server: NatsServer, tmp_path: Path, patience: float, shown: bool
) -> None:
    path = tmp_path / "big.pyz"
    path.write_bytes(os.urandom(5_000_000))
    ours, theirs = pty.openpty()
    env = {**environment(), "NATS_URL": server.url, "TERM": "xterm", "COLUMNS": "100"}
    code = SLOW.format(patience=patience, path=str(path))
    told = b""

    def read() -> None:
        """A terminal that nobody reads is full after a while, and whoever writes to it waits."""
        nonlocal told
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                told += piece

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, read)
        ran = await anyio.run_process([sys.executable, "-c", code], stderr=theirs, env=env)
        os.close(theirs)
    os.close(ours)
    assert (b"pushing g:n:1" in told) is shown
    assert b"pushed" in ran.stdout


def test_help_names_the_commands() -> None:
    shown = run("artifact", "--help")
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("push", "ls", "rm"))
    assert "artifact" in run("--help").stdout
