"""What goes wrong with slices: who hears of it, what it says, and what is tried again."""

from __future__ import annotations

import os
import signal
from operator import le
from pathlib import Path

import pytest
from msgspec.structs import replace

from cdm.manager.policy import Policy
from cdm.model.artifact import Artifact
from cdm.model.manifest import Line, Readiness, Restart
from cdm.node.serving import Running
from tests.harness.judging import assert_legal, histories, names
from tests.harness.nodes import nodes_on
from tests.harness.proc import children, descriptors, keepers, resident
from tests.harness.servers import NatsServer
from tests.harness.serving import ANSWERING, ONCE, PLAIN, PORTS, SLEEP, agent_alone, ask, shown, yard
from tests.harness.waiting import eventually

pytestmark = pytest.mark.anyio

BROKEN = "import sys\nprint('the disk is full', file=sys.stderr)\nsys.exit(3)"


async def test_a_missing_artifact_says_what_to_do_and_loads_once_it_is_there(
    server: NatsServer, tmp_path: Path
) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key("g/one/1")
        await hand.put(key, "LOAD", failures=2)
        failed = await hand.reaches(key, "FAILED")
        assert failed["fatal"] is True
        assert failed["failures"] == 2, "the leader counts"
        assert "g:one:1" in failed["reason"]
        assert "cdm artifact push" in failed["reason"]
        await ground.push("one")
        await hand.put(key, "LOAD", failures=3)
        loaded = await hand.reaches(key, "LOADED")
        content = loaded.pop("content")
        assert loaded == {"state": "LOADED", "term": 7, "failures": 3}, "nothing is left of the reason"
        assert len(content) == 64
        assert_legal(await ground.user.recorded())


async def test_a_bad_entry_is_fatal(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await ground.push("one", SLEEP, replace(PLAIN, entry="bin/serve")))
        await hand.put(key, "LOAD")
        state = await hand.reaches(key, "FAILED")
        assert state["fatal"] is True
        assert "bin/serve" in state["reason"]
        await hand.unload(key)


