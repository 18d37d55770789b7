"""Secrets on a real server, with real nodes: slices have them, and nobody else ever hears of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from cdm.model.manifest import Manifest, Restart, RestartPolicy
from cdm.model.secret import SecretForm, SecretRef
from tests.harness.processes import Processes, processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import yard
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

HUSH = "s3cret-hush-hush"
TELLS = """
    import json, os, stat, time
    from pathlib import Path
    path = Path(os.environ["FILE"])
    found = path.stat()
    told = {"password": os.environ["PASSWORD"], "file": path.read_text(), "path": str(path)}
    told |= {"mode": stat.S_IMODE(found.st_mode), "level": os.environ["LEVEL"], "mine": found.st_uid == os.getuid()}
    Path(os.environ["TOLD"]).write_text(json.dumps(told))
    time.sleep(600)
"""
"""Tells a test what it was given."""
SAYS = """
    import os, sys
    print("no such user:", os.environ["PASSWORD"], open(os.environ["FILE"]).read())
    sys.exit(3)
"""
BOTH = {"PASSWORD": {"secret": "db-password"}, "FILE": {"secret": "db-password", "as": "file"}}


def secrets_in(folder: Path, **values: str) -> Path:
    """A folder of secrets for a node."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("_", "-")).write_text(value)
    return folder


def start(running: Processes, name: str, folder: Path, *options: str) -> None:
    """Start a node that runs slices."""
    running.start(name, "--runtime", "process", "--folder", str(folder / name), *options)


async def told(path: Path) -> dict[str, Any]:
    """Wait until the program has told what it was given."""
    await eventually(path.is_file, 20, "the program runs")
    found: dict[str, Any] = {}

    def whole() -> bool:
        nonlocal found
        try:
            found = json.loads(path.read_text())
        except ValueError:
            return False
        return True

    await eventually(whole, 20, "all is told")
    await anyio.Path(path).unlink()
    return found


async def reason(user: Raw, name: str, condition: str, holds: str) -> str:
    """Wait until the status has this condition, and a reason with these words."""
    status: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal status
        status = await user.status(name)
        return status.get("condition") == condition and holds in status.get("reason", "")

    try:
        await eventually(there, 30, f"{name} is {condition}: {holds}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {status}") from None
    return str(status["reason"])


async def test_slices_are_given_secrets_and_nobody_else_hears_of_them(server: NatsServer, tmp_path: Path) -> None:
    hidden = secrets_in(tmp_path / "secrets", db_password=f"{HUSH}\n")
    out = tmp_path / "told"
    async with yard(server, tmp_path) as ground, raw(server) as user, raw(server) as spy:
        heard = await spy.overhear(">")
        manifest = Manifest(env={"TOLD": str(out), "LEVEL": "info"}, stop_grace=2)
        name = await ground.push("one", TELLS, manifest)
        async with processes(server, user, tmp_path, "m1") as running:
            start(running, "n1", tmp_path)
            await user.put("blueprints", name, {"instances": 1, "env": BOTH, "min_healthy": 0})
            why = await reason(user, name, "Unschedulable", "cannot be placed")
            assert "giving no secrets" in why
            start(running, "n2", tmp_path, "--secrets", str(hidden))
            given = await told(out)
            assert given == {
                "password": HUSH,
                "file": f"{HUSH}\n",
                "mode": 0o400,
                "level": "info",
                "mine": True,
                "path": given["path"],
            }
            assert Path(given["path"]).is_relative_to(tmp_path / "n2")
            await reason(user, name, "Ready", "")
            assert {key.partition(".")[0] for key in await user.slices()} == {"n2"}
            # Another value is for what is started from then on.
            secrets_in(hidden, db_password="another-hush")
            await user.put("blueprints", name, {"instances": 1, "env": BOTH, "min_healthy": 0, "restarted": "1"})
            assert (await told(out))["password"] == "another-hush"
            await reason(user, name, "Ready", "")
            # It is Ready as soon as the old one is told to go.
            await eventually(lambda: not Path(given["path"]).exists(), what="what the old one was given is gone")
            # One that is missing.
            await user.put("blueprints", name, 0)
            await ground.settles(0)
            await anyio.Path(hidden, "db-password").unlink()
            await user.put("blueprints", name, {"instances": 1, "env": BOTH, "min_healthy": 0, "restarted": "1"})
            await reason(user, name, "Degraded", "1 failed: there is no secret 'db-password' on node n2")
            secrets_in(hidden, db_password=HUSH)
            assert (await told(out))["password"] == HUSH
            await reason(user, name, "Ready", "")
            await user.put("blueprints", name, 0)
            await ground.settles(0)
            assert not [each async for each in anyio.Path(tmp_path, "n2", "runtime", "secrets").iterdir()]
            logs = running.logs()
        shown = [message.data.decode(errors="replace") for message in heard]
        assert any("db-password" in each for each in shown)
        statuses = [message.data for message in heard if message.subject.startswith("$KV.status.")]
        assert statuses
        assert not [each for each in statuses if b'"env"' in each or b'"settings"' in each]
        for value in (HUSH, "another-hush"):
            assert not [each for each in shown if value in each]
            assert value not in logs


async def test_what_a_program_says_of_its_secret_is_not_told_with_its_end(server: NatsServer, tmp_path: Path) -> None:
    hidden = secrets_in(tmp_path / "secrets", db_password=HUSH)
    async with yard(server, tmp_path) as ground, raw(server) as user:
        manifest = Manifest(
            env={"PASSWORD": SecretRef("db-password"), "FILE": SecretRef("db-password", SecretForm.FILE)},
            restart=Restart(RestartPolicy.NEVER),
        )
        program = SAYS
        name = await ground.push("one", program, manifest)
        async with processes(server, user, tmp_path, "m1") as running:
            start(running, "n1", tmp_path, "--secrets", str(hidden))
            await user.put("nodes", "m1.intent", {"schedule": "cordon"})  # it runs nothing
            await eventually(lambda: running.know("cordon", "m1", managers=["m1"]), what="the leader knows of it")
            await user.put("blueprints", name, 1)
            why = await reason(user, name, "Degraded", "last output: ")
            assert "no such user: [secret db-password] [secret db-password]" in why
            assert HUSH not in running.logs()
