"""What users type: the real ``nats`` tool, with contexts that cdm reads too, and every command that the README shows.

Skipped where the tool is not on PATH; with CDM_REQUIRE_NATS_CLI=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from cdm.cli import Exit
from cdm.model.blueprint import Blueprint
from cdm.model.rollout import RolloutKind
from cdm.model.secret import SecretForm, secrets_in
from cdm.secure.operators import claims_of
from tests.docs.documents import adapted, blocks, commands, inline
from tests.harness import forked
from tests.harness.agents import agents
from tests.harness.paths import ROOT
from tests.harness.processes import environment, processes
from tests.harness.secure import Certificates, JwtFortress, fortress
from tests.harness.servers import NatsServer, free_port, running_server
from tests.harness.terminal import Terminal, terminal
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio

ONE = "org.example/slice/1.0.0"
PATIENCE = 30.0


def program() -> str:
    """Where the tool is; skips the test where it is not."""
    found = shutil.which("nats")
    if found is None:
        reason = "the nats tool is not on PATH"
        if os.environ.get("CDM_REQUIRE_NATS_CLI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Shell:
    """Somebody at a terminal, in a folder of their own, with their own contexts."""

    def __init__(self, folder: Path) -> None:
        self._nats = program()
        self.folder = folder
        self._env = {**environment(), "XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder), "COLUMNS": "200"}

    async def nats(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run the tool to its end."""
        return await self._run([self._nats, *arguments])

    async def good(self, *arguments: str) -> str:
        """Run the tool; it must not fail. Returns what it said."""
        done = await self.nats(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout.decode()

    async def refused(self, *commands: Sequence[str]) -> None:
        """Run the tool, in all these ways at the same time, for it waits for answers; permissions must be missing."""

        async def run(command: Sequence[str]) -> None:
            done = await self.nats(*command)
            assert done.returncode != 0, command
            assert b"ermissions" in done.stdout + done.stderr, command

        async with anyio.create_task_group() as tasks:
            for command in commands:
                tasks.start_soon(run, command)

    async def cdm(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run cdm to its end."""
        with bounded(PATIENCE):
            return await forked.run(*arguments, env=self._env, cwd=self.folder)

    async def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        with bounded(PATIENCE):
            return await anyio.run_process(
                command, check=False, env=self._env, cwd=self.folder, stdin=subprocess.DEVNULL
            )

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[Callable[[], str]]:
        """Let the tool run, and look at what it says, for the time of the ``with`` block."""
        said = bytearray()

        async def listen(stream: anyio.abc.ByteReceiveStream) -> None:
            async for chunk in stream:
                said.extend(chunk)

        command = [self._nats, *arguments]
        process = await anyio.open_process(
            command, env=self._env, cwd=self.folder, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        async with process, anyio.create_task_group() as tasks:
            assert process.stdout is not None
            tasks.start_soon(listen, process.stdout)
            try:
                yield said.decode
            finally:
                if process.returncode is None:
                    process.kill()
                tasks.cancel_scope.cancel()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A terminal without contexts."""
    return Shell(tmp_path)


async def _instances(user: Raw) -> int:
    found = await user.slices()
    return len(found) if set(found.values()) <= {"ACTIVE"} else -1


def _are(user: Raw, count: int) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return await _instances(user) == count

    return are


async def test_blueprints_as_users_type_them(server: NatsServer, shell: Shell) -> None:
    """Put a number, put JSON, look, take away; with the context that is selected, for both tools."""
    await shell.good("context", "add", "here", "--server", server.url, "--select")
    async with (
        raw(server) as user,
        processes(server, user, shell.folder, "node-1", "node-2") as running,
        agents(server, "node-1", "node-2"),
        shell.running("kv", "watch", "slices") as watched,
    ):
        await eventually(lambda: "_leader" in watched(), PATIENCE, "it follows the bucket")
        assert set((await shell.good("kv", "ls", "nodes")).split()) >= {"node-1", "node-2"}
        await shell.good("kv", "put", "blueprints", ONE, "3")
        await eventually(_are(user, 3), PATIENCE)
        await shell.good("kv", "put", "blueprints", ONE, '{"instances":5}')
        await eventually(_are(user, 5), PATIENCE)
        refused = await shell.nats("kv", "put", "blueprints", "org.example/slice", "3")
        assert refused.returncode == 0, "NATS takes any key"
        await eventually(lambda: "org.example/slice" in running.logs(), PATIENCE)
        shown = json.loads((await shell.cdm("status", "--json")).stdout)
        assert [
            each["active"] for each in shown["blueprints"] if each["artifact"].startswith("org.example:slice:")
        ] == [5]
        await shell.good("kv", "del", "-f", "blueprints", ONE)
        await eventually(_are(user, 0), PATIENCE)
        history = await shell.good("kv", "history", "blueprints", ONE)
        assert re.search(r"PUT.*\b3\b", history)
        assert re.search(r'PUT.*\{"instances":5\}', history)
        assert re.search(r"DEL", history)
        # LOADING is replaced so soon that it may never be delivered.
        states = ("LOAD", "ACTIVATE", "ACTIVE", "UNLOAD")
        await eventually(lambda: all(f'"{state}"' in watched() for state in states), PATIENCE)
        running.unharmed()


@pytest.mark.parametrize("before", [False, True])
async def test_an_operator_of_the_shipped_configuration(shell: Shell, before: bool) -> None:
    """Credentials, CA and inbox prefix in a context: enough for all that an operator does, and for no more."""
    async with fortress(shell.folder, "node-1", before=before) as found:
        assert (await shell.cdm("init", *found.options("admin"))).returncode == 0
        key = ["--nkey", str(shell.folder / "operator.nk")]
        password = ["--user", "operator", "--password", found.passwords["operator"]] if before else []
        who = [*(password or key), "--tlsca", str(found.tls.ca)]
        await shell.good(
            "context", "add", "operator", "--server", found.url, *who, "--inbox-prefix", "_INBOX_operator", "--select"
        )
        status = await shell.cdm("status")
        assert status.returncode == Exit.UNHEALTHY, status.stderr
        async with shell.running("kv", "watch", "blueprints") as watched:
            await shell.good("kv", "put", "blueprints", ONE, "3")
            await eventually(lambda: ONE in watched(), PATIENCE)
        assert (await shell.good("kv", "get", "--raw", "blueprints", ONE)).strip() == "3"
        assert "PUT" in await shell.good("kv", "history", "blueprints", ONE)
        assert ONE in await shell.good("kv", "ls", "blueprints")
        await shell.good("kv", "put", "nodes", "node-1.intent", '{"schedule": "drain"}')
        await shell.good("kv", "del", "-f", "nodes", "node-1.intent")
        await shell.good("kv", "del", "-f", "blueprints", ONE)
        keys = (("slices", f"node-1.{ONE}"), ("slices", "_leader"), ("nodes", "node-1"), ("status", ONE))
        await shell.refused(*(("kv", "put", *key, "{}") for key in keys))
        silent = await shell.nats("kv", "ls", "slices")
        for secret in found.secrets:
            assert secret.encode() not in silent.stdout + silent.stderr


async def test_a_node_of_the_configuration_of_before(shell: Shell) -> None:
    """An nkey in a context: a node's own keys, and nobody else's."""
    async with fortress(shell.folder, "node-1", before=True) as found:
        assert (await shell.cdm("init", *found.options("admin"))).returncode == 0
        own = ["--nkey", str(shell.folder / "node-1.nk"), "--tlsca", str(found.tls.ca)]
        inbox = ["--inbox-prefix", "_INBOX_node-1"]
        await shell.good("context", "add", "node-1", "--server", found.url, *own, *inbox)
        use = ("--context", "node-1")
        async with shell.running(*use, "kv", "watch", "slices", "node-1.>") as watched:
            await shell.good(*use, "kv", "put", "slices", f"node-1.{ONE}", '{"state":"ACTIVE"}')
            await eventually(lambda: "ACTIVE" in watched(), PATIENCE)
        keys = (("slices", f"node-2.{ONE}"), ("slices", "_leader"), ("slices", "_term"), ("blueprints", ONE))
        await shell.refused(
            (*use, "kv", "get", "slices", f"node-2.{ONE}"), *((*use, "kv", "put", *key, "{}") for key in keys)
        )
        refused = await shell.cdm("status", *use)
        assert refused.returncode == Exit.DENIED
        assert b"permission denied" in refused.stderr


async def test_a_node_of_the_shipped_configuration(shell: Shell) -> None:
    """It reads no bucket with the tool; its own keys it writes."""
    async with fortress(shell.folder, "node-1") as found:
        assert (await shell.cdm("init", *found.options("admin"))).returncode == 0
        own = ["--nkey", str(shell.folder / "node-1.nk"), "--tlsca", str(found.tls.ca)]
        inbox = ["--inbox-prefix", "_INBOX_node-1"]
        await shell.good("context", "add", "node-1", "--server", found.url, *own, *inbox)
        use = ("--context", "node-1")
        assert '"seq"' in await shell.good(*use, "req", f"$KV.slices.node-1.{ONE}", '{"state":"ACTIVE"}')
        for bucket in ("slices", "blueprints", "nodes"):
            assert (await shell.nats(*use, "kv", "ls", bucket)).returncode != 0
        refused = await shell.cdm("status", *use)
        assert refused.returncode == Exit.DENIED
        assert b"permission denied" in refused.stderr


async def test_credentials_in_a_context(shell: Shell) -> None:
    jwts = JwtFortress(shell.folder)
    admin = jwts.creds("admin", {})
    async with running_server(jetstream=False, arguments=["-c", str(jwts.config)]) as server:
        await shell.good("context", "add", "jwt", "--server", server.url, "--creds", str(admin))
        made = await shell.cdm("init", "--context", "jwt")
        assert made.returncode == 0, made.stderr
        await shell.good("--context", "jwt", "kv", "put", "blueprints", ONE, "3")
        await shell.good("context", "select", "jwt")
        shown = json.loads((await shell.cdm("status", "--json")).stdout)
        assert [each["artifact"] for each in shown["blueprints"]] == ["org.example:slice:1.0.0"]


async def test_a_certificate_in_a_context(shell: Shell) -> None:
    async with fortress(shell.folder, "node-1") as found:
        tls = found.tls
    arguments = ["--tlsverify", "--tlscert", str(tls.cert), "--tlskey", str(tls.key), "--tlscacert", str(tls.ca)]
    async with running_server(arguments=arguments) as server:
        shown = ["--tlsca", str(tls.ca), "--tlscert", str(tls.client_cert), "--tlskey", str(tls.client_key)]
        await shell.good("context", "add", "tls", "--server", server.url, *shown, "--select")
        assert (await shell.cdm("init")).returncode == 0
        await shell.good("kv", "put", "blueprints", ONE, "3")
        assert (await shell.cdm("status")).returncode == Exit.UNHEALTHY


# The documents

SECTIONS = ("cdm", "Blueprints", "With the nats tool", "Nodes", "What must not run twice")
"""Where all commands are the tool's, and a server and nodes are enough for them."""


async def test_every_nats_command_of_the_documents_does_what_they_say(server: NatsServer, shell: Shell) -> None:
    await shell.good("context", "add", "readme", "--server", server.url, "--select")
    used = set()
    async with (
        raw(server) as user,
        processes(server, user, shell.folder, "node-1", "node-2") as running,
        agents(server, "node-1", "node-2"),
    ):
        for line in [line for section in SECTIONS for line in commands(section)]:
            _, *arguments = shlex.split(line)
            effect = next((effect for pattern, effect in EFFECTS if re.match(pattern, line)), None)
            assert effect is not None, f"the documents show a command that no test knows of: {line}"
            await effect(shell, user, arguments)
            used.add(effect)
        assert used == {effect for _, effect in EFFECTS}
        running.unharmed()


async def test_a_release_of_the_documents(server: NatsServer, shell: Shell) -> None:
    await shell.good("context", "add", "readme", "--server", server.url, "--select")
    push, put, status, endpoints = (shlex.split(line)[1:] for line in commands("What begins a rollout"))
    (record,) = (shlex.split(line)[1:] for line in commands("What happens in the middle"))
    assert endpoints == ["endpoints", "org.example:slice"]
    async with (
        raw(server) as user,
        processes(server, user, shell.folder, "node-1", "node-2") as running,
        agents(server, "node-1", "node-2"),
    ):
        await user.put("blueprints", ONE, {"instances": 3, "min_healthy": 0})
        await eventually(_are(user, 3), PATIENCE)
        pushed = await shell.cdm(*(str(ROOT / each) if each.startswith("examples/") else each for each in push))
        assert pushed.returncode == Exit.OK
        await shell.good(*put)

        async def begun() -> bool:
            done = await shell.nats(*record)
            return done.returncode == 0 and json.loads(done.stdout)["phase"] == "rolling"

        async def told() -> bool:
            """The status follows the record."""
            done = await shell.nats(*status)
            return done.returncode == 0 and json.loads(done.stdout)["rollout"]["from"] == "1.0.0"

        await eventually(begun, PATIENCE)
        await eventually(told, PATIENCE)
        listed = await shell.cdm(*endpoints)
        assert listed.returncode == Exit.OK, listed.stderr
        running.unharmed()


def test_the_blueprints_of_the_documents_are_read() -> None:
    (text,) = blocks("Checks", "json")
    assert len(Blueprint.parse(text.encode()).rollout.checks) == 3
    (lines,) = blocks("How it goes", "json")
    kinds = [Blueprint.parse(line.encode()).rollout.kind for line in lines.splitlines()]
    assert kinds == [RolloutKind.CANARY, RolloutKind.BLUE_GREEN]
    (text,) = blocks("Secrets", "json")
    overrides = Blueprint.parse(text.encode()).overrides
    assert overrides is not None
    assert {name: ref.form for name, ref in secrets_in(overrides.env).items()} == {
        "DB_PASSWORD": SecretForm.ENV,
        "TLS_KEY": SecretForm.FILE,
    }


Effect = Callable[[Shell, Raw, list[str]], Awaitable[None]]


async def _blueprint(shell: Shell, user: Raw, arguments: list[str]) -> None:
    await shell.good(*arguments)
    value = json.loads(arguments[-1])
    await eventually(_are(user, value if isinstance(value, int) else value["instances"]), PATIENCE)


async def _status(shell: Shell, user: Raw, arguments: list[str]) -> None:
    async def ready() -> bool:
        done = await shell.nats(*arguments)
        return done.returncode == 0 and json.loads(done.stdout)["condition"] == "Ready"

    await eventually(ready, PATIENCE)


async def _no_blueprint(shell: Shell, user: Raw, arguments: list[str]) -> None:
    await shell.good(*arguments)
    await eventually(_are(user, 0), PATIENCE)


async def _history(shell: Shell, user: Raw, arguments: list[str]) -> None:
    assert len(re.findall("PUT", await shell.good(*arguments))) >= 2


async def _watch(shell: Shell, user: Raw, arguments: list[str]) -> None:
    async with shell.running(*arguments) as said:
        await eventually(lambda: said().count('"ACTIVE"') >= 5, PATIENCE)


async def _nodes(shell: Shell, user: Raw, arguments: list[str]) -> None:
    keys = (await shell.good(*arguments)).split()
    of_nodes = [key for key in keys if not (key.endswith(".seen") or key.startswith("_manager."))]
    assert sorted(of_nodes) == ["node-1", "node-2"]


async def _micro(shell: Shell, user: Raw, arguments: list[str]) -> None:
    async def shown() -> bool:
        told = await shell.good(*arguments)
        return "node-1" in told and ("node-2" in told or "info" in arguments)

    await eventually(shown, PATIENCE)


async def _intent(shell: Shell, user: Raw, arguments: list[str]) -> None:
    await shell.good(*arguments)
    wanted = json.loads(arguments[-1])["schedule"] if "put" in arguments else "normal"
    shown = json.loads((await shell.cdm("status", "--json")).stdout)
    assert [node["schedule"] for node in shown["nodes"] if node["node"] == "node-1"] == [wanted]


EFFECTS: list[tuple[str, Effect]] = [
    (r"nats kv put blueprints ", _blueprint),
    (r"nats kv get --raw status ", _status),
    (r"nats kv del -f blueprints ", _no_blueprint),
    (r"nats kv history blueprints ", _history),
    (r"nats kv watch slices", _watch),
    (r"nats kv ls nodes", _nodes),
    (r"nats micro ", _micro),
    (r"nats kv (put|del -f) nodes node-1.intent", _intent),
]
"""What each command of the documents must bring about."""


async def test_what_is_pushed_is_an_object(server: NatsServer, shell: Shell) -> None:
    (shell.folder / "job.py").write_text("print()", encoding="utf-8")
    pushed = await shell.cdm("artifact", "push", "org.example:slice:1.0.0", "job.py", "--server", server.url)
    assert pushed.returncode == 0, pushed.stderr
    tool = inline("nats object").removeprefix("nats ")
    assert ONE in await shell.good("--server", server.url, tool, "ls", "artifacts")


async def test_the_signatures_of_the_documents(server: NatsServer, tmp_path: Path) -> None:
    program()
    make, trust, push, sign, verify = commands("Signatures")
    (tmp_path / "service" / "bin").mkdir(parents=True)
    (tmp_path / "service" / "bin" / "serve").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "service" / "bin" / "serve").chmod(0o755)
    (tmp_path / "worker.py").write_text("print()")
    async with terminal(tmp_path, NATS_URL=server.url) as shell:
        public = (await shell.good(f"{make} && {trust}")).split()[-1]
        assert await shell.good("cat trusted.keys") == f"{public}\n"
        await shell.good("cdm artifact push org.example:worker:1.0.0 worker.py")
        assert stat.S_IMODE((tmp_path / "release.nk").stat().st_mode) == 0o600
        for command in (push, f"{inline('cdm artifact sign')} org.example:worker:1.0.0 --key release.nk", sign):
            await shell.good(command)
        told = await shell.good(verify)
        assert f"{public}: valid, trusted" in told
        assert inline("cdm artifact verify") in verify


async def test_the_security_of_the_documents(tmp_path: Path) -> None:
    """Keys, a server with its permissions, an admin, a manager, a node and an operator, all as they are typed."""
    program()
    secure, server, contexts, init, manager, node, status, deploy, more, readers, rotate, reload, endpoints = commands(
        "Users and permissions"
    )
    certificates = commands("Certificates")
    drain, remove, forget = commands("Taking a node away")
    port = free_port()
    address = {"tls://nats.example.org": f"tls://127.0.0.1:{port}"}
    (tmp_path / "web.py").write_text("import time\ntime.sleep(3600)\n")
    async with terminal(tmp_path) as shell:
        Certificates(tmp_path)  # where there is no OpenSSL
        for command in certificates if shutil.which("openssl") else ():
            await shell.good(command.replace("DNS:nats.example.org", "IP:127.0.0.1"))
        written = await shell.good(adapted(secure, {**address, "/var/lib/nats": "store"}))  # where the tests may write
        seeds = [path.read_text(encoding="utf-8").strip() for path in (tmp_path / "site" / "keys").iterdir()]
        assert len(seeds) == 4
        await shell.start(f"{server} -a 127.0.0.1 -p {port}", "server")  # 4222 may be taken
        log = tmp_path / "server.log"
        await eventually(lambda: "Server is ready" in log.read_text(encoding="utf-8"), PATIENCE)
        await shell.good(contexts)
        await shell.good(init)
        await shell.start(manager, "manager")
        await shell.start(f"CDM_FOLDER=state {adapted(node, address)}", "node")

        async def complete(*names: str) -> bool:
            rows = [line.split()[:2] for line in (await shell.type(status)).splitlines()]
            there = all([name, "agent"] in rows for name in names)
            return shell.code == Exit.OK and ["manager-1", "manager"] in rows and there

        try:
            await eventually(lambda: complete("node-1"), 60, "the manager leads, and the node is there")
        except AssertionError:
            print(await shell.type(f"{status}; cat server.log manager.log node.log"))
            raise
        await shell.good(adapted(deploy, {"web.py": "web.py --no-wait"}))
        for command in (more, readers, rotate):
            written += await shell.good(command)
        # There may be other servers on this machine.
        await shell.good(adapted(reload, {"reload": "reload=$server"}))
        another = adapted(node, {**address, "node-1": "node-2"})
        await shell.start(f"CDM_FOLDER=other {another}", "other")
        await eventually(lambda: complete("node-2"), 60, "the node that was added is there")
        node_log = tmp_path / "node.log"
        await eventually(lambda: "Authorization Violation" in node_log.read_text(encoding="utf-8"), PATIENCE, "refused")
        await shell.good("kill $node; wait $node")
        await shell.start(f"CDM_FOLDER=state {adapted(node, address)}", "node")
        await eventually(lambda: complete("node-1", "node-2"), 60, "it is let in with its new key")
        assert "no instance of org.example:web can be sent requests" in await shell.good(endpoints)
        refused = await shell.type("cdm scale org.example:web:1 2 --context router")
        assert shell.code == Exit.DENIED, refused
        await shell.good(drain)
        await shell.good("kill $other; wait $other")
        assert "cdm node forget node-2" in await shell.good(remove)
        await shell.good(adapted(reload, {"reload": "reload=$server"}))

        async def forgotten() -> bool:
            await shell.type(forget)
            return shell.code == Exit.OK

        await eventually(forgotten, 60, "the node is given up, and then forgotten")
        await shell.good("kill $node; wait $node && kill $manager; wait $manager")
        await shell.type("kill $server; wait $server")
        told = written + await shell.good("cat *.log")
        for seed in seeds:
            assert seed not in told


async def test_nodes_that_servers_are_told_of(tmp_path: Path) -> None:
    """A node is added, given another key, and taken away, all while the server runs."""
    program()
    (status,) = (each for each in commands("Users and permissions") if each.startswith("cdm status"))
    secure, server, contexts, init, manager, node, more, rotate, rotate_system, remove = commands(
        "Nodes that servers are told of"
    )
    Certificates(tmp_path)
    port = free_port()
    address = {"tls://nats.example.org": f"tls://127.0.0.1:{port}"}
    async with terminal(tmp_path) as shell:
        written = await shell.good(adapted(secure, {**address, "/var/lib/nats": "store"}))
        await shell.start(f"{server} -a 127.0.0.1", "server")
        log = tmp_path / "server.log"
        await eventually(lambda: "Server is ready" in log.read_text(encoding="utf-8"), PATIENCE)
        await shell.good(contexts)
        await shell.good(init)
        await shell.start(manager, "manager")
        await shell.start(f"CDM_FOLDER=state {adapted(node, address)}", "node")
        there = _present(shell, status)
        await eventually(lambda: there("node-1"), 60, "the first node is there")
        written += await shell.good(more)
        another = adapted(node, {**address, "node-1": "node-2"})
        await shell.start(f"CDM_FOLDER=other {another}", "other")
        await eventually(lambda: there("node-1", "node-2"), 60, "the node that was added is there")
        keys = tmp_path / "site" / "keys"
        old, system = (keys / "node-1.creds").read_bytes(), (keys / "system.creds").read_bytes()
        written += await shell.good(rotate)
        assert (keys / "node-1.creds").read_bytes() != old
        written += await shell.good(rotate_system)
        assert {path.name for path in keys.iterdir() if "system" in path.name} == {"system.creds"}
        written += await shell.good(remove)
        assert not (keys / "node-2.creds").exists()
        node_log, other_log = tmp_path / "node.log", tmp_path / "other.log"
        # The one reads its new credentials when it connects again; the other's are no more.
        await eventually(lambda: "connected to NATS again" in node_log.read_text(encoding="utf-8"), PATIENCE, "let in")
        await eventually(lambda: "No such file" in other_log.read_text(encoding="utf-8"), PATIENCE, "refused")
        assert "6 accounts" in await shell.good(inline("cdm secure --out site --push"))  # one is of no node any more
        (tmp_path / "old.creds").write_bytes(old)
        refused = await shell.type(adapted(node, {**address, "site/keys/node-1.creds": "old.creds"}))
        assert shell.code == Exit.DENIED, refused
        new = (keys / "system.creds").read_bytes()
        (keys / "system.creds").write_bytes(system)
        refused = await shell.type(inline("cdm secure --out site --push"))
        assert (shell.code, "refused site/keys/system.creds" in refused) == (Exit.DENIED, True), refused
        (keys / "system.creds").unlink()
        written += await shell.good(inline("cdm secure --out site --rotate system"))
        # What servers were told they remember, also when they start with what they were set up with.
        await shell.good("kill $server; wait $server")
        await shell.start(f"{server} -a 127.0.0.1", "server")
        await eventually(lambda: there("node-1"), 60, "the node is there again")
        written += await shell.good(inline("cdm secure --out site --push"))
        await shell.good("kill $node; wait $node && kill $manager; wait $manager")
        await shell.type("kill $other; wait $other; kill $server; wait $server")
        told = written + await shell.good("cat *.log")
        for seed in re.findall(r"S[UAO][A-Z2-7]{56}", (old + system + new).decode()):
            assert seed not in told


async def test_an_operator_that_there_is(tmp_path: Path) -> None:
    """Its servers run, and go on; its other accounts stay what they are."""
    program()
    backup, secure, shred, push, contexts, init, manager, node, status = commands("An operator of NATS that there is")
    add = inline("nats auth operator add")
    Certificates(tmp_path)
    port = free_port()
    address = f"tls://127.0.0.1:{port}"
    async with terminal(tmp_path, XDG_DATA_HOME=str(tmp_path / "data"), HOME=str(tmp_path)) as shell:
        limits = "--jetstream --js-disk=1GB --js-memory=1GB"
        await shell.good(f"{add} ACME --signing-key && nats auth account add APP {limits} --defaults")
        await shell.good("nats auth user add bob APP --defaults --credential bob.creds")
        await shell.good(backup)
        secrets = re.findall(r"S[UAO][A-Z2-7]{56}", (tmp_path / "acme.json").read_text(encoding="utf-8"))
        _server_of(tmp_path, port)
        await shell.start("nats-server -c acme.conf", "server")
        log = tmp_path / "server.log"
        await eventually(lambda: "Server is ready" in log.read_text(encoding="utf-8"), PATIENCE)
        theirs = f"nats --server {address} --tlsca ca.pem --creds bob.creds"
        await shell.good(f"nats --server {address} --tlsca ca.pem --creds bob.creds pub x y")
        written = await shell.good(adapted(secure, {"tls://nats.example.org": address}))
        for command in (shred, push, contexts, init):
            written += await shell.good(command)
        await shell.start(manager, "manager")
        await shell.start(f"CDM_FOLDER=state {node}", "node")
        there = _present(shell, status)
        await eventually(lambda: there("node-1"), 60, "the node is there")
        written += await shell.good("cdm secure --out site --nodes node-2 --push")
        another = adapted(node, {"node-1": "node-2"})
        await shell.start(f"CDM_FOLDER=other {another}", "other")
        await eventually(lambda: there("node-1", "node-2"), 60, "the node that was added is there")
        refused = await shell.type("cdm secure --out site --rotate system")
        assert (shell.code, "belongs to the system account of operator ACME" in refused) == (Exit.USAGE, True), refused
        await shell.good(f"{theirs} pub x y")
        # An account of theirs will do for a cluster, too.
        assert "created" in await shell.good(f"cdm init --server {address} --tlsca ca.pem --creds bob.creds")
        await shell.good("kill $other; wait $other; kill $node; wait $node && kill $manager; wait $manager")
        await shell.type("kill $server; wait $server")
        kept = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site" / "issuers").iterdir())
        assert sum(seed in kept for seed in secrets) == 1, "of all keys in the backup one is kept, which signs accounts"
        told = written + await shell.good("cat *.log")
        assert not [seed for seed in secrets if seed in told]


def _server_of(folder: Path, port: int) -> None:
    """A server's configuration with the operator in the backup."""
    backup = json.loads((folder / "acme.json").read_text(encoding="utf-8"))
    (system,) = (each for each in backup["accounts"] if each["name"] == "SYSTEM")
    name = claims_of(system["token"]).sub
    accounts = "".join(f"{claims_of(each['token']).sub}: {each['token']}\n" for each in backup["accounts"])
    (folder / "acme.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "acme" }}\noperator: {backup["token"]}\n'
        f'system_account: {name}\nresolver {{ type: full, dir: "told" }}\nresolver_preload {{\n{accounts}}}\n'
        'tls { cert_file: "server.pem", key_file: "server.key", ca_file: "ca.pem" }\n',
        encoding="utf-8",
    )


def _present(shell: Terminal, status: str) -> Callable[..., Awaitable[bool]]:
    """Whether the agents of these names are there."""

    async def there(*names: str) -> bool:
        rows = [line.split()[:2] for line in (await shell.type(status)).splitlines()]
        return shell.code == Exit.OK and all([name, "agent"] in rows for name in names)

    return there


async def test_cdm_is_a_command_of_the_tool(server: NatsServer, tmp_path: Path) -> None:
    program()
    register, status = commands("As a part of the nats tool")
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    async with terminal(tmp_path, **home) as shell:
        assert "was added" in await shell.good(register)
        await shell.good(f"cdm init --server {server.url}")
        # The tool hands the connection's options on, and fails where the command does: nobody leads.
        url = server.url
        for line in (f"{status} -s {url}", f"NATS_URL={url} {status}", f"nats -s {url} cdm status"):
            assert "leader none" in await shell.type(line)
            assert shell.code == Exit.FAILED
        assert '"buckets"' in await shell.good(f"nats cdm init --json --server {server.url}")
        assert "there is no node n1" in await shell.type(f"nats cdm drain n1 n2 --timeout 9s --wait -s {server.url}")
