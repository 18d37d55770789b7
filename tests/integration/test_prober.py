"""The prober and the web service that releases are tested with, each as a process, without anything of cdm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import anyio
import pytest

from tests.harness.probing import WEB_SLICE, Probed, probing
from tests.harness.servers import free_port
from tests.harness.waiting import eventually, patience

pytestmark = pytest.mark.anyio


class Web:
    """One of the web services."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, version: str) -> None:
        self.process = process
        self.port = port
        self.version = version

    def entry(self, **fields: object) -> dict[str, object]:
        """How a list names it."""
        named = {"address": "127.0.0.1", "port": self.port, "weight": 1, "node": "n1", "version": self.version}
        return {**named, **fields}

    @property
    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Street:
    """Web services, and a list of those that may be asked."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.list = folder / "list"
        self.list.touch()
        self._stack = stack

    async def open(self, version: str, **variables: str) -> Web:
        port = free_port()
        process = self._stack.enter_context(
            started({"CDM_PORT": str(port), "CDM_ARTIFACT": f"g:web:{version}", **variables})
        )
        self._stack.callback(process.kill)
        made = Web(process, port, version)
        if "FAIL" not in variables or variables["FAIL"].startswith("500"):
            await eventually(lambda: made.listens, what="it listens")
        return made

    def tell(self, *entries: object) -> None:
        with self.list.open("a") as file:
            file.write(json.dumps({"service": "g:web", "endpoints": entries}) + "\n")

    @property
    def command(self) -> list[str]:
        return ["tail", "-n", "+1", "-f", str(self.list)]


def started(variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(WEB_SLICE)], env={**os.environ, **variables})


def got(web: Web) -> object:
    """What it answers."""
    with urlopen(f"http://127.0.0.1:{web.port}/", timeout=patience()) as answer:
        return json.load(answer)


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    with ExitStack() as stack:
        yield Street(tmp_path, stack)


async def probed(street: Street, folder: Path) -> Probed:
    async with probing(folder, street.command) as prober:
        return await prober.stop(20)


@pytest.mark.quick
async def test_each_answers_by_its_weight_and_a_move_in_good_order_fails_nothing(
    street: Street, tmp_path: Path
) -> None:
    one, two = await street.open("1"), await street.open("2", SLOW="0.2")
    three = await street.open("3")
    street.tell(one.entry(weight=3), two.entry(), three.entry(weight=0))
    async with probing(tmp_path, street.command) as prober:
        await prober.sent(75)
        street.tell(one.entry())
        await prober.heard(2)
        await prober.sent(25)
        two.process.send_signal(signal.SIGTERM)
        two.process.wait(patience())
        found = await prober.stop(50)
    found.flawless(50)
    assert two.process.returncode == 0
    assert found.lists == 2
    assert found.requests == sum(found.answers.values())
    assert set(found.answers) == {"1", "2"}
    assert found.answers["1"] > found.answers["2"] > 0
    assert found.slowest >= 0.2


async def test_what_it_accepted_is_answered_before_it_ends(street: Street, tmp_path: Path) -> None:
    one = await street.open("1", SLOW="2")
    street.tell(one.entry())
    async with probing(tmp_path, street.command) as prober:
        await prober.sent(25)
        street.tell()
        await prober.heard(2)
        await prober.sent(25)
        one.process.send_signal(signal.SIGTERM)
        await eventually(lambda: one.process.poll() is not None)
        found = await prober.stop()
    assert {failure["reason"] for failure in found.failures} == {"there is no endpoint to ask"}
    assert found.answers["1"] > 0


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({"FAIL": "500"}, "500 Out of order"), ({"FAIL": "start"}, "ConnectionRefused"), ({"SLOW": "60"}, "no answer")],
)
async def test_failures_are_told_with_their_reason(
    street: Street, tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    bad = await street.open("1", **variables)
    street.tell(bad.entry())
    began = time.time()
    timeout = 1 if "SLOW" in variables else 10
    async with probing(tmp_path, street.command, rate=10, timeout=timeout) as prober:
        found = await prober.stop(5)
    assert found.requests == len(found.failures) > 3
    assert all(reason in each["reason"] and "1 on n1" in each["to"] for each in found.failures)
    assert all(began - 1 < each["time"] < time.time() for each in found.failures)


async def test_an_address_that_is_somebody_elses_now(street: Street, tmp_path: Path) -> None:
    one = await street.open("1")
    street.tell(one.entry(version="2"))
    found = await probed(street, tmp_path)
    assert found.failures
    assert all("g:web:1 answered" in each["reason"] for each in found.failures)


async def test_a_list_that_ends_and_one_that_cannot_be_read(street: Street, tmp_path: Path) -> None:
    one = await street.open("1")
    street.tell(one.entry())
    with street.list.open("a") as file:
        file.write("{}\n")
    async with probing(tmp_path, ["cat", str(street.list)]) as prober:
        await prober.sent(25)
        found = await prober.stop()
    assert [failure["to"] for failure in found.failures] == ["the list", "the list"]
    assert "endpoints" in found.failures[0]["reason"]
    assert "exit code 0" in found.failures[1]["reason"]
    assert found.answers["1"] > 0


async def test_a_bad_web_service_is_bad_in_the_way_that_it_is_told(street: Street) -> None:
    assert (await street.open("1", FAIL="start")).process.wait(patience()) == 1
    assert (await street.open("1", FAIL="crash:0.2")).process.wait(patience()) == 7
    later = await street.open("1", FAIL="500:10")
    assert got(later) == {"artifact": "g:web:1", "slice": "?", "level": "", "pid": later.process.pid}
    await anyio.sleep(10.1)
    with pytest.raises(HTTPError, match="500"):
        got(later)
    silent = await street.open("1", FAIL="hang")
    await anyio.sleep(1)
    assert silent.process.poll() is None
    assert not silent.listens
    silent.process.send_signal(signal.SIGTERM)
    await eventually(lambda: silent.process.poll() is not None)
