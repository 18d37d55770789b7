"""The README's first steps, its manifest and its runtime work as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from anyio.streams.text import TextReceiveStream
from msgspec import NODEFAULT, UNSET, Struct

from cdm.model.manifest import Liveness, Manifest
from cdm.runtimes.process import ORPHAN_BOUND
from tests.integration.tools import SLACK, Raw, raw
from tests.server import NatsServer, environment, eventually

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_STEPS = README[README.index("## First steps") : README.index("## What it does")]
MANIFEST = README[README.index("#### The manifest") : README.index("### Nodes")]
RUNTIME = README[README.index("## Writing a runtime") : README.index("## Writing an agent")]

STAND_IN = """
import asyncio, os, sys
import nats

async def main(verb, *words):
    client = await nats.connect(os.environ["NATS_URL"])
    bucket, key, *value = [word for word in words if not word.startswith("-")]
    store = await client.jetstream().key_value(bucket)
    if verb == "put":
        await store.put(key, value[0].encode())
    elif verb == "get":
        print((await store.get(key)).value.decode())
    else:
        await store.delete(key)
    await client.close()

asyncio.run(main(*sys.argv[2:]))
"""
"""What the first steps use of the nats tool, where there is none."""


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for kind, block in fenced if kind == language]


class Terminal:
    """Somebody's shell."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        self._output = TextReceiveStream(process.stdout)

    async def type(self, block: str, within: float = 30) -> str:
        """Have it run, and return what it printed."""
        await self._input.send(f"{block}\necho '--- done'\n".encode())
        shown = ""
        with anyio.fail_after(within):
            while "--- done\n" not in shown:
                shown += await self._output.receive()
        return shown.removesuffix("--- done\n")


@asynccontextmanager
async def terminal(server: NatsServer, folder: Path) -> AsyncIterator[Terminal]:
    """A shell in a folder where `cdm` is this one; all that it starts ends with it."""
    tools = folder / "tools"
    tools.mkdir()
    (folder / "cdm").symlink_to(ROOT / "cdm")
    program(tools / "cdm", f'exec {sys.executable} -m cdm "$@"')
    if shutil.which("nats") is None:
        (tools / "nats.txt").write_text(STAND_IN, encoding="utf-8")
        program(tools / "nats", f'exec {sys.executable} {tools / "nats.txt"} "$@"')
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "NATS_URL": server.url, "XDG_CONFIG_HOME": str(folder)}
    async with await anyio.open_process(
        ["bash"], cwd=folder, env=env, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield Terminal(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def get(port: int, path: str = "/") -> str:
    """What a slice answers; empty: nothing listens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
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
    start, publish, ask, kill_slice, kill_node, update, stop, remove = blocks(FIRST_STEPS, "bash")
    (sample,) = blocks(FIRST_STEPS, "")
    async with raw(server) as user, terminal(server, tmp_path) as shell:
        assert await shell.type(start) == ""

        async def complete() -> bool:
            shown = await shell.type("cdm status --json 2>&1 || true")
            nodes = json.loads(shown)["nodes"] if shown.startswith("{") else []
            return {node["node"] for node in nodes} == {"node-1", "node-2", "node-3"}

        await eventually(complete, 30, "three nodes")
        assert "org.example:slice:1.0.0: pushed" in await shell.type(publish)
        first = await eventually(lambda: answers(user, 3), 20, "three answer")
        shown = await shell.type(ask)
        assert re.sub(r"\d+$", "", shown, flags=re.MULTILINE) == re.sub(r"\d+$", "", sample, flags=re.MULTILINE)

        key, told = "node-2.org.example/slice/1.0.0", await ports(user)
        assert await shell.type(kill_slice) == ""
        await eventually(lambda: get(told[key]) not in ("", first[key]), 10, "it answers again, at the same port")
        assert await ports(user) == told

        second = await answers(user, 3)
        assert {each for each in second if second[each] != first[each]} == {key}
        await shell.type(kill_node)
        lost = second["node-1.org.example/slice/1.0.0"]
        await eventually(lambda: not living(lost), ORPHAN_BOUND + SLACK, "nothing of the dead node's slice lives")

        async def moved() -> dict[str, str]:
            found = await answers(user, 3)
            return {} if any(each.startswith("node-1.") for each in found) else found

        third = await eventually(moved, 10 + 10, "it runs elsewhere")
        await shell.type(update)
        fifth = await eventually(lambda: answers(user, 5), 20, "five answer")
        assert third.items() <= fifth.items()
        assert all(fifth[each].startswith("good morning from ") for each in fifth.keys() - third.keys())

        await shell.type(stop)
        await eventually(lambda: _nothing(user), 20, "no slice is left")
        assert not any(living(answer) for answer in fifth.values())
        assert "removed" in await shell.type(remove)
        await shell.type("wait $node_2 $node_3")
        assert "FAILED" not in await shell.type("cat node-*.log")


async def _nothing(user: Raw) -> bool:
    return not await user.slices()


@pytest.mark.anyio
async def test_the_runtime_of_the_readme_serves_a_site(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "sites.py").write_text(blocks(RUNTIME, "python")[0], encoding="utf-8")
    installed = tmp_path / "sites-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sites\nVersion: 1\n", encoding="utf-8")
    points = blocks(RUNTIME, "toml")[0].replace('[project.entry-points."cdm.runtimes"]', "[cdm.runtimes]")
    (installed / "entry_points.txt").write_text(points.replace('"', ""), encoding="utf-8")
    site = tmp_path / "site"
    site.mkdir()
    (site / "hello.txt").write_text("hello, site", encoding="utf-8")
    searched = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": searched}
    async with raw(server) as user, terminal(server, tmp_path) as shell:
        shell_env = " ".join(f"{name}={value}" for name, value in env.items())
        await shell.type(f"export {shell_env}; cdm init; cdm artifact push g:site:1 site")
        await shell.type("cdm node --id n1 --runtime sites --folder state &> n1.log & node=$!")
        await user.put("blueprints", "g/site/1", 2)
        found = await eventually(lambda: _two(user), 20, "two sites")
        assert {get(port, "/hello.txt") for port in found.values()} == {"hello, site"}
        await user.put("blueprints", "g/site/1", 0)
        await eventually(lambda: _nothing(user), 10, "no slice is left")
        assert {get(port) for port in found.values()} == {""}
        await shell.type("kill $node; wait $node")
        assert "Traceback" not in (tmp_path / "n1.log").read_text(encoding="utf-8")


async def _two(user: Raw) -> dict[str, int]:
    found = await ports(user)
    return found if len(found) == 2 else {}


def test_the_manifest_of_the_readme_is_one() -> None:
    manifest = Manifest.parse(blocks(MANIFEST, "toml")[0].encode())
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
        if field.name == "liveness":
            found += _fields(Liveness, f"{name}.")
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
