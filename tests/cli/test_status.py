"""What ``cdm status`` shows of a large cluster: what is wrong comes first, whole, and is said once."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from cdm.cli.report import ClusterReport
from tests.cli.test_cli import run
from tests.docs.documents import adapted, commands
from tests.harness.processes import environment
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.anyio

CRASHED = (
    f"exit status 1; last lines: Traceback (most recent call last) | {'File main.py, line 12 | ' * 6}KeyError: 'DB'"
)
SLOW = {
    *("anyio", "nats.js.api", "rich", "structlog", "tomllib", "getpass", "cyclopts.validators"),
    *("cdm.api", "cdm.cli.watching", "cdm.manager.manager", "cdm.manager.onlooker"),
}
"""What takes long to import, and no single look needs."""
REFUSED = "not ready within 60 s: GET /ready: connection refused"


async def test_seventeen_failed_slices_of_five_hundred_are_found_at_a_glance(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    failed: Counter[str] = Counter()
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        for each in range(5):
            await user.put("nodes", f"n{each}", {"runtime": "process"})
        for number in range(500):
            node, ordinal = f"n{number % 5}", number // 5
            name = f"{node}.acme/{'web' if number < 400 else 'api'}/1.1.0{f'/{ordinal}' if ordinal else ''}"
            value: dict[str, object] = {"state": "ACTIVE", "term": 3, "port": 20_000 + number}
            if number % 25 == 3 and number < 425:
                reason = CRASHED if number < 300 else REFUSED
                failed[reason] += 1
                value = {"state": "FAILED", "term": 3, "reason": reason}
            await user.put("slices", name, value)
        await user.put("blueprints", "acme/api/1.1.0", 100)
        await user.put("blueprints", "acme/web/1.1.0", 400)
        for artifact, count in (("api", 1), ("web", 16)):
            reason = f"{count} failed: {CRASHED[:60]}…"
            await user.put("status", f"acme/{artifact}/1.1.0", {"condition": "Degraded", "reason": reason})
    assert failed == {CRASHED: 12, REFUSED: 5}

    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "leader n1   term 3   not well: 2 of 2 blueprints"
    assert lines[-1] == "5 nodes, 2 blueprints (2 Degraded), 500 slices (17 FAILED, 483 ACTIVE)"
    crashed, *others = [line for line in lines if " FAILED on " in line]
    assert crashed == f"    12 FAILED on n3 (12): {CRASHED}"
    assert others == [f"    4 FAILED on n3 (4): {REFUSED}", f"    1 FAILED on n3#80: {REFUSED}"]
    assert len([line for line in lines if re.search(r"  n3  +FAILED  ", line)]) == 17
    assert len(lines) < 45, "it fits on a screen"
    assert "483 slices not listed here; --all lists all" in lines
    assert "…" not in shown.stdout, "nothing is cut"
    assert not any("_" in line for line in lines)

    measured = {name: value for name, value in environment().items() if not name.startswith("COV")}
    timed = [sys.executable, "-X", "importtime", "-m", "cdm", "status", "--json", "--server", server.url]
    everything = await anyio.run_process(timed, env=measured)
    assert len(json.loads(everything.stdout)["slices"]) == 500
    imported = set(re.findall(r"\|\s+([\w.]+)$", everything.stderr.decode(), re.MULTILINE))
    assert "nats.aio.client" in imported
    assert imported & SLOW == set(), "it waits for nothing that it does not use"


async def test_what_is_in_force_comes_first_and_what_was_replaced_long_ago_is_counted(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    done = {"phase": "complete", "kind": "rolling", "from": "7", "to": "8"}
    back = {"phase": "reverted", "kind": "rolling", "from": "8", "to": "9", "why": "boom"}
    told: dict[str, dict[str, object]] = {
        "web/1": {"condition": "Superseded"},
        "web/2": {"condition": "Reverted", "reason": "long ago"},
        "web/7": {"condition": "Superseded", "rollout": done},
        "web/8": {"condition": "Ready", "desired": 2, "rollout": back},
        "web/9": {"condition": "Reverted", "reason": "boom", "rollout": back},
        "api/1": {"condition": "Superseded"},
        "api/2": {"condition": "Reverted", "reason": "settings", "desired": 1},
        "db/1": {"condition": "Superseded"},
        "db/2": {"condition": "Progressing", "desired": 1},
        "old/1": {"condition": "Superseded"},
    }
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        await user.put("slices", "n1.g/db/1", {"state": "ACTIVE"})
        for name, status in told.items():
            await user.put("blueprints", f"g/{name}", 1)
            await user.put("status", f"g/{name}", status)

    async def listed(*options: str) -> list[str]:
        shown = await anyio.to_thread.run_sync(lambda: run("status", *options, "--server", server.url))
        assert shown.returncode == 0, shown.stderr
        return [line.partition("  ")[0] for line in shown.stdout.splitlines()[3:] if line[:1] not in ("", " ")]

    some = await listed()
    assert some[:5] == ["g:api:2", "g:db:2", "g:web:8", "g:web:9", "g:db:1"]
    assert some[5] == "5 versions (1 Reverted, 4 Superseded) not in force and not listed here; --all lists all"
    assert (await listed("--all"))[:10] == [
        *some[:3],
        "g:web:2",
        "g:web:9",
        "g:api:1",
        "g:db:1",
        *("g:old:1", "g:web:1", "g:web:7"),
    ]


async def test_nodes_keep_their_names_on_a_narrow_screen(server: NatsServer) -> None:
    """There is much that nodes tell of themselves, and eighty characters."""
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        machine = {"cpu": 2, "memory": 2**34, "capacity": 100, "runtime": "process"}
        for number in (1, 2):
            await user.put("nodes", f"node-{number}", {**machine, "labels": {"os": "linux", "zone": f"z{number}"}})
        await user.put("nodes", "node-2.intent", {"schedule": "cordon"})
        shown = run("status", "--server", server.url, env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, shown)) <= 80
    rows = [line.split()[:2] for line in shown]
    assert ["node-1", "all"] in rows
    assert ["node-2", "all"] in rows


async def test_few_slices_are_all_listed_and_reasons_that_repeat_the_numbers_are_not(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        await user.put("slices", "n1.g/a/1", {"state": "ACTIVE", "port": 4711, "restarts": 2})
        await user.put("slices", "n1.g/a/1/1", {"state": "LOADING"})
        await user.put("slices", "n1.g/old/1", {"state": "FAILED", "reason": "cannot be unloaded"})
        for ordinal in ("", "/1"):
            crashing = {"state": "ACTIVATING", "reason": "exit status 1", "restarts": 3}
            await user.put("slices", f"n2.g/old/1{ordinal}", crashing)
        await user.put("blueprints", "g/a/1", 2)
        await user.put("status", "g/a/1", {"condition": "Progressing", "reason": "1 of 2 active", "desired": 2})
        await user.put("blueprints", "g/b/1", 1)
        status = {"condition": "Unschedulable", "reason": "no node takes new slices", "desired": 1}
        await user.put("status", "g/b/1", status)
        await user.put("blueprints", "g/c/1", 0)
        await user.put("status", "g/c/1", {"condition": "Ready"})
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    blueprints = "3 blueprints (1 Unschedulable, 1 Progressing, 1 Ready)"
    lines = [re.sub(r" +age\b", "  age", line) for line in shown.stdout.splitlines()]
    assert [re.sub(r" +\d+ s( |$)", r" AGE\1", line) for line in lines] == [
        "leader n1   term 3   not well: 3 of 3 blueprints, 1 slice",
        "",
        "blueprints                 active  healthy  up to date  failed  restarts  age",
        "g:b:1       Unschedulable     0/1        -           -       0         0 AGE",
        "    no node takes new slices",
        "g:a:1       Progressing       1/2        -           -       0         2 AGE",
        "g:c:1       Ready             0/0        -           -       0         0 AGE",
        "g:old:1     no blueprint",
        "    2 ACTIVATING on n2 (2), 6 restarts: exit status 1",
        "    1 FAILED on n1: cannot be unloaded",
        "",
        "slices     node  state       restarts  age  port",
        "g:old:1    n1    FAILED             0 AGE",
        "g:old:1    n2    ACTIVATING         3 AGE",
        "g:old:1#1  n2    ACTIVATING         3 AGE",
        "g:a:1#1    n1    LOADING            0 AGE",
        "g:a:1      n1    ACTIVE             2 AGE  4711",
        "",
        f"0 nodes, {blueprints}, 5 slices (1 FAILED, 1 LOADING, 2 ACTIVATING, 1 ACTIVE)",
    ]


async def test_a_byte_order_mark_of_an_editor_is_read_past(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", "g/a/1", b"\xef\xbb\xbf3\r\n")
        await user.put("nodes", "n1", {"runtime": "process"})
        await user.put("nodes", "n1.intent", b'\xef\xbb\xbf{"schedule": "drain"}')
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--json", "--server", server.url))
    found = json.loads(shown.stdout)
    assert [each["desired"] for each in found["blueprints"]] == [3]
    assert [each["schedule"] for each in found["nodes"]] == ["drain"]
    assert found["notes"] == []


async def test_a_crash_loop_and_a_warning_are_told_once_and_what_warns_is_listed_with_its_port(
    server: NatsServer,
) -> None:
    assert run("init", "--server", server.url).returncode == 0
    first, ended = (f"exit status 1 after {seconds} s; last output: starting up | boom" for seconds in (0.3, 0.4))
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        await user.put("slices", "n1.g/loop/1", {"state": "ACTIVATING", "reason": ended, "restarts": 3})
        await user.put("slices", "n2.g/loop/1", {"state": "ACTIVATING", "reason": first, "restarts": 3})
        await user.put("slices", "n1.g/warned/1", {"state": "ACTIVE", "reason": "no cgroups", "port": 4711})
        for name, condition, reason in (
            ("loop", "Degraded", f"crash loop: 2 of 2 instances: {first}"),
            ("well", "Ready", ""),
            ("warned", "Ready", ""),
        ):
            await user.put("blueprints", f"g/{name}/1", 1)
            await user.put("status", f"g/{name}/1", {"condition": condition, "reason": reason})
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    lines = [re.sub(r" +\d+ s( |$)", r"\1", line) for line in shown.stdout.splitlines()]
    assert [line.split() for line in lines[3:-1] if line.strip()] == [
        ["g:loop:1", "Degraded", "0/1", "-", "-", "0", "6"],
        ["crash", "loop:", "2", "of", "2", "instances"],
        f"2 ACTIVATING on n1, n2, 6 restarts: {ended}".split(),
        ["g:warned:1", "Ready", "1/1", "-", "-", "0", "0"],
        ["1", "ACTIVE", "on", "n1:", "no", "cgroups"],
        ["g:well:1", "Ready", "0/1", "-", "-", "0", "0"],
        ["slices", "node", "state", "restarts", "age", "port"],
        ["g:loop:1", "n1", "ACTIVATING", "3"],
        ["g:loop:1", "n2", "ACTIVATING", "3"],
        ["g:warned:1", "n1", "ACTIVE", "0", "4711"],
    ]


async def test_why_slices_failed_is_told_once_though_a_newer_blueprint_is_refused(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("slices", "n1.g/a/1", {"state": "FAILED", "reason": "boom"})
        await user.put("blueprints", "g/a/1", 1)
        reason = "foo: there is no such field; in force: 1 failed: boom"
        await user.put("status", "g/a/1", {"condition": "Invalid", "reason": reason, "desired": 1})
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    lines = [line.strip() for line in shown.stdout.splitlines()]
    assert "foo: there is no such field" in lines
    assert shown.stdout.count("boom") == 1


async def test_a_rollout_is_told_in_a_line_and_what_was_replaced_is_no_trouble(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    why = "1 of 2 new instances healthy"
    rollout = {"phase": "rolling", "kind": "canary", "from": "1", "to": "2", "step": 1, "steps": 3, "why": why}
    over = {**rollout, "phase": "reverted", "to": "8", "why": "boom"}
    failed = {**rollout, "from": "1", "to": "5", "phase": "failed", "why": "no instance became healthy for 600 s"}
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        for name, condition, status in (
            ("web/1", "Superseded", {"reason": "replaced by 2", "rollout": rollout}),
            ("web/2", "Progressing", {"reason": why, "desired": 4, "rollout": rollout, "healthy": 1, "outdated": 3}),
            ("api/8", "Reverted", {"reason": "boom", "rollout": over}),
            ("api/1", "Ready", {"desired": 4, "rollout": over}),
            ("bad/5", "Degraded", {"reason": f"rollout failed: {failed['why']}", "rollout": failed}),
            ("cut/10", "Ready", {"desired": 3, "observed_revision": 9_000_000_000_000}),
            ("cut/2", "Ready", {"desired": 3}),
        ):
            await user.put("blueprints", f"g/{name}", 4)
            await user.put("status", f"g/{name}", {"condition": condition, **status})
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    assert shown.returncode == 0
    lines = [re.sub(r"^(g:.*) \d+ s$", r"\1", " ".join(line.split())) for line in shown.stdout.splitlines()]
    assert lines[3:-2] == [
        "g:bad:5 Degraded 0/4 - - 0 0",
        "failed 1 -> 5, step 1 of 3: no instance became healthy for 600 s",
        "g:web:2 Progressing 0/4 1 - 0 0",
        f"rolling 1 -> 2, step 1 of 3: {why}",
        "g:api:1 Ready 0/4 - - 0 0",
        "g:cut:2 Ready 0/4 - - 0 0",
        "g:cut:10 Ready 0/3 - - 0 0",
        "g:api:8 Reverted 0/0 - - 0 0",
        "boom",
        "g:web:1 Superseded 0/0 - - 0 0",
        "replaced by 2",
    ]
    assert "7 blueprints (1 Degraded, 1 Reverted, 1 Progressing, 3 Ready, 1 Superseded)" in lines[-1]
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--json", "--server", server.url))
    (web,) = [each for each in json.loads(shown.stdout)["blueprints"] if each["artifact"] == "g:web:2"]
    assert (web["healthy"], web["outdated"], web["up_to_date"]) == (1, 3, None)
    assert web["rollout"]["why"] == why


async def test_violations_and_what_is_reserved_of_each_node_are_told(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("slices", "_leader", {"node": "n1", "term": 3})
        for node in ("n1", "n2"):
            await user.put("nodes", node, {"cpu": 4, "memory": 2**33, "runtime": "process"})
        for ordinal in ("", "/1"):
            needs = {"cpu": 0.7, "memory": 2**28}
            await user.put("slices", f"n1.g/b/1{ordinal}", {"state": "ACTIVE", "needs": needs})
        for name, violations in (("a", {}), ("b", {"violations": 2}), ("c", {"violations": 1})):
            await user.put("blueprints", f"g/{name}/1", 2)
            await user.put("status", f"g/{name}/1", {"condition": "Ready", "desired": 2, **violations})
    shown = await anyio.to_thread.run_sync(lambda: run("status", "--server", server.url))
    lines = [re.sub(r"^(g:.*) \d+ s$", r"\1", " ".join(line.split())) for line in shown.stdout.splitlines()]
    assert lines[3:8] == [
        "g:b:1 Ready 2/2 - - 0 0",
        "violations: 2 instances are on nodes that a rule forbids by now",
        "g:c:1 Ready 0/2 - - 0 0",
        "violations: 1 instance is on a node that a rule forbids by now",
        "g:a:1 Ready 0/2 - - 0 0",
    ]
    first, second = (line for line in lines if line.startswith(("n1 all", "n2 all")))
    assert "2 1.4 of 4 512Mi of 8Gi process" in first
    assert "0 4 8Gi process" in second
    found = json.loads((await anyio.to_thread.run_sync(lambda: run("status", "--json", "--server", server.url))).stdout)
    assert [each["violations"] for each in found["blueprints"]] == [0, 2, 1]
    assert [(each["reserved_cpu"], each["reserved_memory"]) for each in found["nodes"]] == [(1.4, 2**29), (0.0, 0)]


async def fill(user: Raw) -> int:
    """A cluster in which one of two instances failed; returns the blueprint's revision."""
    await user.put("slices", "_leader", {"node": "node-1", "term": 3})
    for node in ("node-1", "node-2"):
        await user.put("nodes", node, {"runtime": "process"})
    revision = await user.put("blueprints", "org.example/slice/1.0.0", 2)
    await user.put("slices", "node-1.org.example/slice/1.0.0", {"state": "ACTIVE", "restarts": 2})
    failed = {"state": "FAILED", "reason": "exit status 1 after 0.3 s; last output: Traceback: | boom"}
    await user.put("slices", "node-2.org.example/slice/1.0.0", failed)
    await user.put("slices", "node-2.acme/db/1", {"state": "ACTIVE"})
    await told(user, revision, "Degraded", f"1 failed: {failed['reason']}")
    return revision


