"""``cdm logs``: real nodes with the process runtime, and askers of every kind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from nats.aio.msg import Msg

from cdm.output.files import BEGAN_AGAIN, ENDED
from cdm.output.wire import WINDOW
from tests.harness import forked
from tests.harness.forked import Child
from tests.harness.paths import ROOT
from tests.harness.processes import Processes, command_line, environment, node_processes
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.waiting import bounded, eventually, patience
from tests.harness.web import asked
from tests.harness.wire import ANSWER, Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NAME = "g:talker:1"
KEY = "g/talker/1"
SLOW = "import time, os\ni = 0\nwhile True:\n    print('tick', i, flush=True)\n    i += 1\n    time.sleep(0.1)"
COUNT = (
    "import time, os\ni = 0\nwhile True:\n    print(os.getpid(), i, flush=1)\n    i += 1\n    i % 3 or time.sleep(0.1)"
)
"""Lines by threes, many of which have the same time."""
FLOOD = "import os\nblock = b'x' * 80 + b'\\n'\nwhile True:\n    os.write(1, block * 500)"


@asynccontextmanager
async def cluster(
    server: NatsServer, folder: Path, program: str, count: int, node_ttl: int = 20, **more: Any
) -> AsyncIterator[Talkers]:
    """Two nodes, and so many slices of a program that are ACTIVE."""
    script = folder / "program.py"
    script.write_text(f"#!{sys.executable}\n{program}\n", encoding="utf-8")
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"readiness": {"check": {"kind": "up", "seconds": 0.1}}, **more}) if more else "{}")
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    times = ("--lease-ttl", "20", "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
    nodes = Processes(server.url, folder, times)
    async with raw(server) as user, _ended(nodes):
        talkers = Talkers(server, user, nodes, folder)
        for name in ("n1", "n2"):
            talkers.start(name)
        await eventually(lambda: talkers.registered("n1", "n2"), 20)
        await nodes.heard(user)
        arguments = ("artifact", "push", NAME, str(script), "--manifest", str(manifest), "--server", server.url)
        pushed = await command_line(*arguments)
        assert pushed.returncode == 0, pushed.stderr
        await user.put("blueprints", KEY, count)
        await eventually(lambda: talkers.active(count), 20)
        yield talkers
        nodes.unharmed()


@asynccontextmanager
async def _ended(nodes: Processes) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for process in nodes.all.values():
            if process.code is None:
                process.send(signal.SIGTERM)  # so that it ends its slices
        with anyio.CancelScope(shield=True):
            for process in nodes.all.values():
                await process.ends()
        nodes.kill()


def begun(server: NatsServer, *options: str, output: Path) -> Child:
    """``cdm logs``, which writes to a file all that it says."""
    with output.open("wb") as file:
        return forked.started("logs", *options, "--server", server.url, env=environment(), stdout=file, stderr=file)


def said_in(output: Path) -> str:
    """What it told, itself: not what slices wrote, and not that a server that stood still was left."""
    return "".join(line for line in output.read_text().splitlines(keepends=True) if line.startswith("cdm: "))


@asynccontextmanager
async def asking(server: NatsServer, *options: str, output: Path) -> AsyncIterator[None]:
    """The same, until it is told to stop."""
    asker = begun(server, *options, output=output)
    try:
        yield
        asker.terminate()
        assert await anyio.to_thread.run_sync(asker.wait, patience()) == 0
    except BaseException:
        _print_end(output)
        raise
    finally:
        asker.kill()
        asker.wait()


def _print_end(output: Path) -> None:
    print(output.read_text()[-3000:])


class Talkers:
    """Nodes whose slices write lines, and those who ask for them."""

    def __init__(self, server: NatsServer, user: Raw, nodes: Processes, folder: Path) -> None:
        self.server = server
        self.user = user
        self.nodes = nodes
        self.folder = folder

    def start(self, name: str) -> None:
        self.nodes.start(name, "--runtime", "process", "--folder", str(self.folder / f"of-{name}"))

    async def registered(self, *names: str) -> bool:
        return set(names) <= set(await self.user.registrations()) and bool(await self.user.lease())

    async def active(self, count: int) -> bool:
        return list((await self.user.slices()).values()) == ["ACTIVE"] * count

    async def logs(self, *options: str, silent: str = "n0") -> subprocess.CompletedProcess[bytes]:
        """What is shown, once every node has answered in time, but for one."""
        with bounded(60):
            while True:
                done = await command_line("logs", *options, "--server", self.server.url)
                late = re.findall(rb"warning: node '(n\d)': did not answer within", done.stderr)
                if not {*late} - {silent.encode()}:
                    return done

    def begin(self, *options: str, output: Path) -> Child:
        return begun(self.server, *options, output=output)

    async def answers(self, **ask: Any) -> tuple[list[dict[str, Any]], str]:
        """Ask n1 with a client of one's own, and say nothing more; returns where the answers gather."""
        found: list[dict[str, Any]] = []

        async def take(message: Msg) -> None:
            found.append(json.loads(message.data))

        inbox = self.user.client.new_inbox()
        await self.user.client.subscribe(inbox, cb=take)
        await self.tell(inbox, artifact=NAME, **ask)
        return found, inbox

    async def tell(self, inbox: str, **ask: Any) -> None:
        await self.user.client.publish("cdm.logs.n1", json.dumps(ask).encode(), reply=inbox)

    @property
    def written(self) -> list[Path]:
        """Files that slices wrote, node by node."""
        return sorted(self.folder.glob("of-*/runtime/logs/*/*.log"))

    def forgotten(self, count: int) -> bool:
        """The nodes have ended what they were asked."""
        return sum(each.log.count("log session ended") for each in self.nodes.all.values()) >= count


