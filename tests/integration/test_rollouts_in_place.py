"""Releases in which no new instance serves beside an old one: on a fixed port, and of what must not run twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.waiting import eventually
from tests.integration.test_rollouts_lost import TTL

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def test_on_a_fixed_port_the_old_one_goes_first_both_ways(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path, agents=("a1",)) as place:
        place.wanted, port = 1, free_port()
        for version in ("1", "2"):
            await place.push(version, port=port)
        await place.put("1")
        await place.serves("1")
        await place.put("2", rollout={"from": "1"}, drain_delay=8)  # so there is time to read why
        await eventually(lambda: waits_for(place, f"port {port}"), 30, "status says why the old one goes first")
        await place.reaches("complete")
        await place.serves("2")
        await place.judged(max_unavailable=1)
        # And back in the same way.
        await place.put("2", rollout={"from": "1", "abort": True})
        await place.reaches("reverted")
        await place.serves("1")
        assert (await place.judged(max_unavailable=1)).most() <= 2


async def test_what_must_not_run_twice_goes_one_after_another(server: NatsServer, tmp_path: Path) -> None:
    """Arguments and ``stop_after`` are of the template, too."""
    async with site(server, tmp_path, node_ttl=TTL) as place:
        await place.release("1")
        async with place.probing() as prober:
            await place.put("1", args=["--safe"], stop_after=10)
            await place.reaches("complete")
            await place.serves("1")
            found = await prober.stop(50)
        found.flawless(50)
        assert {arguments(pid) for pids in place.ground.living.values() for pid in pids} == {("--safe",)}
        assert (await place.judged(max_surge=0, max_unavailable=1)).most() == 3
        assert_never_twice(place)


async def waits_for(place: Site, what: str) -> bool:
    rollout = (await place.status("2")).get("rollout") or {}
    return what in str(rollout.get("why"))


def arguments(pid: int) -> tuple[str, ...]:
    """What a web service was started with."""
    words = Path("/proc", str(pid), "cmdline").read_text().split("\0")[:-1]
    return tuple(words[words.index(next(word for word in words if word.endswith("web_slice.py"))) + 1 :])


def assert_never_twice(place: Site) -> None:
    """No new one was told to run before an old one had stopped."""
    running: set[str] = set()
    for entry in place.recorder.entries("slices"):
        if not entry.key.startswith("_"):
            state = entry.fields.get("state")
            running.discard(entry.key)
            running |= {entry.key} if state in ("ACTIVATE", "ACTIVATING", "ACTIVE", "UNLOAD", "UNLOADING") else set()
            assert len(running) <= place.wanted, entry
