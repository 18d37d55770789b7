"""The command line as its users meet it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cdm.cli.context import config_home
from tests.harness import forked
from tests.harness.processes import command_line, environment, processes
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually, patience
from tests.harness.wire import Raw, raw


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "CDM_"))}
    done = forked.ran(*arguments, env={**clean, "COLUMNS": "100", **(env or {})})
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stauts"], "there is no command 'stauts' (did you mean status?); see `cdm --help`"),
        (["rollout", "stauts"], "there is no command 'stauts' (did you mean status?); see `cdm rollout --help`"),
        (["-s", "nats://h", "status"], "-s goes behind the command, as in `cdm status -s URL`; see `cdm --help`"),
        (["--context", "status", "rollout", "status"], "as in `cdm rollout --context`; see `cdm --help`"),
        (["artifact", "--json", "ls"], "as in `cdm artifact ls --json`; see `cdm artifact --help`"),
        (["--password=hush"], "--password goes behind the command, as in `cdm COMMAND --password`; see `cdm --help`"),
        (["node", "-s", "h", "forget", "n1"], "options go behind the command, `cdm node forget`; see"),
        (["node", "--bogus"], "there is no option --bogus"),
        (["status", "--jsn"], "there is no option --jsn (did you mean --json?); see `cdm status --help`"),
        (["status", "n1", "extra"], "'extra' is one argument too many; see `cdm status --help`"),
        (["status", "a:b:c:d"], "'a:b:c:d' is not of the form group:name:version"),
        (["status", "--state", "FIALED"], "--state 'FIALED': there is no such state (did you mean FAILED?)"),
        (["status", "n1", "--node", "n2"], "--node n2: n1 is another node; leave one of them out"),
        (["status", "--watch", "--check"], "--watch and --check: choose one of them"),
        (["status", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["status", "--json", "--json"], "--json is given twice"),
        (["status", "--all-regions"], "--all-regions: CDM_REGIONS names none; give it, or --region"),
        (["status", "--all-regions", "--region", "a"], "--all-regions and --region: choose one of them"),
        (["status", "--region", "a", "--region", "a=b"], "region 'a=b' is named twice"),
        (["status", "--region", "a", "--context", "b"], "--context: that is told by the context of each region"),
        (["status", "--region", "a", "--wait"], "--wait: not with several regions"),
        (["status", "--json=maybe"], "--json takes no value"),
        (["scale", "a:b:1"], "INSTANCES is missing; see `cdm scale --help`"),
        (["scale", "a:b:1", "many"], "INSTANCES: 'many' is not a whole number"),
        (["scale", "a:b:1", "-1"], "INSTANCES: '-1': must be at least 0"),
        *(
            (["scale", "a:b:1", text], f"{text!r} is not a whole number")
            for text in ("1.5", "1_0", "0x2", "2.0", "1e2")
        ),
        (["deploy", "a:b:1", "--instances", "1.5"], "--instances: '1.5' is not a whole number"),
        (["scale", "a:b:1", "100001"], "INSTANCES: '100001': must be at most 100,000"),
        (["scale", "a:b:1", "2", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["restart", "a:b:1", "--no-wait", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["deploy", "a:b:1", "--no-wait", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["rollback", "a:b", "--no-wait", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["rebalance", "--timeout", "9s"], "--timeout: nothing is waited for"),
        (["rebalance", "--plan", "--wait"], "--plan moves nothing that --wait could wait for"),
        (["node", "--metadata-url", "foo"], "'foo' is not the beginning of a URL"),
        (["node", "--metadata-url", "http://[::1"], "'http://[::1' is not the beginning of a URL"),
        (["logs", "a:b:1", "--lines", "1.5"], "--lines: '1.5' is not a whole number"),
        (["logs", "a:b:1", "--ordinal", "0x1"], "--ordinal: '0x1' is not a whole number"),
        (["rebalance", "--max-moves", "1.5"], "--max-moves: '1.5' is not a whole number"),
        (["rebalance", "--max-moves", "0"], "--max-moves: '0': must be at least 1"),
        (["node", "--capacity", "1.5"], "--capacity: '1.5' is not a whole number"),
        (["init", "--replicas", "1.2"], "--replicas: '1.2' is not one of 1, 2, 3, 4, 5"),
        (["rebalance", "a:b:1", "nope"], "artifact 'nope' is not of the form group:name:version"),
        (["rebalance", "a:b"], "a:b is a service; write the version too, a:b:VERSION"),
        (["explain", "a:b:1", "extra"], "'extra' is one argument too many; see `cdm explain --help`"),
        (["explain", "n1/a:b:1", "x", "y", "--json"], "'x' is one argument too many; see `cdm explain --help`"),
        (["deploy", "a:b:1", "--from"], "--from needs a value; see `cdm deploy --help`"),
        (["rollout", "pause", "a"], "service 'a' is not of the form group:name"),
        (["node", "--capacity", "-1"], "--capacity: '-1': must be at least 0"),
        (["node", "--role", "x"], "--role: 'x' is not one of all, manager, agent"),
        (["init", "--replicas", "9"], "--replicas: '9' is not one of 1, 2, 3, 4, 5"),
        (["node", "--lease-ttl", "0.5"], "--lease-ttl: '0.5'"),
        (["node", "--command-timeout", "0.0"], "--command-timeout: '0.0'"),
        (["node", "--lease-ttl", "soon"], "--lease-ttl: 'soon' is not a duration"),
        (["node", "--label", "x"], "label 'x'"),
        (["node", "--label", "zo ne=a"], "label 'zo ne' has a space in it"),
        (["node", "--label", "x=1", "--label", "x=2"], "given twice"),
        (["node", "--id", "a b"], "'a b'"),
        (["node", "--prefix", "a.b"], "--prefix"),
        (["status", "--server", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (["status", "--server", "http://somewhere"], "http://somewhere"),
        (["status", "--server", "somewhere/else"], "somewhere/else"),
        (["status", "--server", "nats://somewhere?q"], "nats://somewhere?q"),
        (["status", "--server", ","], "no NATS server is named"),
        (["status", "--context", "nowhere"], "nowhere"),
        (["status", "--creds", "/no/such/file"], "/no/such/file"),
        (["status", "--creds", "~nobody.at.all/x"], "~nobody.at.all/x"),
        (["node", "--folder", "~nobody.at.all/x"], "~nobody.at.all/x"),
        (["node", "--node-ttl", "9" * 400], "at most 365 days"),
        (["node", "--reconcile-interval", "8761h"], "at most 365 days"),
    ],
)
def test_wrong_usage_is_told_in_a_line_and_exits_with_2(arguments: list[str], told: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert re.fullmatch(r"cdm: [^\n]+\n", refused.stderr)


@pytest.mark.parametrize(
    "server",
    [
        "nats://somebody:pass#word@127.0.0.1:1",
        "nats://somebody:1/word@127.0.0.1:1",
        "nats://somebody:1?word@127.0.0.1:1",
        "nats://somebody:pass[word@127.0.0.1:1",
        "nats://somebody:1,word@127.0.0.1:1",
        "nats://somebody:1,nats:/word@127.0.0.1:1",
        "nats://somebody:1/a@word@127.0.0.1:1",
        "nats://other:4222,nats://somebody:1,word@127.0.0.1:1",
        "somebody:1/word@127.0.0.1:1,other:4222",
    ],
)
def test_no_part_of_a_password_that_is_not_encoded_is_shown(server: str) -> None:
    refused = run("status", env={"NATS_URL": server})
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "'nats://127.0.0.1:1'" in refused.stderr
    hint = "percent-encode / ? # [ ] , in a user or password (%2F for /), or use --user and --password"
    assert hint in refused.stderr
    for part in ("somebody", "word", "pass"):
        assert part not in refused.stderr.replace(hint, "")


@pytest.mark.anyio
async def test_no_server_exits_with_1_and_says_in_a_line_where_it_looked() -> None:
    """All at the same time, for each looks for seconds."""

    async def look(command: str) -> None:
        failed = await command_line(*command.split(), "--server", "nats://user:secret@127.0.0.1:1")
        told = failed.stderr.decode()
        assert failed.returncode == 1, command
        assert len(told.splitlines()) == 1, command
        assert "127.0.0.1:1" in told, command
        assert "secret" not in told, command

    async with anyio.create_task_group() as tasks:
        for command in (
            *("status", "init", "health", "logs g:n:1", "artifact push g:n:1 /bin/sh", "artifact rm g:n:1"),
            *("deploy g:n:1", "rollout status g:n", "rollout abort g:n", "rollback g:n", "scale g:n:1 2"),
            "history g:n",
        ):
            tasks.start_soon(look, command)


@pytest.mark.anyio
async def test_without_buckets_status_says_what_to_do(server: NatsServer) -> None:
    failed = run("status", "--server", server.url)
    assert failed.returncode == 1
    assert "cdm init" in failed.stderr


@pytest.mark.anyio
@pytest.mark.quick
async def test_init_then_status_without_a_leader_exits_with_3(server: NatsServer) -> None:
    first, again = (run("init", "--server", server.url, "--json") for _ in range(2))
    assert set(json.loads(first.stdout)["buckets"].values()) == {"created"}
    assert set(json.loads(again.stdout)["buckets"].values()) == {"existed"}
    shown = run("status", "--json", env={"NATS_URL": server.url})
    assert shown.returncode == 3
    assert json.loads(shown.stdout)["leader"] is None
    assert "nobody leads" in run("status", "--server", server.url).stdout


@pytest.mark.anyio
async def test_a_context_of_the_nats_tool_is_read_and_beats_the_environments_server(
    server: NatsServer, tmp_path: Path
) -> None:
    run("init", "--server", server.url)
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "here.json").write_text(json.dumps({"url": server.url, "description": "ours"}), encoding="utf-8")
    env = {"XDG_CONFIG_HOME": str(tmp_path), "NATS_URL": "nats://127.0.0.1:1"}
    assert run("status", "--context", "here", env=env).returncode == 3
    (tmp_path / "nats" / "context.txt").write_text("here\n", encoding="utf-8")
    assert run("status", env={"XDG_CONFIG_HOME": str(tmp_path)}).returncode == 3
    assert run("status", env=env).returncode == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"user_jwt": "SECRET"}', "does not support its user_jwt; use creds"),
        (b'{"url": "nats://127.0.0.1:1", "user_seed": "SECRET"}', "does not support its user_seed; use creds"),
        (b'{"nsc": "nsc://o/a/u"}', "does not support its nsc; use creds"),
        (b'{"jetstream_domain": "a.b"}', "JetStream domain 'a.b'"),
        (b'{"jetstream_api_prefix": "JS.*"}', "--js-api-prefix 'JS.*'"),
        (b'{"creds": "~nobody.at.all/x"}', "~nobody.at.all/x"),
        (b'{"url": "nats://me:1/SECRET@127.0.0.1:1"}', "'nats://127.0.0.1:1'"),
        (b'{"url": "\xff"}', "damaged"),
    ],
)
def test_a_context_that_cannot_be_used_is_told_in_a_line(content: bytes, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "here.json").write_bytes(content)
    refused = run("status", "--context", "here", env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "SECRET" not in refused.stderr


def test_who_one_is_may_be_said_beside_a_context_that_cannot_say_it(tmp_path: Path) -> None:
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    empty = {"nsc": "", "jetstream_domain": "", "jetstream_api_prefix": ""}
    (folder / "here.json").write_text(json.dumps({"url": "127.0.0.1:1", "user_jwt": "x", **empty}), encoding="utf-8")
    tried = run("status", "--context", "here", "--user", "me", env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert tried.returncode == 1
    assert "no NATS server answered at nats://127.0.0.1:1 " in tried.stderr


def test_a_selection_of_contexts_that_is_no_text_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "context.txt").write_bytes(b"\xff\xfe")
    refused = run("status", env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert refused.returncode == 2
    assert str(tmp_path) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_user_whom_the_system_does_not_know_has_contexts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_home() == tmp_path / ".config" / "nats"


@pytest.mark.anyio
async def test_what_a_node_says_of_itself_does_nothing_to_a_terminal(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    escape = "\x1b[2J\x1b]0;pwn\x07\x9b2J"
    async with raw(server) as user:
        await user.put("nodes", "n1", {"runtime": escape, "labels": {"a": escape}, "version": escape})
        await user.put("slices", "n1.g/n/1", {"state": "FAILED", "reason": f"one\ntwo {escape}"})
        await user.put("status", "g/n/1", {"condition": "Degraded", "reason": escape})
        shown = run("status", "--server", server.url, env={"COLUMNS": "300"})
        as_json = run("status", "--server", server.url, "--json")
    assert shown.stdout.count(r"\x1b[2J\x1b]0;pwn\x07\x9b2J") >= 3
    assert not {*shown.stdout} & {"\x1b", "\x07", "\x9b"}
    assert json.loads(as_json.stdout)["nodes"][0]["runtime"] == escape


@pytest.mark.anyio
async def test_status_tells_how_long_ago_a_node_was_heard_of(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        for _ in range(2):
            renewed = time.monotonic()
            await user.put("nodes", "n1", {"role": "agent"})
            await anyio.sleep(1.2)
        (node,) = json.loads(run("status", "--json", "--server", server.url).stdout)["nodes"]
        assert 1.2 <= node["heard"] <= time.monotonic() - renewed
        shown = run("status", "--server", server.url).stdout
        ago = re.search(r"n1 .* (\d+) s ago ", shown)
        assert ago is not None, shown
        assert node["heard"] - 0.5 <= int(ago[1]) <= time.monotonic() - renewed + 0.5


@pytest.mark.anyio
async def test_a_prefix_is_a_cluster_of_its_own(server: NatsServer) -> None:
    assert run("init", "--server", server.url, "--prefix", "other").returncode == 0
    assert run("status", "--server", server.url, "--prefix", "other").returncode == 3
    assert run("status", "--server", server.url).returncode == 1


@pytest.mark.anyio
async def test_health_is_what_the_nodes_own_process_says(server: NatsServer, tmp_path: Path) -> None:
    missing = run("health", "--id", "n1", "--server", server.url, "--json")
    assert missing.returncode == 3
    assert json.loads(missing.stdout)["healthy"] is False
    async with raw(server) as user, processes(server, user, tmp_path, "n1") as running:
        registered = (await user.registrations())["n1"].value

        def answers() -> bool:
            """Within its second, which a process that does not get its turn may miss."""
            lives = run("health", "--json", env={"NATS_URL": server.url, "CDM_ID": "n1"})
            assert lives.returncode in (0, 3), lives.stdout + lives.stderr
            said = json.loads(lives.stdout)
            assert said["healthy"] == (lives.returncode == 0), lives.stdout
            return bool(lives.returncode == 0 and said["incarnation"] == registered["incarnation"])

        await eventually(answers)
        await eventually(lambda: "n1 answers" in run("health", "--id", "n1", "--server", server.url).stdout)
        running.all["n1"].send(signal.SIGSTOP)  # registered and connected, and does nothing
        hangs = run("health", "--id", "n1", "--server", server.url)
        assert hangs.returncode == 3
        assert "gave no answer (asked 2 times, with 1 s to answer each time)" in hangs.stdout
        assert "connected" not in hangs.stdout, "a server that stands still gives no answer, either"
        running.all["n1"].kill()
        dead = run("health", "--id", "n1", "--server", server.url)
        assert dead.returncode == 3
        assert "no process" in dead.stdout
    assert run("health", "--id", "n1", "--server", "127.0.0.1:1").returncode == 1


@pytest.mark.anyio
async def test_a_node_whose_log_has_no_reader_any_more_lives_on(server: NatsServer, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import time; time.sleep(600)", encoding="utf-8")
    options = ("--server", server.url, "--runtime", "process", "--folder", str(tmp_path / "n1"), "--node-ttl", "10")
    command = [sys.executable, "-m", "cdm", "node", "--id", "n1", "--log-level", "debug", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) as node:  # noqa: ASYNC220
        try:
            assert node.stderr is not None
            assert node.stderr.readline()
            node.stderr.close()
            async with raw(server) as user:
                await eventually(user.lease, 20)
                pushed = await anyio.to_thread.run_sync(
                    lambda: run("artifact", "push", "g:n:1", str(script), "--server", server.url)
                )
                assert pushed.returncode == 0, pushed.stderr
                await user.put("blueprints", "g/n/1", 1)
                await eventually(lambda: _all_active(user), 20)
                before = (await user.contents("slices"))["n1.g/n/1"]
                await anyio.sleep(10.5)  # past the TTL of its registration
                assert "n1" in await user.registrations()
                assert (await user.contents("slices"))["n1.g/n/1"] == before
            node.terminate()
            assert await anyio.to_thread.run_sync(node.wait, patience()) == 0
        finally:
            node.kill()


async def _all_active(user: Raw) -> bool:
    return set((await user.slices()).values()) == {"ACTIVE"}


@pytest.mark.quick
def test_help_names_every_command_and_the_exit_codes() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("node", "init", "status", "health", "demo", "Exit codes"))


def test_the_version_is_the_installed_one() -> None:
    assert run("--version").stdout.strip() == __import__("cdm").__version__


def test_help_does_not_wait_for_what_it_does_not_use() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cdm", "--help"], capture_output=True, text=True, check=True
    )
    imported = set(re.findall(r"\|\s+([\w.]+)$", shown.stderr, re.MULTILINE))
    assert "cdm.cli" in imported
    assert imported.isdisjoint({"nats", "structlog", "cdm.api", "cdm.manager.manager", "markdown_it"})


@pytest.mark.parametrize(
    "command",
    [
        *("node", "init", "status", "health", "logs", "demo", "artifact", "artifact push", "artifact ls"),
        *("deploy", "rollout", "rollout status", "rollout approve", "rollback", "scale", "restart", "history"),
    ],
)
def test_every_command_has_a_help_text(command: str) -> None:
    shown = run(*command.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"cdm {command}" in shown.stdout


@pytest.mark.parametrize("command", ["node", "init", "health", "logs", "artifact push", "deploy", "rollout pause"])
def test_the_help_of_an_option_is_wrapped_at_the_terminals_width_alone(command: str) -> None:
    shown = run(*command.split(), "--help", env={"COLUMNS": "400"}).stdout
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert rows
    assert all(re.match(r"│ (\*  |   )?(--)?[a-zA-Z]", row) for row in rows), shown


@pytest.mark.anyio
async def test_in_a_pipe_nothing_is_cut_off(server: NatsServer) -> None:
    name = f"{'o' * 60}:{'n' * 60}:{'1' * 60}"
    clean = {"NATS_URL": server.url, "COLUMNS": ""}
    pushed = await anyio.to_thread.run_sync(lambda: run("artifact", "push", name, __file__, env=clean))
    assert pushed.returncode == 0, pushed.stderr
    shown = await anyio.to_thread.run_sync(lambda: run("artifact", "ls", env=clean))
    assert name in shown.stdout