async def test_two_nodes_are_merged_and_what_is_not_there_is_told(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, SLOW, 3, node_ttl=30) as talkers:  # a frozen one stays registered
        lines: list[dict[str, Any]] = []

        async def all_write() -> bool:
            nonlocal lines
            shown = await talkers.logs(NAME, "--json")
            assert shown.returncode == 0, shown.stderr
            lines = [json.loads(line) for line in shown.stdout.splitlines()]
            each = Counter((line["node"], line["ordinal"]) for line in lines)
            return each.keys() >= {("n1", 0), ("n2", 0)} and len(each) == 3 and min(each.values()) > 10

        await eventually(all_write, 20)
        times = [datetime.fromisoformat(line["time"]) for line in lines]
        assert times == sorted(times)
        for node in ("n1", "n2"):
            of_one = [line["text"] for line in lines if (line["node"], line["ordinal"]) == (node, 0)]
            assert of_one == [f"tick {number}" for number in range(len(of_one))]

        two = await talkers.logs(NAME, "--node", "n2", "--ordinal", "0", "--lines", "2")
        first, second = two.stdout.decode().splitlines()
        assert first.startswith(f"n2/{NAME} | tick ")
        assert int(second.split()[-1]) == int(first.split()[-1]) + 1

        recent: list[dict[str, Any]] = []
        since = datetime.now(UTC)

        async def some_are_recent() -> bool:
            nonlocal recent, since
            since = datetime.now(UTC) - timedelta(seconds=0.5)
            shown = await talkers.logs(NAME, "--node", "n1", "--ordinal", "0", "--since", "500ms", "--json")
            recent = [json.loads(line) for line in shown.stdout.splitlines()]
            return bool(recent)

        await eventually(some_are_recent)
        assert min(datetime.fromisoformat(line["time"]) for line in recent) >= since
        assert recent[0]["text"] != "tick 0"
        for ever in ("100h", "8760h"):  # the longest time that may be written
            everything = await talkers.logs(NAME, "--node", "n1", "--ordinal", "0", "--since", ever)
            assert everything.returncode == 0, everything.stderr
            assert everything.stdout.splitlines()[0].endswith(b" tick 0")

        for known in ("never/1", "never/2", "talker/9"):  # though they were never pushed
            await talkers.user.put("blueprints", f"g/{known}", 0)
        some = await talkers.logs("g:talker", "--lines", "1")
        assert some.returncode == 0, some.stderr
        assert some.stdout
        for options, complaint in (
            (("g:nothing:1",), "there is no artifact g:nothing:1\n"),
            (("g:tlaker:1",), f"there is no artifact g:tlaker:1 (did you mean {NAME}?)\n"),
            (("g:never:1",), "there is no output of g:never:1 (asked: n1, n2)\n"),
            (("g:never",), "there is no output of any version of g:never\n"),
            ((NAME, "--ordinal", "7"), f"there is no output of {NAME}#7"),
            ((NAME, "--node", "n9"), "there is no node 'n9' (see `cdm status`)"),
        ):
            failed = await talkers.logs(*options)
            assert failed.returncode == 1
            assert complaint in failed.stderr.decode()

        talkers.nodes.all["n2"].send(signal.SIGSTOP)
        try:
            partly = await talkers.logs(NAME, silent="n2")
        finally:
            talkers.nodes.all["n2"].send(signal.SIGCONT)
        assert partly.returncode == 1
        assert b"'n2': did not answer within 2 s" in partly.stderr or b"'n2'" not in partly.stdout
        assert b"n1/" in partly.stdout


