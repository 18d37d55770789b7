"""``cdm artifact get`` and ``cdm artifact copy``: programs get out of a store, and into another one, as they are."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import anyio
import nkeys
import pytest
from msgspec.structs import replace

from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.model.artifact import Artifact
from cdm.model.manifest import Manifest
from tests.cli.test_cli import run
from tests.docs.documents import commands
from tests.harness.servers import NatsServer, running_server
from tests.harness.store import connected
from tests.harness.terminal import terminal
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio

LATER, LONE, TREE = "g:later:1", "g:lone:1", "g:tree:1"


def artifact(server: NatsServer, *arguments: str | Path, code: int = 0, prefix: str = "") -> str:
    done = run("artifact", *map(str, arguments), env={"NATS_URL": server.url, "CDM_PREFIX": prefix})
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def listed(server: NatsServer, prefix: str = "") -> dict[str, dict[str, Any]]:
    found = json.loads(artifact(server, "ls", "--json", prefix=prefix))["artifacts"]
    return {each.pop("artifact"): {name: value for name, value in each.items() if name != "pushed"} for each in found}


@pytest.fixture
def there(server: NatsServer, tmp_path: Path) -> NatsServer:
    """A server with a program and a folder, each with a manifest that says something."""
    (tmp_path / "hello.sh").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "hello.sh").chmod(0o755)
    (tmp_path / "service" / "bin").mkdir(parents=True)
    (tmp_path / "service" / "bin" / "serve").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "service" / "bin" / "serve").chmod(0o755)
    artifact(server, "push", LONE, tmp_path / "hello.sh", "--env", "LEVEL=info")
    artifact(server, "push", TREE, tmp_path / "service", "--entry", "bin/serve")
    return server


async def test_what_is_got_and_pushed_again_is_the_same(there: NatsServer, tmp_path: Path) -> None:
    before, into = listed(there), tmp_path / "into"
    into.mkdir()
    assert f"{LONE}: written to {into}/hello.sh (21 bytes" in artifact(there, "get", LONE, into)
    assert (into / "hello.sh").read_text() == "#!/bin/sh\necho hello\n"
    assert os.access(into / "hello.sh", os.X_OK)
    assert "hello.sh is there already; --force replaces it" in artifact(there, "get", LONE, into, code=4)
    artifact(there, "get", LONE, into, "--force", "--manifest", into / "hello.json")
    told = json.loads(artifact(there, "get", TREE, into, "--manifest", into / "tree.json", "--json"))
    assert told["file"] == str(into / "service.tar")
    with tarfile.open(into / "service.tar") as archive:
        assert archive.getnames() == ["bin", "bin/serve"]
    assert sorted(each.name for each in into.iterdir()) == ["hello.json", "hello.sh", "service.tar", "tree.json"]
    for name, file, manifest in ((LONE, "hello.sh", "hello.json"), (TREE, "service.tar", "tree.json")):
        assert "unchanged" in artifact(there, "push", name, into / file, "--manifest", into / manifest)
    assert listed(there) == before
    assert artifact(there, "get", LONE, "-") == "#!/bin/sh\necho hello\n"
    assert "-: --json would be in the program" in artifact(there, "get", LONE, "-", "--json", code=2)
    assert "there is no option --jsn" in artifact(there, "get", LONE, "--jsn", code=2)
    assert "did you mean g:lone:1?" in artifact(there, "get", "g:loan:1", code=1)


async def test_what_is_copied_is_the_very_same_and_what_differs_is_left(there: NatsServer, tmp_path: Path) -> None:
    """Signatures, too; the other cluster is one with a prefix on the same server."""
    seed = tmp_path / "release.nk"
    seed.write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) + b"\n")
    seed.chmod(0o600)
    # As a version might store it that writes manifests in another way.
    manifest = Manifest(entry="hello.sh")
    packed, tail = pack(tmp_path / "hello.sh", tmp_path), b" " + manifest.stored
    digest = hashlib.sha256((tmp_path / "hello.sh").read_bytes() + tail).hexdigest()
    content = replace(packed.content(manifest), tail=len(tail), size=packed.size + len(tail), sha256=digest)
    async with connected(there) as connection:
        await Artifacts(connection).push(Artifact.parse(LATER), packed.path, content, tail=tail)
    to = ("--to", there.url, "--to-prefix", "other")
    assert "name the artifacts, or write --all for all" in artifact(there, "copy", *to, code=2)
    artifact(there, "copy", "g:loan:1", *to, code=1)
    assert "g:lone:1: copied (21 bytes)" in artifact(there, "copy", LONE, *to)
    copied = json.loads(artifact(there, "copy", "--all", *to, "--json"))
    assert {each["artifact"]: each["result"] for each in copied["artifacts"]} == {
        LATER: "stored",
        LONE: "unchanged",
        TREE: "stored",
    }
    assert listed(there, "other") == listed(there)
    artifact(there, "sign", LONE, "--key", seed)
    assert "g:lone:1: there already, signed now" in artifact(there, "copy", "--all", *to)
    assert listed(there, "other")[LONE]["signed_by"]
    assert listed(there, "other") == listed(there)
    artifact(there, "verify", LONE, prefix="other")

    await anyio.Path(tmp_path / "hello.sh").write_text("#!/bin/sh\necho other\n")
    artifact(there, "push", LONE, tmp_path / "hello.sh", "--force", prefix="other")
    artifact(there, "rm", TREE, prefix="other")
    refused = artifact(there, "copy", "--all", *to, code=4)
    assert "another content or manifest of g:lone:1; nothing was copied; --force replaces it" in refused
    assert list(listed(there, "other")) == [LATER, LONE]
    assert "g:lone:1: replaced" in artifact(there, "copy", "--all", *to, "--force")
    assert listed(there, "other") == listed(there)


async def test_the_commands_of_the_documents(there: NatsServer, tmp_path: Path) -> None:
    """The state of one cluster is put into another one."""
    got, one = commands("Getting programs out")
    init, everything, state = commands("Backup, and another cluster")
    contexts = tmp_path / "config" / "nats" / "context"
    contexts.mkdir(parents=True)
    async with (
        running_server() as other,
        raw(other) as user,
        terminal(tmp_path, NATS_URL="", XDG_CONFIG_HOME=str(tmp_path / "config"), COLUMNS="200") as shell,
    ):
        for name, url in (("old", there.url), ("new", other.url)):
            (contexts / f"{name}.json").write_text(json.dumps({"url": url}))
        await shell.good("cdm init --context old")
        await shell.good("cdm artifact push org.example:slice:1.0.0 service --entry bin/serve --context old")
        await shell.good("cdm apply org.example:slice:1.0.0 --instances 2 --set min_healthy=0 --context old")
        await shell.good(f"{got} --context old")
        assert await shell.good("tar -tf slice.tar; grep -c serve slice.json") == "bin/\nbin/serve\n1\n"
        assert "org.example:slice:1.0.0: copied" in await shell.good(one)
        await shell.good(init)
        shown = await shell.good(everything)
        assert shown.splitlines()[-1].startswith("org.example:slice:1.0.0: there already")
        assert listed(other) == listed(there)
        await shell.start("cdm node --id node-1 --folder state --context new", "node")
        assert "org.example:slice:1.0.0: complete" in await shell.type(state, 120)
        stored = (await user.contents("blueprints"))["org.example/slice/1.0.0"]
        assert json.loads(stored.data) == {"instances": 2, "min_healthy": 0}
        assert "org.example:slice:1.0.0: unchanged" in await shell.good(state)
