"""The README's first steps, and the manifest and the runtime of the documents, work as they are written there."""

from __future__ import annotations

import json
import os
import re
import shutil
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import NODEFAULT, UNSET, Struct

from cdm.model.manifest import Container, Liveness, Manifest
from tests.docs.documents import adapted, blocks, example, inline, section
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

MANIFEST = section("docs/artifacts.md", "The manifest")


def get(port: int, path: str = "/") -> str:
    """What a slice answers; empty: nothing listens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


async def ports(user: Raw) -> dict[str, int]:
    """The ports of all slices that are ACTIVE, by key."""
    found = await user.contents("slices")
    active = {key: record.value for key, record in found.items() if record.value.get("state") == "ACTIVE"}
    return {key: value["port"] for key, value in active.items()}


async def answers(user: Raw, count: int) -> dict[str, str]:
    """What so many slices answer, by key; empty where there are fewer, or more."""
    found = {key: get(port) for key, port in (await ports(user)).items()}
    return found if len(found) == count and all(found.values()) else {}


def living(answer: str) -> bool:
    """Whether the process lives that answered this."""
    try:
        stat = Path(f"/proc/{answer.rpartition(' ')[2].strip()}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_the_first_steps(server: NatsServer, tmp_path: Path) -> None:
    start, publish, ask, kill_slice, kill_node, update, stop, remove = blocks("First steps", "bash")
    (sample,) = blocks("First steps")
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url) as shell:
        assert await shell.type(start) == ""

        async def complete() -> bool:
            shown = await shell.type("cdm status --json 2>&1 || true")
            nodes = json.loads(shown)["nodes"] if shown.startswith("{") else []
            return {node["node"] for node in nodes} == {"node-1", "node-2", "node-3"}

        await eventually(complete, 30, "three nodes")
        await _heard(user, tmp_path)
        assert "org.example:slice:1.0.0: pushed" in await shell.type(publish)
        first = await eventually(lambda: answers(user, 3), 20, "three answer")
        shown = await shell.type(ask)
        assert re.sub(r"\d+$", "", shown, flags=re.MULTILINE) == re.sub(r"\d+$", "", sample, flags=re.MULTILINE)

        key, told = "node-2.org.example/slice/1.0.0", await ports(user)
        report = json.loads(await shell.type("cdm status --json"))
        assert {each["key"]: each["port"] for each in report["slices"]} == told
        assert await shell.type(kill_slice) == ""
        await eventually(lambda: get(told[key]) not in ("", first[key]), 10, "it answers again, at the same port")

        async def back() -> dict[str, str]:
            return await answers(user, 3) if await ports(user) == told else {}

        second = await eventually(back, 20, "it is ACTIVE again")
        assert {each for each in second if second[each] != first[each]} == {key}
        await shell.type(kill_node)
        lost = second["node-1.org.example/slice/1.0.0"]

        async def moved() -> dict[str, str]:
            found = await answers(user, 3)
            return {} if any(each.startswith("node-1.") for each in found) else found

        third = await eventually(moved, 10 + 10, "it runs elsewhere")
        await eventually(lambda: not living(lost), 20, "nothing of the dead node's slice lives")
        await shell.type(update)
        fifth = await eventually(lambda: answers(user, 5), 20, "five answer")
        assert all(fifth[each].startswith("good morning from ") for each in fifth.keys() - third.keys())

        async def replaced() -> dict[str, str]:
            found = await answers(user, 5)
            return found if all(each.startswith("good morning from ") for each in found.values()) else {}

        last = await eventually(replaced, 90, "those that ran before are replaced, one after another")
        await eventually(lambda: not any(living(each) for each in third.values()), 20, "and what they were is stopped")

        await shell.type(stop)
        await eventually(lambda: _nothing(user), 20, "no slice is left")
        assert not any(living(answer) for answer in last.values())
        assert "removed" in await shell.type(remove)
        await shell.type("wait $node_2 $node_3")
        assert "FAILED" not in await shell.type("cat node-*.log")


async def _heard(user: Raw, folder: Path) -> None:
    """Wait until whoever leads knows of all nodes: a blueprint that is written later may be known earlier."""
    await user.put("nodes", "nobody.intent", {"schedule": "cordon"})

    async def known() -> bool:
        leader = (await user.lease()).get("node")
        return bool(leader) and "node=nobody schedule=cordon" in (folder / f"{leader}.log").read_text("utf-8")

    await eventually(known, what="whoever leads knows of it")
    await user.delete("nodes", "nobody.intent")


async def _nothing(user: Raw) -> bool:
    return not await user.slices()


@pytest.mark.anyio
async def test_the_runtime_example_serves_a_site(server: NatsServer, tmp_path: Path) -> None:
    (points,) = blocks("A runtime in forty lines", "toml")
    shutil.copy(example("sites.py"), tmp_path)
    installed = tmp_path / "sites-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sites\nVersion: 1\n", encoding="utf-8")
    # What an installer makes of it.
    points = adapted(points, {'[project.entry-points."cdm.runtimes"]': "[cdm.runtimes]", '"': ""})
    (installed / "entry_points.txt").write_text(points, encoding="utf-8")
    site = tmp_path / "site"
    site.mkdir()
    (site / "hello.txt").write_text("hello, site", encoding="utf-8")
    searched = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = {"NATS_URL": server.url, "PYTHONPATH": searched}
    async with raw(server) as user, terminal(tmp_path, **env) as shell:
        await shell.good("cdm init && cdm artifact push g:site:1 site")
        await shell.start(f"{inline('cdm node --runtime sites')} --id n1 --folder state", "node")
        await user.put("blueprints", "g/site/1", 2)
        found = await eventually(lambda: _two(user), 20, "two sites")
        assert {get(port, "/hello.txt") for port in found.values()} == {"hello, site"}
        await user.put("blueprints", "g/site/1", 0)
        await eventually(lambda: _nothing(user), 10, "no slice is left")
        assert {get(port) for port in found.values()} == {""}
        await shell.good("kill $node; wait $node")
        assert "Traceback" not in (tmp_path / "node.log").read_text(encoding="utf-8")


async def _two(user: Raw) -> dict[str, int]:
    found = await ports(user)
    return found if len(found) == 2 else {}


def test_the_manifest_of_the_documents_is_one() -> None:
    (shown,) = blocks("The manifest", "toml")
    manifest = Manifest.parse(shown.encode())
    assert manifest.entry == "bin/serve"
    assert manifest.liveness is not None


def test_the_table_of_the_manifests_fields_is_true() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", MANIFEST, re.MULTILINE)
    assert dict(rows) == dict(_fields(Manifest))
    assert len(rows) == len(dict(rows))


def _fields(kind: type[Struct], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for field in msgspec.structs.fields(kind):
        name = prefix + field.name
        if field.name in ("liveness", "container"):
            found += _fields(Liveness if field.name == "liveness" else Container, f"{name}.")
            continue
        default: Any = field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        if isinstance(default, Struct):
            found += _fields(type(default), f"{name}.")
        else:
            found.append((name, _shown(default)))
    return found


def _shown(default: Any) -> str:
    if default is NODEFAULT or default is UNSET:
        return "required"
    if default is None:
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{json.dumps(default)}`"