async def told(user: Raw, revision: int, condition: str, reason: str = "") -> None:
    status = {"condition": condition, "reason": reason, "desired": 2, "healthy": 1, "observed_revision": revision}
    await user.put("status", "org.example/slice/1.0.0", status)


async def test_the_commands_of_the_documents(server: NatsServer, tmp_path: Path) -> None:
    whole, service, filtered, watch, wait, check = commands("Looking at it")
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url, COLUMNS="200") as shell:
        revision = await fill(user)
        assert "not well: 1 of 1 blueprint\n" in await shell.good(whole)
        shown = await shell.good(service)
        assert "acme" not in shown
        assert re.search(r"^org.example:slice:1.0.0  node-2  FAILED", shown, re.MULTILINE)
        shown = await shell.good(filtered)
        assert ("1 node," in shown, "1 slice (1 FAILED)" in shown) == (True, True)

        trouble = "org.example:slice:1.0.0: Degraded: 1 failed: exit status 1 after 0.3 s; last output: boom"
        assert (await shell.type(check), shell.code) == (f"{trouble}\n", 3)
        assert "node-1" not in await shell.good(f"{check} acme:db")
        shown = await shell.type(adapted(wait, {"5m": "500ms"}))
        assert shell.code == 3
        assert [line[10:] for line in shown.splitlines()[:2]] == [trouble, "not well within 0.5 s:"]
        document = (await shell.good(f"{whole} --json")).encode().strip()
        found = msgspec.json.decode(document, type=ClusterReport)
        assert msgspec.json.encode(found) == document, "it is what its type, and so its schema, says"
        assert (found.version, found.well, [each.what for each in found.troubles]) == (1, False, ["Degraded"])

        await shell.start(watch, "watch")
        log = tmp_path / "watch.log"
        failed = "blueprint org.example:slice:1.0.0: Degraded, 1 of 2 active, 1 healthy: "
        await eventually(lambda: failed in log.read_text("utf-8"), 20, "what there is")
        seen = len(log.read_text("utf-8").splitlines())
        await user.put("slices", "node-2.org.example/slice/1.0.0", {"state": "ACTIVE"})
        await told(user, revision, "Ready")
        ready = "blueprint org.example:slice:1.0.0: Ready, 2 of 2 active, 1 healthy"
        await eventually(lambda: ready in log.read_text("utf-8"), 20, "what is new")
        new = [line[10:] for line in log.read_text("utf-8").splitlines()[seen:]]
        assert "slice node-2/org.example:slice:1.0.0: ACTIVE" in new
        assert not any("node-1" in line or "acme" in line for line in new), "what is as it was is not told again"
        await shell.good("kill $watch; wait $watch")

        assert (await shell.good(check)) == ""
        assert "all is well: 2 nodes, 1 blueprint (1 Ready), 3 slices (3 ACTIVE)" in await shell.good(wait)
        await user.put("blueprints", "org.example/slice/1.0.0", 3)
        assert "Unknown: the leader has not read revision" in await shell.type(check), "a status of before says nothing"


