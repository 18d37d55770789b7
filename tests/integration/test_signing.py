"""Signed artifacts on a real server, by real commands, on real nodes that trust somebody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import anyio
import nkeys
import pytest

from cdm.artifacts.signing import SigningKey, TrustedKeys
from cdm.errors import UsageError
from tests.cli.test_cli import run
from tests.harness.processes import node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, Rejection, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "org.example:one:1"
KEY = "org.example/one/1"
MANIFEST = """
env = { LEVEL = "info", QUIET = "private-of-the-manifest" }
override = ["env.LEVEL"]
stop_grace = 2
restart = { backoff = 0.1 }
"""
PROGRAM = "#!/bin/sh\necho $$ $LEVEL $* >> {told}\nexec sleep 600\n"


def key(path: Path) -> str:
    """Make a key; returns the public one."""
    path.write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) + b"\n")
    return SigningKey(path).public


def artifact(server: NatsServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``cdm artifact``."""
    return run("artifact", *map(str, arguments), "--server", server.url)


def program(folder: Path) -> Path:
    """A program that tells its level and arguments, and its manifest beside it."""
    (folder / "manifest.toml").write_text(MANIFEST)
    path = folder / "one.sh"
    path.write_text(PROGRAM.format(told=folder / "told"))
    path.chmod(0o755)
    return path


async def told(user: Raw, condition: str, holds: str = "") -> dict[str, Any]:
    """Wait until the status says so."""
    status: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal status
        status = await user.status(KEY)
        return status.get("condition") == condition and holds in status.get("reason", "")

    try:
        await eventually(there, 30)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {status}") from None
    return status


@pytest.mark.quick
def test_keys_and_files_of_keys(tmp_path: Path) -> None:
    one, two = key(tmp_path / "one"), key(tmp_path / "two")
    (tmp_path / "trust").write_text(f"# who releases\n\n{one}  the build server\n {two}\n")
    assert TrustedKeys.read(tmp_path / "trust").keys == {one, two}
    for line, problem in (
        ("hello", "line 2 is no public key"),
        (one[:-1] + ("A" if one[-1] != "A" else "B"), "line 2 is no public key"),
        ((tmp_path / "one").read_text(), "line 2 is a seed, which has no place here"),
    ):
        (tmp_path / "trust").write_text(f"{two}\n{line}")
        with pytest.raises(UsageError, match=problem) as refused:
            TrustedKeys.read(tmp_path / "trust")
        assert line.strip() not in str(refused.value)
    with pytest.raises(UsageError, match="No such file"):
        TrustedKeys.read(tmp_path / "none")
    (tmp_path / "three").write_text(one)
    with pytest.raises(UsageError, match="holds no seed"):
        SigningKey(tmp_path / "three")


async def test_what_is_stored_is_signed_and_verified(server: NatsServer, tmp_path: Path) -> None:
    path, mine, other = program(tmp_path), key(tmp_path / "mine"), key(tmp_path / "other")
    (tmp_path / "trust").write_text(mine)
    pushed = json.loads(artifact(server, "push", NAME, path, "--manifest", tmp_path / "manifest.toml", "--json").stdout)
    assert pushed["signed_by"] == []
    unsigned = artifact(server, "verify", NAME)
    assert (unsigned.returncode, unsigned.stdout.splitlines()[-1]) == (
        1,
        f"cdm: {NAME} is not vouched for: it is not signed",
    )
    wrong = artifact(server, "sign", NAME, "--key", tmp_path / "other", "--sha256", "0" * 64)
    assert wrong.returncode == 4
    assert "nothing was signed" in wrong.stderr
    assert artifact(server, "sign", NAME, "--key", tmp_path / "other", "--sha256", pushed["sha256"]).returncode == 0
    assert artifact(server, "verify", NAME).returncode == 0
    strange = artifact(server, "verify", NAME, "--trust", tmp_path / "trust", "--json")
    assert strange.returncode == 1
    assert json.loads(strange.stdout)["signatures"] == [{"key": other, "valid": True, "trusted": False}]
    # The same again, signed: nothing is stored but the signature.
    again = artifact(server, "push", NAME, path, "--manifest", tmp_path / "manifest.toml", "--sign", tmp_path / "mine")
    assert again.stdout.startswith(f"{NAME}: signed: ")
    assert artifact(server, "verify", NAME, "--trust", tmp_path / "trust").returncode == 0
    (listed,) = json.loads(artifact(server, "ls", "--json").stdout)["artifacts"]
    assert listed["signed_by"] == sorted([mine, other])
    assert listed["manifest"]["env"]["QUIET"] == "private-of-the-manifest"
    async with raw(server) as user:
        info = await user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.M.>"})
        (subject,) = info["state"]["subjects"]
        record = (await user.client.request(f"$JS.API.DIRECT.GET.OBJ_artifacts.{subject}")).data
        assert b"private-of-the-manifest" not in record, "whoever lists objects need not see it"
        # A signature of this content under another name, and on another manifest.
        fields = json.loads(record)
        fields["name"] = "org.example/two/1"
        two = subject.rpartition(".")[0] + ".b3JnLmV4YW1wbGUvdHdvLzE="
        await user.client.request(two, json.dumps(fields).encode())
    moved = artifact(server, "verify", "org.example:two:1", "--trust", tmp_path / "trust")
    assert moved.returncode == 1
    assert "is not of this content and manifest" in moved.stdout