async def test_what_does_not_start_fails_with_its_last_lines(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        key = hand.key(await ground.push("broken", BROKEN, ANSWERING))
        await hand.put(key, "LOAD")
        await hand.reaches(key, "LOADED")
        await hand.put(key, "ACTIVATE")
        failed = await hand.reaches(key, "FAILED")
        assert "exit status 3" in failed["reason"]
        assert "the disk is full" in failed["reason"]
        assert "fatal" not in failed
        await ground.push("broken", PORTS, ANSWERING, force=True)  # mended, under the same name
        assert ask((await hand.up(key, failures=1))["port"])
        assert_legal(await ground.user.recorded())


async def test_a_crash_loop_is_tried_here_before_it_is_told(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, _):
        manifest = replace(PLAIN, restart=Restart(attempts=3, backoff=0.02))
        lives = tmp_path / "lives"
        program = f"import time\nopen({str(lives)!r}, 'a').write('x')\ntime.sleep(0.1)\n{BROKEN}"
        key = hand.key(await ground.push("brief", program, manifest))
        await hand.put(key, "LOAD")
        await hand.reaches(key, "LOADED")
        await hand.put(key, "ACTIVATE")
        failed = await hand.reaches(key, "FAILED")
        assert len(lives.read_text()) == 4, "once, and three attempts"
        assert "exit status 3" in failed["reason"]
        assert "the disk is full" in failed["reason"]
        assert not ground.living
        assert_legal(await ground.user.recorded())


async def test_what_is_started_again_says_so_until_it_serves(server: NatsServer, tmp_path: Path) -> None:
    async with agent_alone(server, tmp_path) as (ground, hand, nodes):
        manifest = replace(ANSWERING, restart=Restart(attempts=9, backoff=2, stable=600))
        key = hand.key(await ground.push("one", PORTS, manifest))
        port = (await hand.up(key))["port"]
        for restarts in (1, 2):
            os.kill(ground.living[shown(key)][0], signal.SIGKILL)

            async def again(restarts: int = restarts) -> bool:
                value = (await ground.user.contents("slices"))[key].value
                return (value["state"], value.get("restarts")) == ("ACTIVE", restarts)

            await eventually(again, 20)
            values = [record.value for record in await ground.user.recorded() if record.key == key]
            said = [value for value in values if value["state"] == "ACTIVATING"][-1]
            assert "killed by SIGKILL" in said["reason"]
            assert (said["restarts"], said["stable"]) == (restarts, 600)
            assert said["deadline"] > manifest.readiness.timeout
            assert "port" not in said
            said = await hand.reaches(key, "ACTIVE")
            assert ask(said["port"])
            assert (said["port"], said["restarts"], said.get("reason")) == (port, restarts, None)
        await hand.unload(key)
        records = await ground.user.recorded()
        assert_legal(records)
        assert names(histories(records)[key]) == (
            "LOAD LOADING LOADED ACTIVATE ACTIVATING ACTIVE ACTIVATING ACTIVE ACTIVATING ACTIVE UNLOAD UNLOADING gone"
        )
        nodes.unharmed()


async def test_a_slice_that_is_started_again_keeps_its_port(server: NatsServer, tmp_path: Path) -> None:
    """The port that its key tells is where it is found, also after a crash that nobody hears of."""
    async with agent_alone(server, tmp_path) as (ground, hand, nodes):
        key = hand.key(await ground.push("one", PORTS, replace(ANSWERING, restart=Restart(attempts=9, backoff=0.1))))
        port = (await hand.up(key))["port"]
        for _ in range(3):
            os.kill(ground.living[shown(key)][0], signal.SIGKILL)
            await eventually(lambda: not ask(port))
            await eventually(lambda: ask(port))
        os.kill(keepers()[0], signal.SIGKILL)
        await eventually(lambda: not ask(port))
        await eventually(lambda: ask(port))
        assert (await hand.reaches(key, "ACTIVE"))["port"] == port
        nodes.unharmed()


@pytest.mark.quick
async def test_the_leader_replaces_elsewhere_what_fails_on_one_node(server: NatsServer, tmp_path: Path) -> None:
    """And it goes on from the count in the value."""
    policy = Policy(retry_base=0.2, settle=0.0)
    async with yard(server, tmp_path) as ground, nodes_on(server, reconcile_interval=0.5, policy=policy) as nodes:
        for name in ("n1", "n2"):
            await nodes.start(name, runtime="process", folder=tmp_path / name)
        cursed = "import os, sys\nif os.environ['CDM_NODE'] == 'n1': sys.exit('n1 is cursed')\nprint('READY=1')"
        one = await ground.push(
            "one", f"{cursed}\n{SLEEP}", replace(PLAIN, readiness=Readiness(check=Line()), restart=ONCE)
        )
        await ground.user.put("blueprints", one, 1)
        keys = await ground.settles(1)
        assert list(keys) == ["n2.g/one/1"]
        await ground.user.put("blueprints", one, 2)

        async def both_on_n2() -> bool:
            found = await ground.user.slices()
            return sum(key.startswith("n2.") and state == "ACTIVE" for key, state in found.items()) == 2

        await eventually(both_on_n2, 20, "what fails on n1 runs on n2")
        await ground.user.put("blueprints", one, 0)
        await ground.settles(0)
        nodes.unharmed()
    await ground.nothing_left(0.1)


async def test_two_hundred_slices_start_and_stop_without_a_trace(server: NatsServer, tmp_path: Path) -> None:
    script = tmp_path / "main.sh"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    async with agent_alone(server, tmp_path) as (ground, hand, nodes):
        await ground.push_file(Artifact("g", "many", "1"), script, PLAIN)
        keys = [hand.key("g/many/1", ordinal) for ordinal in range(200)]

        async def everywhere(state: str | None, count: int) -> None:
            async def there() -> bool:
                found = await ground.user.slices()
                return len(found) == count and set(found.values()) <= {state}

            await eventually(there, 30, f"{count} are {state}")

        def held() -> tuple[int, int]:
            return descriptors(os.getpid()), len(children(os.getpid()))

        async def cycle() -> None:
            for command, state, count in (("LOAD", "LOADED", 200), ("ACTIVATE", "ACTIVE", 200), ("UNLOAD", None, 0)):
                for key in keys:
                    await hand.put(key, command)
                await everywhere(state, count)
                if command == "ACTIVATE":
                    # One whose exec is under way is not seen.
                    await eventually(lambda: len(ground.living) == 200, what="each runs")
            assert not ground.living
            agent = nodes.all["n1"].node.part(Running).agent
            await eventually(lambda: not agent._workers, what="nobody works any more")

        await cycle()
        before, memory = held(), resident(os.getpid())
        await cycle()
        # What tests before this one have left may be collected late, as the last of these may be closed late.
        await eventually(lambda: all(map(le, held(), before)), what=f"no more than {before} descriptors and children")
        print("descriptors, children, kB", before, memory, held(), resident(os.getpid()))
        assert resident(os.getpid()) < memory + 8_000
