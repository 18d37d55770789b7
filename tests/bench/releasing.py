"""``rollout``: what it costs to take all instances of an artifact to another template, in writes and seconds."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import nats.errors
from nats.aio.msg import Msg

from tests.bench.measure import Figure, figure, peak_memory
from tests.bench.playground import Playground, node_process, nodes_named, playground
from tests.harness.waiting import eventually
from tests.harness.wire import EXPECT

SERVICE = "org.example/web"
REGISTRATION = b'{"ttl":600,"address":"127.0.0.1","features":["rollouts"]}'
ANSWERS = {"LOAD": ("LOADING", "LOADED"), "ACTIVATE": ("ACTIVATING", "ACTIVE"), "UNLOAD": ("UNLOADING", None)}
COMMANDS = (*ANSWERS, "DEACTIVATE")
MIN_HEALTHY = 1.0
WAVES = 10
"""A tenth of the instances is started beside the others at a time."""


class SwiftAgents:
    """The agents of all nodes, which take no time for what they do. Made by `serving`."""

    def __init__(self, on: Playground, tasks: anyio.abc.TaskGroup) -> None:
        self.states: dict[str, tuple[str, str]] = {}
        """State and template by key."""
        self.written: Counter[str] = Counter()
        """Messages of ``slices`` by what they are."""
        self.batches: set[str] = set()
        self.phase = ""
        """What the rollout's record said last."""
        self._on = on
        self._tasks = tasks

    async def hear(self, message: Msg) -> None:
        """Take what was stored."""
        key = message.subject.removeprefix("bench.")
        headers = message.headers or {}
        value = json.loads(message.data) if message.data else {}
        state = value.get("state", "")
        if key.startswith("_"):
            self.phase = value.get("phase", self.phase)
            self.written["records" if key.startswith("_rollout.") else "renewals"] += 1
            return
        self.written["commands" if state in COMMANDS else "answers"] += 1
        if batch := headers.get("Nats-Batch-Id"):
            self.batches.add(batch)
        if state:
            self.states[key] = state, value.get("template", "")
        else:
            self.states.pop(key, None)
        if state in ANSWERS:
            self._tasks.start_soon(self._answer, key, value, int(headers["Nats-Sequence"]))

    async def _answer(self, key: str, value: dict[str, Any], revision: int) -> None:
        for state in ANSWERS[value["state"]]:
            port = {"port": 4000, "address": "127.0.0.1"} if state == "ACTIVE" else {}
            told = json.dumps({**value, **port, "state": state}).encode() if state else b""
            headers = {EXPECT: str(revision), **({} if state else {"KV-Operation": "DEL"})}
            try:
                answer = await self._on.client.request(f"$KV.slices.{key}", told, timeout=30, headers=headers)
            except nats.errors.Error:
                return
            stored = json.loads(answer.data)
            if "error" in stored:
                return  # the leader wrote in between, and is obeyed
            revision = stored["seq"]

    def all_are(self, count: int, template: str | None = None) -> bool:
        """Whether there are so many, all ACTIVE, and none of this template."""
        held = list(self.states.values())
        return len(held) == count and all(state == "ACTIVE" and told != template for state, told in held)


@asynccontextmanager
async def serving(on: Playground) -> AsyncIterator[SwiftAgents]:
    """Agents that hear of each message of ``slices`` as soon as it is stored."""
    info = await on.connection.api("STREAM.INFO.KV_slices")
    again = {"src": "$KV.slices.>", "dest": "bench.>"}
    await on.connection.api("STREAM.UPDATE.KV_slices", {**info["config"], "republish": again})
    async with anyio.create_task_group() as tasks:
        found = SwiftAgents(on, tasks)
        await on.client.subscribe("bench.>", cb=found.hear)
        await on.client.flush()
        yield found
        tasks.cancel_scope.cancel()


async def rollout(quick: bool) -> list[Figure]:
    """A variable is changed; all instances are replaced, a tenth at a time."""
    instances, nodes, repetitions = (100, 10, 1) if quick else (1_000, 100, 3)
    runs = [await rolled_out(instances, nodes) for _ in range(repetitions)]
    note = f"{instances:,} instances on {nodes:,} nodes, max_surge {100 // WAVES}%, min_healthy {MIN_HEALTHY:g} s"
    return [
        figure("rollout", "s", [run["seconds"] for run in runs], peak=max(run["peak"] for run in runs), note=note),
        *(
            figure(f"rollout {name}", f"{name}", [float(run[name]) for run in runs], peak=0.0, note=what)
            for name, what in WHAT.items()
        ),
    ]


WHAT = {
    "commands": "written by the leader",
    "records": "written by the leader, each with the commands of its step",
    "answers": "written by the agents",
    "batches": "in which the leader wrote",
    "busy": "CPU seconds of the leader",
}


async def rolled_out(instances: int, nodes: int) -> dict[str, float]:
    """One rollout, from the put of the blueprint to the record that it is complete."""
    async with playground() as on:
        await on.register(nodes_named(nodes), REGISTRATION)
        async with serving(on) as agents:
            with node_process(on, "leader", "--capacity", "0") as process:
                blueprint: dict[str, Any] = {"instances": instances, "min_healthy": MIN_HEALTHY, "drain_delay": 0}
                await _put(on, {**blueprint, "env": {"LEVEL": "old"}})
                await eventually(lambda: agents.all_are(instances), 120)
                await anyio.sleep(2 * MIN_HEALTHY)
                ((_, template), *_) = agents.states.values()
                agents.written.clear()
                agents.batches.clear()
                before, busy = time.perf_counter(), _busy(process.pid)
                changed = {**blueprint, "env": {"LEVEL": "new"}, "rollout": {"max_surge": f"{100 // WAVES}%"}}
                await _put(on, changed)
                await eventually(lambda: agents.phase == "complete", 300, "the rollout is complete")
                took = time.perf_counter() - before
                await eventually(lambda: agents.all_are(instances, template), 60, "all are new")
                return {
                    "seconds": took,
                    "batches": len(agents.batches),
                    "busy": _busy(process.pid) - busy,
                    "peak": peak_memory(process.pid),
                    **{name: agents.written[name] for name in ("commands", "records", "answers")},
                }


async def _put(on: Playground, blueprint: dict[str, Any]) -> None:
    await on.raw_puts("blueprints", [(f"{SERVICE}/1.0.0", json.dumps(blueprint).encode())])


def _busy(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