async def test_ends_and_beginnings_are_marked_and_the_run_before_can_be_shown(
    server: NatsServer, tmp_path: Path
) -> None:
    once, go = tmp_path / "once", tmp_path / "go"
    program = (
        "import pathlib, sys, time\n"
        f"once = pathlib.Path({str(once)!r})\n"
        "if not once.exists():\n    once.touch()\n    print('first', flush=True)\n"
        f"    while not pathlib.Path({str(go)!r}).exists():\n        time.sleep(0.05)\n"
        "    sys.exit(3)\n"
        "print('second', flush=True)\ntime.sleep(600)"
    )
    async with cluster(server, tmp_path, program, 1, restart={"backoff": 0.1}) as talkers:
        go.touch()

        async def again() -> list[str] | None:
            shown = (await talkers.logs(NAME)).stdout.decode().splitlines()
            return shown if len(shown) == 4 else None

        label = "n[12]/g:talker:1 \\| "
        told = [
            f"{label}first",
            f"{label}\\[cdm: ended: exit status 3\\]",
            f"{label}\\[cdm: begins again\\]",
            f"{label}second",
        ]
        shown = await eventually(again, 20)
        assert shown is not None
        assert all(map(re.fullmatch, told, shown)), shown
        before = await talkers.logs(NAME, "--previous", "--timestamps", "--lines", "5")
        assert before.returncode == 0, before.stderr
        stamp = "\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z "
        lines = before.stdout.decode().splitlines()
        assert all(re.fullmatch(f"{stamp}{each}", line) for each, line in zip(told[:2], lines, strict=True)), lines
        refused = await talkers.logs(NAME, "--previous", "-f")
        assert refused.returncode == 2


async def test_a_line_of_any_length_is_one_line(server: NatsServer, tmp_path: Path) -> None:
    program = "import time\nprint('{' + 'é' * 200_000 + '}', flush=True)\nprint('after', flush=True)\ntime.sleep(600)"
    async with cluster(server, tmp_path, program, 1) as talkers:
        await eventually(lambda: any(b"after" in each.read_bytes() for each in talkers.written), 20)
        shown = await talkers.logs(NAME)
        long, after = shown.stdout.decode().splitlines()
        assert long.partition(" | ")[2] == "{" + "é" * 200_000 + "}"
        assert after.endswith(" | after")
        parts = [json.loads(line) for line in (await talkers.logs(NAME, "--json")).stdout.splitlines()]
        assert {part.get("partial") for part in parts[:-2]} == {True}
        assert "".join(part["text"] for part in parts[:-1]) == "{" + "é" * 200_000 + "}"