async def test_a_watch_whose_reader_takes_nothing_ends_when_it_is_told_to(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        for number in range(50):  # more than fits into the pipe
            await user.put("nodes", f"node-{number:02}", {"runtime": "process"})
        unread, out = os.pipe()
        size = fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4_096)

        def full() -> bool:
            (waiting,) = struct.unpack("i", fcntl.ioctl(unread, termios.FIONREAD, b"\0" * 4))
            return bool(waiting == size)

        command = [sys.executable, "-m", "cdm", "status", "--watch", "--json", "--server", server.url]
        with subprocess.Popen(command, stdout=out, env=environment(), start_new_session=True) as it:  # noqa: ASYNC220  # what it writes to is a pipe of its own
            try:
                await eventually(full, 20, "it cannot write any more")

                def ended() -> bool:
                    it.send_signal(signal.SIGINT)
                    return it.poll() is not None

                await eventually(ended, 20, "it ends", pause=0.5)
            finally:
                it.kill()
                os.close(unread)
                os.close(out)


async def test_a_terminal_that_shows_it_is_redrawn_when_resized_and_given_back(server: NatsServer) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await fill(user)
        for number in range(20):
            await user.put("nodes", f"node-{number:02}", {"runtime": "process"})
            await user.put("nodes", f"node-{number:02}.intent", {"schedule": "cordon"})
        ours, theirs = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
        before = termios.tcgetattr(theirs)
        command = [sys.executable, "-m", "cdm", "status", "--watch", "--server", server.url]
        shown = bytearray()

        def read() -> bytearray:
            with suppress(BlockingIOError):
                shown.extend(os.read(ours, 65_536))
            return shown

        os.set_blocking(ours, False)
        env = {**environment(), "TERM": "xterm"}
        with subprocess.Popen(  # noqa: ASYNC220  # what it writes to is not a pipe
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        ) as it:
            try:
                await eventually(lambda: b"more lines; `cdm status` shows all" in read(), 20, "as much as fits")
                assert shown.startswith(b"\x1b[?1049h")
                assert b"\x1b[20;1H" in shown
                assert b"\x1b[21;1H" not in shown
                quiet = len(shown)
                await user.put("nodes", "node-1.intent", {"schedule": "cordon"})
                await eventually(lambda: b"(21 cordon)" in read()[quiet:], 20, "what is new")
                assert b"not well" in shown[:quiet]
                again = b"NATS is away" in shown
                assert again or b"not well" not in shown[quiet:], "a line that is as it was is not written again"
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 60, 0, 0))
                it.send_signal(signal.SIGWINCH)
                await eventually(lambda: b"\x1b[40;1H" in read(), 20, "more of it")
                it.send_signal(signal.SIGINT)
                assert await eventually(lambda: it.poll() is not None and read() is not None, 20)
                assert it.returncode == 0
                assert read().endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
                assert termios.tcgetattr(theirs) == before
            finally:
                it.kill()
        os.close(ours)
        os.close(theirs)
