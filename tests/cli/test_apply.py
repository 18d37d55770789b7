"""``cdm apply``, ``cdm plan`` and ``cdm export`` on real servers: what is shown, written, and left alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.cli.applying import Decided, Wish, decided, wait_for, write
from cdm.cli.documents import Document, read_all
from cdm.errors import Conflict, Uncertain
from cdm.model.artifact import Artifact
from cdm.store.connection import Access, connect
from tests.cli.test_cli import run
from tests.cli.test_releases import cluster
from tests.docs.documents import blocks, commands
from tests.harness.servers import FORGIVEN, NatsServer, running_cluster
from tests.harness.store import connected
from tests.harness.terminal import terminal
from tests.harness.waiting import bounded, eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

OWNER = "Cdm-Owner"
QUICK = "min_healthy: 0\ndrain_delay: 0\n"


async def _blueprints(user: Raw) -> dict[str, Any]:
    """The blueprints that there are, by artifact."""
    found = (await user.contents("blueprints")).values()
    return {each.key.replace("/", ":"): json.loads(each.data) for each in found if not each.gone}


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


async def test_the_commands_of_the_documents(server: NatsServer, tmp_path: Path) -> None:
    (shop,) = blocks("From a file", "yaml")
    plan, apply, one, keep, kept, prune, export = commands("From a file")
    (tmp_path / "shop.yaml").write_text(shop, encoding="utf-8")
    async with (
        cluster(server, "n1", "n2") as it,
        terminal(tmp_path, NATS_URL=server.url, COLUMNS="200") as shell,
    ):
        shown = await shell.good(plan)
        assert "+ acme:web:1  create  (shop.yaml:2)" in shown
        assert shown.count("+ LOAD ") == 5
        assert "2 to create" in shown
        assert await _blueprints(it.user) == {}
        shown = await shell.good(apply)
        assert "acme:api:1: created" in shown
        assert shown.splitlines()[-1][10:] == "2 of 2 complete"
        assert {"acme:web:1: complete", "acme:api:1: complete"} <= {line[10:] for line in shown.splitlines()}
        first = await _blueprints(it.user)
        assert first["acme:web:1"] == {"instances": 3, "min_healthy": 1, "env": {"LEVEL": "info"}}
        assert "unchanged" in await shell.good(f"{apply} | tail -1; {plan}")

        assert "acme:web:1: changed: instances 3 -> 4; env.LEVEL changed" in await shell.good(one)
        assert (await _blueprints(it.user))["acme:web:1"] == {
            **first["acme:web:1"],
            "instances": 4,
            "env": {"LEVEL": "debug"},
        }
        assert "instances 4 -> 3" in await shell.good(keep)
        assert "acme:web:1: changed" in await shell.good(kept)
        assert await _blueprints(it.user) == first
        assert "was changed since the plan was made" in await shell.type(f"{kept} 2>&1")
        assert shell.code == 4

        await shell.good("cdm apply acme:old:1 --owner shop")
        assert "acme:old:1: removed" in await shell.good(prune)
        assert await _blueprints(it.user) == first
        await shell.good(export)
        assert read_all([tmp_path / "cluster.yaml"])[1].fields == first["acme:web:1"]


@pytest.mark.quick
async def test_one_mistake_and_nothing_is_written(server: NatsServer, tmp_path: Path) -> None:
    assert run("init", "--server", server.url).returncode == 0
    path = _write(tmp_path / "a.yaml", "artifact: a:b:1\ninstances: 1\n---\nartifact: a:c:1\ninstences: 1\n")
    for command in ("apply", "plan"):
        for more in ((), ("--json",)):
            done = run(command, "--server", server.url, "-f", path, *more)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"{path}:5: instences: there is no such field (did you mean instances?)" in done.stderr
            assert "cdm: 2 mistakes, so nothing was done" in done.stderr.splitlines()
    async with raw(server) as user:
        assert await _blueprints(user) == {}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "say what there is to be: -f FILE"),
        (["a:b:1", "-f", "x"], "choose one of them"),
        (["-f", "x", "--instances", "3"], "--instances, --set: they are for an artifact"),
        (["-f", "x", "--prune"], "write --owner NAME, too"),
        (["a:b:1", "--owner", "x", "--prune"], "--prune: it is for files"),
        (["a:b:1", "--instances", "-1"], "--instances: .*neither a number from 0 to 100,000 nor each"),
        (["a:b:1", "--owner", ""], "--owner '': write a name"),
        (["a:b:1", "--owner", "ü"], "--owner 'ü': write a name"),
        (["a.yaml"], "a.yaml is a file: write -f a.yaml"),
        (["-f", "--json"], "-f --json: that is no file"),
        (["a:b"], "is a service; write the version too"),
        (["-f", "/nowhere"], "1 mistake, so nothing was done"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], why: str) -> None:
    done = run("apply", *arguments)
    assert done.returncode == 2
    assert re.search(why, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_of_plans_is_told(tmp_path: Path) -> None:
    plan = _write(tmp_path / "a.plan", '{"kind": "cdm plan"}')
    for arguments, why in (
        (["--plan", plan, "-f", "x"], "--plan: what is to be written is in the plan"),
        (["--plan", plan], "is no plan: .*`cdm plan --out"),
        (["--plan", "/nowhere"], "cannot be read: No such file"),
        (["--plan", plan, "--timeout", "3s"], "--timeout: nothing is waited for"),
    ):
        done = run("apply", *arguments)
        assert (done.returncode, bool(re.search(why, done.stderr))) == (2, True), done.stderr


async def test_a_version_takes_over_from_a_file_as_foreseen(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, "n1", "n2") as it:
        first = f"artifact: acme:web:1\ninstances: 2\n{QUICK}"
        path = _write(tmp_path / "web.yaml", first)
        assert (await it.json("apply", "-f", path, "--owner", "web", "--wait"))["changes"][0]["result"] == "complete"
        assert await it.cdm("plan", "-f", path, "--detailed-exitcode") == "1 unchanged\n"

        second = f'artifact: acme:web:2\ninstances: 3\n{QUICK}rollout: {{from: "1"}}\n'
        _write(tmp_path / "web.yaml", f"{second}---\nartifact: acme:api:1\ninstances: 2\nrequire: [gpu]\n")
        planned = await it.json("plan", "-f", path, "--owner", "web", "--prune", "--detailed-exitcode", code=10)
        effects = [(each["kind"], each["artifact"], each["what"]) for each in planned["effects"]]
        assert ("~", "acme:web:2", "roll 2 instances 1 -> 2, 1 at a time") in effects
        assert any(each[:2] == ("!", "acme:api:1") and "0 of 2 nodes take it" in each[2] for each in effects)
        loads = {each["slice"] for each in planned["effects"] if each["kind"] == "+"}
        assert loads
        assert all(re.fullmatch(r"n[12]\.acme/web/2(/\d)?", each) for each in loads)
        # What is gone back to is not removed, although no document has it.
        assert [each["action"] for each in planned["changes"]] == ["create", "create"]
        assert planned["leader"] in ("n1", "n2")

        shown = await it.cdm("apply", "-f", path, "--owner", "web", "--prune", "--wait", "--timeout", "20s", code=3)
        assert "acme:web:2: complete" in shown
        assert "acme:api:1: timed out" in shown
        assert loads <= (await it.user.slices()).keys()
        assert (await it.user.contents("blueprints"))["acme/web/2"].headers[OWNER] == "web"

        # Other commands leave the owner as it is; somebody without cdm leaves none.
        await it.cdm("scale", "acme:web:2", "2")
        assert (await it.user.contents("blueprints"))["acme/web/2"].headers[OWNER] == "web"
        await it.user.put("blueprints", "acme/api/1", 0)
        _write(tmp_path / "web.yaml", f"artifact: acme:web:2\ninstances: 2\n{QUICK}")
        assert "acme:web:1: removed" in await it.cdm("apply", "-f", path, "--owner", "web", "--prune")
        assert (await _blueprints(it.user)).keys() == {"acme:web:2", "acme:api:1"}
        history = await it.json("history", "acme:web")
        assert [each["changes"] for each in history["revisions"][-2:]] == [["rollout.from removed"], ["deleted"]]
        assert all("@" in each["by"] for each in history["revisions"])


async def test_what_is_exported_gives_the_same_blueprints_elsewhere(server: NatsServer, tmp_path: Path) -> None:
    values = {
        "acme/web/1": {"instances": 2, "env": {"A": "off", "B": "1.0", "C": "two\nlines: # \u2028"}},
        "acme/web/2": {"instances": "each", "rollout": {"from": "1", "kind": "canary", "steps": [{"weight": 10}]}},
        "acme/api/1.0=2B1": 3,
        "acme/old/1": {"instances": 1, "spread": [{"by": "zone", "weights": {"a": 2, "*": 1}}]},
    }
    for prefix in ("one", "two", "three"):
        assert run("init", "--server", server.url, "--prefix", prefix).returncode == 0
    async with raw(server, "one") as one, raw(server, "two") as two, raw(server, "three") as three:
        for key, value in values.items():
            await one.put("blueprints", key, value, {OWNER: "me"} if key == "acme/old/1" else None)
        await one.put("blueprints", "acme/api/1.0=2B1", {"instances": -1})
        for user, more in ((two, ()), (three, ("--json",))):
            done = run("export", "--server", server.url, "--prefix", "one", *more)
            assert done.returncode == 0
            assert "the newest blueprint of acme:api:1.0+b1 is refused" not in done.stderr
            assert "the newest blueprint of acme:api:1.0+1 is refused; the one before it is written out" in done.stderr
            path = _write(tmp_path / "cluster", done.stdout)
            assert run("apply", "--server", server.url, "--prefix", user.bucket("")[:-1], "-f", path).returncode == 0
            assert await _blueprints(user) == {key.replace("/", ":"): value for key, value in values.items()}
        only = run("export", "--server", server.url, "--prefix", "one", "--owner", "me").stdout
        assert only.splitlines()[1:3] == ["--- # owner: me", "artifact: acme:old:1"]


async def test_what_others_wrote_meanwhile_stays_and_what_was_written_before_is_told(
    server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [Document(Artifact("acme", name, "1"), {"instances": 2}, "") for name in ("a", "b", "c")]
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user, connected(server) as connection:
        await user.put("blueprints", "acme/b/1", 1)
        found = await decided(connection, Wish(documents))
        await user.put("blueprints", "acme/b/1", 7)
        with pytest.raises(Conflict, match="acme:b:1 was written by others meanwhile"):
            await write(connection, found.changes)
        assert await _blueprints(user) == {"acme:a:1": 2, "acme:b:1": 7}
        assert capsys.readouterr().err == "cdm: written before that: acme:a:1\n"


async def test_an_acknowledgement_that_is_lost_is_no_write_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    documents = [Document(Artifact("acme", name, "1"), {"instances": 2}, "") for name in ("a", "b")]
    async with running_cluster() as servers:
        every = ",".join(server.url for server in servers)
        assert run("init", "--replicas", "3", "--server", every).returncode == 0
        async with raw(servers) as user:
            written = [await user.stubborn("blueprints", f"acme/{name}/1", 1) for name in ("a", "b")]
            leader = (await user.api("STREAM.INFO.KV_blueprints"))["cluster"]["leader"]
        # One that follows is left: it takes what is written for the leader, and answers from its replica.
        *others, alone = sorted(servers, key=lambda each: each.folder.name != leader)
        async with connect(Access((alone.url,)), name="test") as connection:

            async def all_is_there() -> Decided | None:
                look = await decided(connection, Wish(documents))
                return look if [change.version.revision for change in look.changes] == written else None

            found = await eventually(all_is_there)
            assert found is not None
            for server in others:
                server.pause()
            told: list[str] = []

            async def write_it() -> None:
                with pytest.raises(Uncertain) as raised:
                    await write(connection, found.changes)
                told.append(str(raised.value))

            try:
                with bounded(30):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(10):  # whether the replica answers that is left is a matter of luck
                            tasks.start_soon(write_it)
            finally:
                for server in others:
                    server.resume()
    assert all(each.startswith("no answer came: blueprint acme:a:1 may be stored, or be stored later") for each in told)
    assert capsys.readouterr().err == ""


async def test_whoever_waits_hears_of_what_stood_there_already(server: NatsServer) -> None:
    """Also where nothing is to be changed: it need not serve."""
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user, connected(server) as connection:
        for name, condition in (("a", "Ready"), ("b", "Degraded")):
            revision = await user.put("blueprints", f"acme/{name}/1", 1)
            told = {"condition": condition, "observed_revision": revision, "desired": 1, "failed": 1, "reason": "boom"}
            await user.put("status", f"acme/{name}/1", told)
        documents = [Document(Artifact("acme", name, "1"), {"instances": 1}, "") for name in ("a", "b")]
        found: Decided = await decided(connection, Wish(documents))
        with bounded(30):
            ends = await wait_for(connection, found, await write(connection, found.changes), timeout=10.0, json=True)
    assert {artifact.name: str(ended.end) for artifact, ended in ends.items()} == {"a": "complete", "b": "timed out"}


async def test_standard_input_is_read(server: NatsServer, tmp_path: Path) -> None:
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url) as shell:
        await shell.good("cdm init")
        await shell.good("printf 'artifact: acme:web:1\\ninstances: 2\\n' | cdm apply -f -")
        await shell.good("""echo '{"artifact": "acme:api:1", "instances": "each"}' | cdm apply -f -""")
        assert await _blueprints(user) == {"acme:web:1": 2, "acme:api:1": {"instances": "each"}}
        shown = await shell.type("echo 'artifact: acme' | cdm apply -f - 2>&1")
        assert "standard input:1: artifact: 'acme' is not of the form group:name:version" in shown