async def test_a_node_that_died_is_told_as_one_that_does_not_answer(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, SLOW, 2) as talkers:
        await talkers.user.put("nodes", "n0", {"runtime": "process"})  # registered, and nobody is there

        async def others() -> subprocess.CompletedProcess[bytes] | None:
            shown = await talkers.logs(NAME)
            return shown if b"n1/" in shown.stdout and b"n2/" in shown.stdout else None

        shown = await eventually(others, 20)
        assert shown is not None
        assert shown.returncode == 1
        told = shown.stderr.decode()
        assert re.fullmatch(
            r"cdm: warning: node 'n0': does not answer \(registered, last heard of \d+ s ago\)\n", told
        ), told


async def test_that_no_node_answers_does_not_mean_that_there_is_no_output(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, SLOW, 1, node_ttl=120) as talkers:  # frozen ones stay registered
        at, served = f"127.0.0.1:{free_port()}", tmp_path / "served"
        with served.open("wb") as told:
            page = forked.started(
                "serve", "--http", at, "--server", server.url, env=environment(), stdout=told, stderr=told
            )
        try:

            async def shown() -> bool:
                found = await asked(at, f"/page/logs?kind=version&name={NAME}")
                return found.status == 200 and bool(found.json["lines"])

            await eventually(lambda: "serving HTTP" in served.read_text(), 30)
            await eventually(shown, 20)
            for node in talkers.nodes.all.values():
                node.send(signal.SIGSTOP)
            try:
                of_all = await command_line("logs", "g:talker", "--server", server.url)
                with bounded(20):
                    on_page = await asked(at, f"/page/logs?kind=version&name={NAME}")
            finally:
                for node in talkers.nodes.all.values():
                    node.send(signal.SIGCONT)
            assert of_all.returncode == 1
            said = of_all.stderr.decode()
            assert "cdm: no output of any version of g:talker was found: no node answered\n" in said
            assert "no node answered" in on_page.json["why"]
            assert "no output so far" not in on_page.json["why"]
        finally:
            page.kill()
            page.wait(patience())


@pytest.mark.quick
async def test_versions_that_cannot_be_read_are_not_taken_for_none(server: NatsServer) -> None:
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    async with raw(server) as user:
        await user.put("slices", f"n1.{KEY}", {"state": "ACTIVE"})
        await user.api("STREAM.DELETE.KV_blueprints")
    failed = await command_line("logs", "g:talker", "--server", server.url)
    assert failed.returncode != 0
    assert "nothing is known" not in failed.stderr.decode()
    assert "bucket blueprints does not exist" in failed.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_followed_until_told_to_stop(server: NatsServer, tmp_path: Path, number: signal.Signals) -> None:
    async with cluster(server, tmp_path, SLOW, 2) as talkers:
        output = tmp_path / "followed"
        asker = talkers.begin(NAME, "-f", output=output)
        try:

            def both_are_shown() -> bool:
                """One that is late at first is asked again when it is heard of."""
                text = output.read_text()
                return text.count("\n") > 40 and all(f"{node}/{NAME} | tick" in text for node in ("n1", "n2"))

            await eventually(both_are_shown, 20)
            asker.send_signal(number)
            assert await anyio.to_thread.run_sync(asker.wait, patience()) == 0
            await eventually(lambda: talkers.forgotten(2), 2)
        finally:
            asker.kill()
            asker.wait()


async def test_told_to_stop_once_more_it_stops_as_it_would(server: NatsServer, tmp_path: Path) -> None:
    """A signal that came while it shut down became a KeyboardInterrupt."""
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    for attempt in range(30):
        output = tmp_path / f"followed-{attempt}"
        asker = begun(server, NAME, "-f", output=output)
        try:
            await eventually(lambda: said_in(output).endswith("; waiting\n"), 10)  # noqa: B023
            asker.send_signal(signal.SIGINT)
            time.sleep(attempt / 10_000)  # noqa: ASYNC251  # as exactly as can be
            asker.send_signal(signal.SIGINT)
            assert await anyio.to_thread.run_sync(asker.wait, patience()) == 0
        finally:
            asker.kill()
            asker.wait()
        assert said_in(output) == f"cdm: note: there is no artifact {NAME}; waiting\n"


