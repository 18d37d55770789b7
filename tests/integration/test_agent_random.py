"""Anything at any time: random commands, crashes of slices and of nodes. In the end what lives is what the keys say.

``CDM_TEST_COMMANDS`` says how many commands there are, ``CDM_TEST_SEED`` which ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from cdm.model.manifest import Restart
from tests.integration.serving import ANSWERING, PLAIN, PORTS, SLEEP, Hand, Yard, assert_legal, made, yard
from tests.integration.test_agent_restart import node_processes, start
from tests.integration.tools import Processes, Record, Rejection
from tests.server import NatsServer, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1800)]

COMMANDS = int(os.environ.get("CDM_TEST_COMMANDS", "120"))
SEED = int(os.environ.get("CDM_TEST_SEED", "0")) or time.time_ns() % 1_000_000
CAN_FOLLOW = {
    None: ("LOAD",),
    "LOADED": ("ACTIVATE", "ACTIVATE", "ACTIVATE", "UNLOAD"),
    "ACTIVE": ("DEACTIVATE", "UNLOAD", "delete"),
    "FAILED": ("LOAD", "UNLOAD"),
    "UNLOADING": (),
    "UNLOAD": (),
}
"""What a leader may do next; in all other states UNLOAD, or delete."""
PROGRAMS = {
    "good": (SLEEP, PLAIN),
    "serving": (PORTS, ANSWERING),
    "brief": (
        "import random, sys, time\ntime.sleep(random.random())\nsys.exit(1)",
        replace(PLAIN, restart=Restart(attempts=2, backoff=0.05)),
    ),
    "broken": ("import sys\nsys.exit(1)", replace(ANSWERING, restart=Restart(attempts=1))),
    "stubborn": (
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}",
        replace(PLAIN, stop_grace=0.2),
    ),
}


class Walk:
    """A leader who does not know what he wants."""

    def __init__(self, ground: Yard, hand: Hand, running: Processes, keys: list[str]) -> None:
        self.ground = ground
        self.hand = hand
        self.running = running
        self.keys = keys
        self.random = random.Random(SEED)
        self.done: Counter[str] = Counter()

    async def step(self, folder: Path) -> None:
        chance = self.random.random()
        if chance < 0.02:
            self.running.all["n1"].kill()
            await anyio.sleep(self.random.choice((0, 0.5)))
            start(self.running, folder)
            self.done["node killed"] += 1
        elif chance < 0.12:
            if pids := [pid for pids in self.ground.living.values() for pid in pids]:
                try:
                    os.kill(self.random.choice(pids), signal.SIGKILL)
                    self.done["slice killed"] += 1
                except ProcessLookupError:
                    pass
        else:
            await self.command()
        self.check()

    async def command(self) -> None:
        found = await self.ground.user.contents("slices")
        key = self.random.choice(self.keys)
        record = found.get(key)
        state = record.value["state"] if record else None
        if choice := self.random.choice(CAN_FOLLOW.get(state, ("UNLOAD", "delete", "", "", "", "")) or ("",)):
            await self.write(key, choice, record)

    async def write(self, key: str, choice: str, record: Record | None) -> None:
        try:
            if choice == "delete":
                await self.ground.user.delete("slices", key)
            else:
                overrides = {"env": {"LEVEL": str(self.random.randrange(2))}}
                await self.hand.put(key, choice, record.sequence if record else None, overrides=overrides)
            self.done[choice] += 1
        except Rejection:
            self.done["refused"] += 1  # the agent was faster

    def check(self) -> None:
        doubled = {name: pids for name, pids in self.ground.living.items() if len(pids) > 1}
        assert not doubled, f"seed {SEED}: twice at the same time: {doubled}"


async def test_in_the_end_what_lives_is_what_the_keys_say(server: NatsServer, tmp_path: Path) -> None:
    async with yard(server, tmp_path) as ground:
        await made(server, ground.user)
        hand = Hand(ground.user)
        keys = []
        for name, (program, manifest) in PROGRAMS.items():
            path = await ground.push(name, program, manifest)
            keys += [hand.key(path, ordinal) for ordinal in range(3)]
        with node_processes(server, tmp_path) as running:
            start(running, tmp_path)
            walk = Walk(ground, hand, running, [*keys, hand.key("g/missing/1")])
            while sum(walk.done.values()) < COMMANDS:
                await walk.step(tmp_path)
                await anyio.sleep(walk.random.choice((0, 0, 0.02, 0.1)))
            await eventually(ground.exact, 30, f"all is at rest and exact (seed {SEED})")
            print(f"seed {SEED}: {dict(walk.done)}")
            assert_legal(await ground.user.recorded(), restarted=True, deleted=True)
            running.unharmed()
            running.all["n1"].send(signal.SIGTERM)
            assert await running.all["n1"].ends() == 0
            assert not ground.living
