"""Failures as they happen to everybody, all at once on a real node: one command tells the cause of each."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_releases import Cluster
from tests.harness.processes import command_line, node_processes
from tests.harness.servers import NatsServer
from tests.harness.terminal import program
from tests.harness.waiting import eventually
from tests.harness.wire import raw

pytestmark = pytest.mark.anyio

SLEEP = "import time\ntime.sleep(600)\n"
BIND = "import os, socket\nsocket.create_server(('127.0.0.1', int(os.environ['CDM_PORT'])))\n" + SLEEP
LOOP = "import time\nprint('READY=1', flush=True)\ntime.sleep(0.3)\nraise RuntimeError('no database')\n"
LINE = 'readiness = { check = { kind = "line" } }\nrestart = { backoff = 0.1, attempts = 99 }\n'
HUNGRY = "import os\ntry:\n    hoard = bytearray(2**30)\nexcept MemoryError:\n    os._exit(1)\n" + SLEEP
NEVER_UP = 'readiness = {{ check = {{ kind = "line" }} }}\n'
"""What ends at once counts as up for a moment, where nothing says when it is."""
PROGRAMS = {
    "entry": (SLEEP, 'entry = "pyhton3"\nargs = ["main.py"]\n'),
    "port": (BIND, f"port = {{port}}\n{NEVER_UP}"),
    "loop": (LOOP, LINE),
    "memory": (HUNGRY, f"limits = {{{{ memory = 100_000_000 }}}}\n{NEVER_UP}"),
    "ready": (SLEEP, 'port = "auto"\nreadiness = {{ check = {{ kind = "http", path = "/ready" }}, timeout = 1 }}\n'),
}
"""What is pushed: programs and their manifests."""
RULES: dict[str, dict[str, object]] = {"room": {"needs": {"memory": "64Gi"}}, "label": {"require": ["gpu"]}}
"""What blueprints say besides."""
CAUSES = {
    "entry": ["pyhton3"],
    "port": ["Address already in use"],
    "loop": ["RuntimeError: no database"],
    "missing": ["acme:missing:1"],
    "memory": ["exit status 1 (its memory limit is 100M)"],
    "ready": ["not ready within 1 s"],
    "room": ["64Gi needed, 8Gi there"],
    "label": ["without gpu"],
}
"""What is to be said of each."""


async def test_one_command_tells_the_cause_of_each_of_eight_failures(server: NatsServer, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    program(here / "pyhton3", "exit 0")  # whoever pushes has it
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    async with raw(server) as user:
        it = Cluster(server, user)
        await it.cdm("init")
        with node_processes(server, tmp_path) as nodes, socket.create_server(("127.0.0.1", 0)) as taken:
            node = nodes.start("n1", "--runtime", "process", "--folder", str(tmp_path / "n1"), "--memory", "8Gi")
            for name, (text, manifest) in PROGRAMS.items():
                folder = tmp_path / name
                folder.mkdir()
                (folder / "main.py").write_text(text, encoding="utf-8")
                toml = tmp_path / f"{name}.toml"
                head = "" if "entry" in manifest else 'entry = "main.py"\n'
                port = str(taken.getsockname()[1])
                toml.write_text(head + manifest.replace("{port}", port).replace("{{", "{").replace("}}", "}"), "utf-8")
                push = ("artifact", "push", f"acme:{name}:1", str(folder), "--manifest", str(toml))
                pushed = await command_line(*push, env={"NATS_URL": server.url, "PATH": path})
                assert pushed.returncode == 0, pushed.stderr

            async def leads() -> bool:
                node.unharmed()
                return bool(await user.lease())

            await eventually(leads, 30, "n1 leads")
            for name in CAUSES:
                await user.put("blueprints", f"acme/{name}/1", {"instances": 1, **RULES.get(name, {})})

            async def known() -> bool:
                told = [each.value for each in (await user.contents("status")).values()]
                # While one is tried again, its status tells why it failed before.
                return len(told) == len(CAUSES) and all(
                    each["condition"] in ("Degraded", "Unschedulable") or "before: " in each["reason"] for each in told
                )

            await eventually(known, 60, "the leader knows of all of them")
            shown = await it.cdm("status")
            above = shown.partition("\nnodes ")[0]
            blueprints = dict(re.findall(r"^acme:(\w+):1  (.*?)(?=^\S|\Z)", above, re.MULTILINE | re.DOTALL))
            told = dict(re.findall(r"^acme:(\w+):1: (.*)$", await it.cdm("status", "--check", code=3), re.MULTILINE))
            for name, causes in CAUSES.items():
                for cause in causes:
                    assert cause in blueprints[name], shown
                    assert cause in told[name], told
            for name in ("loop", "memory", "room", "label", "ready"):
                explained = await it.cdm("explain", f"acme:{name}:1")
                assert all(cause in explained for cause in CAUSES[name]), explained

            # How a slice came to be in its state: its last states with times, how it ended, and what it wrote.
            # Within the time that its node has for what it wrote.
            async def told_whole() -> str:
                text = await it.cdm("explain", "n1/acme:loop:1")
                return text if "its last output:\n" in text and re.search(r"  load ", text) else ""

            async def found_whole() -> dict[str, Any]:
                answer = await it.json("explain", "n1/acme:loop:1")
                return answer if answer["output"] and answer["history"] else {}

            explained = await eventually(told_whole, what="its node answers in time")
            time = r"^    \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
            assert re.search(f"{time}blueprint .*by unknown$", explained, re.MULTILINE), explained
            assert re.search(f"{time}load ", explained, re.MULTILINE), explained
            assert re.search(f"{time}activating .*RuntimeError: no database$", explained, re.MULTILINE), explained
            assert "    RuntimeError: no database\n" in explained.partition("its last output:\n")[2], explained
            found = await eventually(found_whole, what="its node answers in time")
            assert [each["kind"] for each in found["history"]][:2] == ["blueprint", "load"]
            assert any("no database" in each["text"] for each in found["output"])

            async def tells_of_failures() -> bool:
                return " failed " in await it.cdm("explain", "acme:entry:1")

            await eventually(tells_of_failures, what="the history is read in time")