async def test_output_and_nodes_that_are_yet_to_come_are_waited_for(server: NatsServer, tmp_path: Path) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    async with asking(server, NAME, "-f", output=early):
        await eventually(lambda: said_in(early) == f"cdm: note: there is no artifact {NAME}; waiting\n", 10)
        async with cluster(server, tmp_path, SLOW, 0, node_ttl=30) as talkers:  # so that each has its slice
            async with asking(server, NAME, "-f", output=late):
                await eventually(lambda: said_in(late).endswith("; waiting\n"))
                # A node that is slow is told of, and followed all the same.
                told = said_in(late).splitlines(keepends=True)
                slow = {node for line in told[:-1] for node in re.findall(r"^cdm: warning: node '(n\d)': d", line)}
                assert len(slow) == len(told) - 1
                assert slow or told == [_waiting("asked: n1, n2")]
                await talkers.user.put("blueprints", KEY, 2)
                await eventually(lambda: _first_ticks(early) == _first_ticks(late) == {"n1", "n2"}, 20)
            unknown = await talkers.logs(NAME, "-f", "--node", "n9")
            assert unknown.returncode == 1
            assert b"there is no node 'n9'" in unknown.stderr


@pytest.mark.quick
async def test_that_no_node_is_registered_is_told(server: NatsServer) -> None:
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    async with raw(server) as user:
        await user.put("blueprints", KEY, 1)
    for name, complaint in (
        (NAME, f"there is no output of {NAME} (no node is registered, see `cdm status`)"),
        ("g:tlaker:1", f"there is no artifact g:tlaker:1 (did you mean {NAME}?)"),
    ):
        failed = await command_line("logs", name, "--server", server.url)
        assert (failed.returncode, failed.stderr.decode()) == (1, f"cdm: {complaint}\n")