async def test_older_nodes_are_pushed_what_they_can_read(server: NatsServer, tmp_path: Path) -> None:
    path = program(tmp_path)
    key(tmp_path / "mine")
    (tmp_path / "plain.toml").write_text('env = { QUIET = "private-of-the-manifest" }')
    push = ("push", NAME, path, "--manifest", tmp_path / "plain.toml")
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        old = {"role": "agent", "runtime": "process", "version": "0.0.9", "incarnation": "x"}
        await user.put("nodes", "n1", old)
        for asked in (("--sign", tmp_path / "mine"), ("--manifest", tmp_path / "manifest.toml")):
            refused = artifact(server, *push[: 3 if "--manifest" in asked else 5], *asked)
            assert refused.returncode == 4, refused.stdout
            assert "node n1 (its cdm 0.0.9) cannot read artifacts that are signed" in refused.stderr
        pushed = artifact(server, *push)
        assert pushed.returncode == 0
        assert "note: node n1 (its cdm 0.0.9) needs the manifest beside the content" in pushed.stderr
        info = await user.api("STREAM.INFO.OBJ_artifacts", {"subjects_filter": "$O.artifacts.M.>"})
        (subject,) = info["state"]["subjects"]
        record = json.loads((await user.client.request(f"$JS.API.DIRECT.GET.OBJ_artifacts.{subject}")).data)
        stored = json.loads(record["metadata"]["cdm"])
        assert stored["manifest"]["env"] == {"QUIET": "private-of-the-manifest"}
        assert not stored.keys() & {"tail", "data", "signatures"}
        assert "override" not in stored["manifest"], "which they would refuse"
        nothing_to_hide = artifact(server, "push", "org.example:plain:1", path)
        assert (nothing_to_hide.returncode, nothing_to_hide.stderr) == (0, "")
        # Once it is upgraded the same push changes nothing, and by force it is stored as it should be.
        await user.put("nodes", "n1", {**old, "version": "0.2", "features": ["manifest-inside"]})
        assert "unchanged" in artifact(server, *push).stdout
        unsigned = artifact(server, *push, "--sign", tmp_path / "mine")
        assert unsigned.returncode == 4
        assert "is stored as earlier versions did, which cannot be signed; replace it: --force" in unsigned.stderr
        assert artifact(server, "sign", NAME, "--key", tmp_path / "mine").returncode == 4
        replaced = artifact(server, *push, "--sign", tmp_path / "mine", "--force")
        assert ("replaced" in replaced.stdout, "note" in replaced.stderr) == (True, False)
        assert artifact(server, "verify", NAME).returncode == 0
        # What is FAILED does not hear of it: when it is tried again is told.
        await user.put("status", KEY, {"condition": "Degraded", "failed": 1})
        for then in (("sign", NAME, "--key", tmp_path / "mine"), (*push, "--sign", tmp_path / "mine", "--force")):
            assert artifact(server, *then).stderr.endswith(f"within 5 minutes, or at once: cdm restart {NAME}\n")


async def none(user: Raw) -> bool:
    """Whether there is no slice: what is FAILED is tried again only after minutes."""
    return not await user.slices()


