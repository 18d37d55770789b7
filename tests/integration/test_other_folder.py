"""The same node is started with another folder while what it left there may still run: nothing runs twice.

Nor is it said to be stopped.
"""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cdm.agent.holding import WHY
from cdm.model.blueprint import LAST_MARGIN, LONGEST_LAST_GRACE
from cdm.model.manifest import Manifest
from tests.harness.processes import Process, Processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.serving import PLAIN, SLEEP, Yard, shown
from tests.harness.waiting import eventually
from tests.integration.test_outliving import beats, kept
from tests.integration.test_stop_after import PROGRAM

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

TTL, STOP_AFTER = 3.0, 20.0
CERTAIN = STOP_AFTER + LONGEST_LAST_GRACE + LAST_MARGIN
"""Seconds since the last heartbeat after which nothing runs where nobody was heard of."""
LEAST = CERTAIN - TTL / 3 - 0.2
"""Least seconds since a process was killed, of which a heartbeat may have been taken a third of the TTL before."""
ALONE: dict[str, Any] = {"overrides": {"stop_after": STOP_AFTER}}


def start(running: Processes, folder: Path, where: str) -> Process:
    """Start node n1 with this folder."""
    return running.start("n1", "--role", "agent", "--runtime", "process", "--folder", str(folder / where))


async def pushed(ground: Yard, folder: Path, name: str) -> str:
    """An artifact that tells when it runs twice."""
    program = PROGRAM.format(lock=str(folder / f"{name}.lock"), twice=str(folder / "twice"), seconds=0.3)
    return await ground.push(name, program, Manifest(stop_grace=1))


async def value(ground: Yard, key: str) -> dict[str, Any]:
    """What a key holds; nothing where it is gone."""
    record = (await ground.user.contents("slices")).get(key)
    return record.value if record else {}


async def held_back(ground: Yard, key: str, state: str) -> None:
    """Wait until it is said to be held back."""

    async def told() -> bool:
        held = await value(ground, key)
        return (held.get("state"), held.get("reason")) == (state, WHY)

    await eventually(told, 30, f"{key} is held back")
    assert (await value(ground, key))["deadline"] > LONGEST_LAST_GRACE, "so the leader does not replace it"


async def test_it_is_held_back_until_a_leader_could_place_it_elsewhere(server: NatsServer, tmp_path: Path) -> None:
    """What may run twice is started at once; what is told to go is not said to be gone before it is."""
    async with kept(server, tmp_path, TTL) as (ground, hand, running):
        first = start(running, tmp_path, "one")
        stays, goes = (
            hand.key(await pushed(ground, tmp_path, "stays")),
            hand.key(await pushed(ground, tmp_path, "goes")),
        )
        plain = hand.key(await ground.push("plain", SLEEP, PLAIN))
        for key in (stays, goes):
            await hand.up(key, **ALONE)
        await hand.up(plain)
        before = ground.living
        await beats(ground)
        killed = time.monotonic()
        first.crash()
        second = start(running, tmp_path, "two")
        await held_back(ground, stays, "ACTIVATING")
        await hand.put(goes, "UNLOAD", **ALONE)
        await held_back(ground, goes, "UNLOADING")
        assert "held back: another process of this node" in second.log
        assert ground.living[shown(stays)] == before[shown(stays)]
        old = set(before[shown(plain)])
        await eventually(lambda: set(ground.living.get(shown(plain), ())) - old, 30, "what may run twice is started")
        await hand.reaches(plain, "ACTIVE", 30)
        assert (await value(ground, stays))["state"] == "ACTIVATING", "and what may not is held back still"
        await hand.reaches(stays, "ACTIVE", CERTAIN + 20)
        assert time.monotonic() - killed > LEAST
        await hand.reaches(goes, None, 20)
        assert ground.living[shown(stays)] != before[shown(stays)]
        assert not (tmp_path / "twice").exists()
        second.crash()
        again = start(running, tmp_path, "two")

        def goes_on() -> bool:
            return any("goes on since" in line and shown(stays) in line for line in again.log.splitlines())

        await eventually(goes_on, 30, "with its own folder it goes on at once")
        await hand.unload(stays)
        await hand.unload(plain)


async def test_after_its_registration_has_expired_it_is_held_back_too(server: NatsServer, tmp_path: Path) -> None:
    """Also by a process that comes after one that held it back; and its own folder's goes on with it."""
    async with kept(server, tmp_path, TTL) as (ground, hand, running):
        first = start(running, tmp_path, "one")
        key = hand.key(await pushed(ground, tmp_path, "alone"))
        await hand.up(key, **ALONE)
        before = ground.living
        first.crash()
        await eventually(lambda: _gone(ground), 30, "its registration has expired")
        for folder in ("two", "two", "three"):
            process = start(running, tmp_path, folder)
            await eventually(partial(_tells, process), 30, "it is held back")
            process.crash()
        process = start(running, tmp_path, "one")
        await eventually(lambda: "node is up" in process.log, 30, "it is registered")
        await hand.reaches(key, "ACTIVE", 20)
        assert not (tmp_path / "twice").exists()
        process.crash()
        kept_on = ground.living
        assert len(kept_on) == 1
        assert before.keys() == kept_on.keys()
        # One that leaves meanwhile does not say that nothing runs.
        other = start(running, tmp_path, "two")
        await held_back(ground, key, "ACTIVATING")
        other.send(signal.SIGTERM)
        assert await other.ends(30) == 0
        assert (await value(ground, key))["state"] == "ACTIVATING"
        assert "the registration is left to expire" in other.log
        assert ground.living == kept_on
        assert not (tmp_path / "twice").exists()
        await ground.user.delete("slices", key)


def _tells(process: Process) -> bool:
    return WHY in process.log


async def _gone(ground: Yard) -> bool:
    return not await ground.user.registrations()