@pytest.mark.quick
async def test_that_no_node_keeps_output_is_told_once(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of a runtime keeps none."""
    shutil.copy(ROOT / "examples" / "sites.py", tmp_path)
    installed = tmp_path / "sites-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sites\nVersion: 1\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("[cdm.runtimes]\nsites = sites:Sites\n", encoding="utf-8")
    searched = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    made = await command_line("init", "--server", server.url)
    assert made.returncode == 0, made.stderr
    output = tmp_path / "followed"
    with node_processes(server, tmp_path) as nodes:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", searched)
            nodes.start("web-1", "--runtime", "sites", "--folder", str(tmp_path / "of-web-1"))
        async with raw(server) as user:
            await user.put("blueprints", KEY, 0)
            told = f"no node keeps output of {NAME}: their runtimes keep none (asked: web-1)"

            async def said() -> bool:
                failed = await command_line("logs", NAME, "--server", server.url)
                assert failed.returncode == 1
                return failed.stderr.decode() == f"cdm: {told}\n"

            await eventually(lambda: _registered(user, "web-1"), 20)
            await eventually(said, 10)
            async with asking(server, NAME, "-f", output=output):
                await eventually(lambda: said_in(output) == f"cdm: note: {told}; waiting\n", 10)
                nodes.start("n1", "--runtime", "process", "--folder", str(tmp_path / "of-n1"))
                await eventually(lambda: _registered(user, "n1"), 20)

                async def one_keeps_some() -> bool:
                    """A node is registered before it listens, and a busy one may be late."""
                    both = await command_line("logs", NAME, "--server", server.url)
                    assert both.returncode == 1
                    return both.stderr.decode() == (
                        "cdm: warning: node 'web-1': its runtime keeps no output\n"
                        f"cdm: there is no output of {NAME} (asked: n1)\n"
                    )

                await eventually(one_keeps_some, 10)
                assert said_in(output) == f"cdm: note: {told}; waiting\n"
        nodes.unharmed()


async def _registered(user: Raw, name: str) -> bool:
    return name in await user.registrations()


def _waiting(looked: str) -> str:
    return f"cdm: note: there is no output of {NAME} yet ({looked}); waiting\n"


def _first_ticks(output: Path) -> set[str]:
    """The nodes whose first line is shown."""
    return {line.partition("/")[0] for line in output.read_text().splitlines() if line.endswith("| tick 0")}


@pytest.mark.quick
async def test_followed_through_a_restart_of_nats(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, COUNT, 2) as talkers, following(talkers, tmp_path) as followed:
        await eventually(lambda: set(followed.ends) == {"n1", "n2"}, 20)
        for _ in range(2):
            await server.restart()
            await followed.further()
        followed.whole()
        lost, back = (followed.said(event) for event in ("connection to NATS lost", "connected to NATS again"))
        assert lost == back >= 2


async def test_nodes_that_come_later_or_again_are_followed(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, COUNT, 2) as talkers, following(talkers, tmp_path) as followed:
        await eventually(lambda: set(followed.ends) == {"n1", "n2"}, 20)
        talkers.start("n3")
        await eventually(lambda: talkers.registered("n3"), 20)
        await talkers.nodes.heard(talkers.user)
        await talkers.user.put("blueprints", KEY, 3)
        await eventually(lambda: "n3" in followed.ends, 20)
        for other in ("n1", "n3"):
            await talkers.user.put("nodes", f"{other}.intent", {"schedule": "cordon"})
        await talkers.nodes.heard(talkers.user)
        talkers.nodes.all["n2"].kill()
        talkers.start("n2")
        await talkers.user.put("blueprints", KEY, 4)
        await eventually(lambda: len(followed.runs("n2")) > 1, 30)
        await followed.further()
        followed.whole()
        assert all(run[0] == 0 for run in (*followed.runs("n3"), *followed.runs("n2")[1:]))


class Followed:
    """What is shown of `COUNT` by a command that follows."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def runs(self, node: str) -> list[list[int]]:
        """The numbers that each run of the program has written on a node."""
        found: dict[str, list[int]] = {}
        for line in self._output.read_text().split("\n")[:-1]:
            if line.startswith("{"):
                shown = json.loads(line)
                if shown["text"] == BEGAN_AGAIN or shown["text"].startswith(ENDED):
                    continue
                assert shown["stream"] == "out", "a remark that lines are missing"
                pid, number = shown["text"].split()
                if shown["node"] == node:
                    found.setdefault(pid, []).append(int(number))
        return list(found.values())

    def said(self, event: str) -> int:
        """How often it told of an event."""
        return self._output.read_text().count(event)

    @property
    def ends(self) -> dict[str, int]:
        """The last number of the newest run on each node that there is something of."""
        return {node: runs[-1][-1] for node in ("n1", "n2", "n3") if (runs := self.runs(node))}

    async def further(self) -> None:
        """Wait until more is shown of all of them."""
        before = self.ends
        await eventually(lambda: all(self.ends[node] > before[node] + 20 for node in before), 30, "more is shown")

    def whole(self) -> None:
        """No line is missing, and none was shown twice."""
        for node in self.ends:
            for run in self.runs(node):
                assert run == list(range(run[0], run[0] + len(run)))


@asynccontextmanager
async def following(talkers: Talkers, folder: Path) -> AsyncIterator[Followed]:
    """A command that follows, until it is told to stop."""
    output = folder / "followed"
    async with asking(talkers.server, NAME, "-f", "--json", output=output):
        yield Followed(output)


async def test_an_asker_that_is_killed_leaves_nothing_behind(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, SLOW, 2) as talkers:
        output = tmp_path / "followed"
        asker = talkers.begin(NAME, "-f", output=output)
        await eventually(lambda: output.stat().st_size > 0, 20)
        asker.kill()
        asker.wait()
        await eventually(lambda: talkers.forgotten(2), 12)


async def test_a_flood_keeps_no_node_from_its_heartbeat_and_a_slow_reader_is_told_what_he_missed(
    server: NatsServer, tmp_path: Path
) -> None:
    logs = {"max_bytes": 200_000, "files": 2}
    async with cluster(server, tmp_path, FLOOD, 2, node_ttl=9, logs=logs) as talkers:
        found, inbox = await talkers.answers(follow=True, lines=1)
        output = tmp_path / "followed"
        asker = talkers.begin(NAME, "-f", output=output)
        try:
            ends = time.monotonic() + 20  # more than twice the nodes' TTL
            registered = 0
            with bounded(60):
                while time.monotonic() < ends or output.stat().st_size < 100_000:
                    await talkers.tell(inbox, seen=0)
                    registered += len({"n1", "n2"} & set(await talkers.user.registrations()))
                    await anyio.sleep(0.5)
            assert registered % 2 == 0
            # Not a message more than the window while nothing is dealt with, and none is too long.
            assert max(each["number"] for each in found) == WINDOW
            assert max(len(json.dumps(each)) for each in found) < 200_000
            await eventually(lambda: _remarked(talkers, found, inbox), 10)
            await talkers.tell(inbox, stop=True)
            assert asker.poll() is None
        finally:
            asker.kill()
            asker.wait()
        assert not any("node left" in each.log or "node is dead" in each.log for each in talkers.nodes.all.values())


async def _remarked(talkers: Talkers, found: list[dict[str, Any]], inbox: str) -> bool:
    await talkers.tell(inbox, seen=max(each["number"] for each in found))
    return any(line[1] == "cdm" and "lines were lost" in line[3] for each in found for line in each.get("lines", ()))


async def test_what_is_not_understood_is_told(server: NatsServer, tmp_path: Path) -> None:
    async with cluster(server, tmp_path, SLOW, 1) as talkers:
        deep = b'{"artifact":' + b"[" * 100_000
        for payload in (b"{", b'{"artifact":"x"}', b'{"artifact":"g:a:1","lines":-1}', b'{"artifact":"\xff"}', deep):
            answer = json.loads((await talkers.user.client.request("cdm.logs.n1", payload, timeout=ANSWER)).data)
            assert "not understood" in answer["error"]
            assert answer["end"]
        found, _ = await talkers.answers(since=1e300)
        await eventually(lambda: any(each.get("end") for each in found))
        assert not any(each.get("error") for each in found)
        await talkers.tell("$KV.blueprints.g/other/1", artifact=NAME)
        await anyio.sleep(0.3)
        assert set(await talkers.user.contents("blueprints")) == {KEY}


@pytest.mark.parametrize("follow", [False, True])
async def test_what_cannot_be_read_is_told(server: NatsServer, tmp_path: Path, follow: bool) -> None:
    async with cluster(server, tmp_path, SLOW, 2) as talkers:
        await eventually(lambda: len(talkers.written) == 2, 10)
        talkers.written[0].with_name("00000000.log").mkdir()
        if follow:
            output = tmp_path / "followed"
            asker = talkers.begin(NAME, "-f", output=output)
            try:
                await eventually(lambda: b"Is a directory" in output.read_bytes() and b"n2/" in output.read_bytes(), 10)
                asker.terminate()
                await anyio.to_thread.run_sync(asker.wait, patience())
            finally:
                asker.kill()
                asker.wait()
            told = output.read_text()
        else:
            shown = await talkers.logs(NAME)
            assert shown.returncode == 1
            assert b"n2/" in shown.stdout
            told = shown.stderr.decode()
        assert "cdm: warning: node 'n1': answering failed: IsADirectoryError(21, 'Is a directory')" in told
