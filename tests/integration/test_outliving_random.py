"""Nodes, keepers and both are killed at random, and come back soon or late: nothing runs twice, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from cdm.model.manifest import Manifest
from tests.harness.proc import left_keepers
from tests.harness.processes import Processes, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import Yard, made, yard
from tests.harness.waiting import eventually, in_time
from tests.integration.test_outliving import kill_keepers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

NODES = ("n1", "n2", "n3")
TTL, STOP_AFTER, GRACE = 6.0, 8.0, 1.0
PLAIN = 5
HITS = ("node", "node", "stop", "keeper", "both", "away", "cut off")
MOVES = "moves"
"""The node comes back with another folder, where what may run twice does, for a while."""
LOCKED = """
import fcntl, os, signal, sys, time
name = {name}
if not {locked}:
    while True:
        time.sleep(600)
lock = open({folder!r} + "/lock-" + name.replace("/", "_"), "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    open({folder!r} + "/twice", "a").write(name + chr(10))

def stop(*_):
    time.sleep(0.3)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
while True:
    time.sleep(600)
"""


class Ground(NamedTuple):
    """Nodes that are killed."""

    server: NatsServer
    yard: Yard
    running: Processes
    folder: Path
    chance: random.Random
    on_stop: str
    hits: tuple[str, ...]
    homes: dict[str, int]
    """How often each node has been given another folder."""

    def home(self, name: str) -> str:
        """The node's folder."""
        return f"{name}-{self.homes[name]}"

    def start(self, name: str) -> None:
        """Start a node in its folder."""
        home = self.folder / self.home(name)
        where = ("--runtime", "process", "--folder", str(home), "--on-stop", self.on_stop)
        self.running.start(name, "--role", "all", *where)

    async def all_there(self) -> bool:
        return len(await self.yard.user.registrations()) == len(NODES)

    async def settles(self) -> None:
        """All nodes are back, and what is to run does, once."""
        await eventually(self.all_there, 90, "all are registered")
        await self.yard.settles(PLAIN + 1, 120)
        assert not (self.folder / "twice").exists(), (self.folder / "twice").read_text()

    async def hit(self, what: str, name: str) -> None:
        """Something happens to a node, which then is started again."""
        process, folder = self.running.all[name], self.folder / self.home(name)
        if what == "cut off":
            self.server.pause()
        if what in ("keeper", "both"):
            kill_keepers(folder)
        if what == "stop":
            process.send(signal.SIGTERM)
            await process.ends(30)
        elif what != "keeper":
            process.crash()
        if what == "both":
            await in_time(partial(_idle, self.yard, name), 2, "all ended with the keeper")
        if what == "cut off":
            await anyio.sleep(self.chance.random() * 2)
            self.server.resume()
        if what == "away":
            await in_time(partial(_idle, self.yard, name), STOP_AFTER + GRACE, "all is gone")
            await in_time(partial(_unkept, folder), 1, "and so is the keeper")
        await anyio.sleep(self.chance.random())
        if what == MOVES:
            self.homes[name] += 1
        if what != "keeper":
            self.start(name)

    async def go(self, kills: int) -> Counter[str]:
        """Kill so often; returns what became of what ran there."""
        done: Counter[str] = Counter()
        for _ in range(kills):
            name, what = self.chance.choice(NODES), self.chance.choice(self.hits)
            print(f"{time.strftime('%X')} {what} {name}", flush=True)
            await anyio.sleep(self.chance.random())
            before = _of(self.yard.living, name)
            await self.hit(what, name)
            await self.settles()
            stayed = before & {pid for pids in self.yard.living.values() for pid in pids}
            fate = "nothing ran" if not before else "the same processes" if stayed == before else "other processes"
            done[f"{what}: {fate}"] += 1
        return done


MANY = [
    pytest.param(kills, on_stop, moves, marks=pytest.mark.slow)
    for on_stop in ("leave", "keep")
    for kills, moves in ((200, False), (100, True))
]


@pytest.mark.parametrize(("kills", "on_stop", "moves"), [(4, "leave", False), *MANY])
async def test_nothing_runs_twice_and_nothing_is_left(
    server: NatsServer, tmp_path: Path, kills: int, on_stop: str, moves: bool
) -> None:
    """Where nodes come back with other folders, too, that goes for what must not run twice alone."""
    seed = int(os.environ.get("CDM_SEED") or random.randrange(10**6))
    print("seed", seed)
    async with yard(server, tmp_path) as ground:
        await made(server, ground.user)
        with node_processes(server, tmp_path, TTL) as running:
            hits, homes = (*HITS, *(MOVES,) * (3 if moves else 0)), dict.fromkeys(NODES, 0)
            nodes = Ground(server, ground, running, tmp_path, random.Random(seed), on_stop, hits, homes)
            try:
                for name in NODES:
                    nodes.start(name)
                plain = LOCKED.format(name='os.environ["CDM_SLICE"]', folder=str(tmp_path), locked=not moves)
                alone = LOCKED.format(name='"alone"', folder=str(tmp_path), locked=True)
                one = await ground.push("one", plain, Manifest(stop_grace=GRACE))
                two = await ground.push("two", alone, Manifest(stop_grace=GRACE))
                await eventually(nodes.all_there, 60, "all are registered")
                await ground.user.stubborn("blueprints", one, PLAIN)
                await ground.user.stubborn("blueprints", two, {"instances": 1, "stop_after": STOP_AFTER})
                await nodes.settles()
                print(dict(sorted((await nodes.go(kills)).items())))
                await ground.user.stubborn("blueprints", one, 0)
                await ground.user.stubborn("blueprints", two, 0)
                await eventually(lambda: not ground.living, 60, "nothing is to run")
            finally:
                running.kill()


def _idle(ground: Yard, node: str) -> bool:
    return not _of(ground.living, node)


def _unkept(folder: Path) -> bool:
    return not left_keepers(folder)


def _of(living: dict[str, list[int]], node: str) -> set[int]:
    return {pid for name, pids in living.items() if name.startswith(f"{node}/") for pid in pids}