async def test_a_node_that_trusts_somebody_runs_nothing_else(server: NatsServer, tmp_path: Path) -> None:
    path, mine, other = program(tmp_path), key(tmp_path / "mine"), key(tmp_path / "other")
    trust, said = tmp_path / "trust", tmp_path / "told"
    trust.write_text(f"{mine} the build server\n")
    push = ("push", NAME, path, "--manifest", tmp_path / "manifest.toml")
    with node_processes(server, tmp_path) as running:
        async with raw(server) as user:
            running.start("n1", "--runtime", "process", "--folder", str(tmp_path / "n1"), "--trust", str(trust))
            await eventually(lambda: _registered(user), 30)
            assert artifact(server, *push).returncode == 0
            plain = {"instances": 1, "min_healthy": 0}
            await user.put("blueprints", KEY, plain)
            status = await told(user, "Degraded", "it is not signed")
            assert f"node n1 runs only artifacts that are signed by a key in {trust}" in status["reason"]
            assert artifact(server, "sign", NAME, "--key", tmp_path / "other").returncode == 0
            await user.put("blueprints", KEY, 0)
            await eventually(lambda: none(user), 30)
            await user.put("blueprints", KEY, plain)
            await told(user, "Degraded", f"it is signed by {other}, who is not trusted")
            assert not await anyio.Path(said).exists()
            # A further signature, by one who is trusted.
            assert artifact(server, "sign", NAME, "--key", tmp_path / "mine").returncode == 0
            await user.put("blueprints", KEY, 0)
            await eventually(lambda: none(user), 30)
            await user.put("blueprints", KEY, plain)
            await told(user, "Ready")
            # What the manifest lets blueprints set, and what it does not.
            await eventually(said.is_file, what="the first one has begun")
            allowed = {**plain, "env": {"LEVEL": "debug"}}
            await user.put("blueprints", KEY, allowed)
            await eventually(lambda: said.read_text().split()[-1:] == ["debug"], 30)
            await told(user, "Ready")
            changes: list[tuple[dict[str, Any], str]] = [
                ({"env": {"PATH": "/x"}}, "env.PATH"),
                ({"args": ["-x"]}, "args"),
            ]
            for refused, what in changes:
                await user.put("blueprints", KEY, {**allowed, **refused})
                await told(user, "Reverted", f"{what} of the blueprint is not in `override` of the signed manifest")
            await user.put("blueprints", KEY, {**allowed, "restarted": "3"})
            await told(user, "Ready")
            # Another key takes over while it runs: when its program ends it is started again.
            new = key(tmp_path / "new")
            assert artifact(server, "sign", NAME, "--key", tmp_path / "new").returncode == 0
            trust.write_text(new)
            before = said.read_text().splitlines()
            os.kill(int(before[-1].split()[0]), signal.SIGKILL)
            await eventually(lambda: len(said.read_text().splitlines()) > len(before), 30)
            await eventually(lambda: _restarted(user), 30)
            await told(user, "Ready")
            # A key that is taken out, without a restart of the node: what runs goes on, what starts is refused.
            started = said.read_text().splitlines()
            trust.write_text(f"{mine[:-1]}\n")
            await anyio.sleep(1)
            assert (await user.status(KEY))["condition"] == "Ready"
            trust.write_text(f"# {new}\n")
            os.kill(int(started[-1].split()[0]), signal.SIGKILL)
            await told(user, "Degraded", "who is not trusted")
            assert said.read_text().splitlines() == started
            # A node that runs anything takes what this one refuses, as soon as there is one.
            running.start("n2", "--runtime", "process", "--folder", str(tmp_path / "n2"))
            await told(user, "Ready")
            await eventually(lambda: len(said.read_text().splitlines()) > len(started), what="it has begun there")
            assert len(said.read_text().splitlines()) == len(started) + 1
            running.unharmed()


async def _restarted(user: Raw) -> bool:
    values = [each.value for key, each in (await user.contents("slices")).items() if key.startswith("n1.")]
    if len(values) != 1:  # one that was replaced is still going
        return False
    (value,) = values
    assert (value["state"], value.get("failures") or 0) in (("ACTIVE", 0), ("ACTIVATING", 0)), value
    return value["state"] == "ACTIVE" and value.get("restarts") == 1


async def _registered(user: Raw) -> bool:
    try:
        return "n1" in await user.registrations()
    except Rejection:  # there is no bucket yet
        return False
