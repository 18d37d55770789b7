"""What happens in ``cdm demo``, step by step; each does something, and sees whether what must follow does."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from cdm import clock
from cdm.cli.demo.asking import HttpReply
from cdm.cli.demo.playground import TTL, Playground, lives
from cdm.errors import CdmError
from cdm.model.artifact import NodeId, Service, node_id
from cdm.model.keys import BlueprintKey, SliceKey
from cdm.model.record import RolloutPhase
from cdm.model.slice import SliceState, SliceValue
from cdm.store.wire import dump

SERVICE = Service("org.example", "slice")
OLD, NEW, BAD = (SERVICE.version(version) for version in ("1.0.0", "1.1.0", "1.2.0"))
NODES = [node_id(f"node-{number}") for number in (1, 2, 3)]
PATIENCE = 10.0
"""Seconds that a step may take."""

BLUEPRINT = json.dumps({"instances": 3, "min_healthy": 0.5, "drain_delay": 1})
"""With times shorter than the defaults, to keep the demo short."""
PUSH = f"cdm artifact push {OLD} web.py --manifest web.toml"
PUT = f"nats kv put blueprints {OLD.group}/{OLD.name}/{OLD.version} '{BLUEPRINT}'"
SCALE_UP, SCALE_DOWN, STOP = f"cdm scale {OLD} 5", f"cdm scale {OLD} 3", f"cdm scale {NEW} 0"
RELEASE = f"cdm deploy {NEW} web.py --manifest web.toml --canary 33"
RELEASE_BAD = f"cdm deploy {BAD} bad.py --manifest web.toml --canary 33"


class Script:
    """The steps, in order. Each does something, waits for what must follow, and returns what it saw."""

    def __init__(self, ground: Playground) -> None:
        self.ground = ground
        self.serving: dict[SliceKey, HttpReply] = {}
        """What replied at the end of the last step."""
        self.dead: NodeId | None = None
        self.counted = 0
        """Requests that a step has told of."""
        self.artifact = OLD
        """What is in force."""
        self.steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("Start three nodes; one is elected", self.elect),
            (PUSH, self.push),
            (PUT, self.publish),
            (SCALE_UP, self.scale_up),
            (SCALE_DOWN, self.scale_down),
            (RELEASE, self.release),
            (RELEASE_BAD, self.release_bad),
            ("kill -9 one slice's process", self.kill_slice),
            ("kill -9 the leading node and its keeper, as when a machine dies", self.kill_leader),
            ("What ran on the dead node runs elsewhere", self.replace_dead),
            ("Delete one slice's key by hand, and add another", self.correct_drift),
            (STOP, self.stop),
        ]

    @property
    def steps_to_stay(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        """Those after which something still runs."""
        return self.steps[:-1]

    async def bring_back(self) -> None:
        """Start the node that was killed once more, and wait until it is there, with its keeper."""
        if (node := self.dead) is not None:
            ground = self.ground
            ground.start_node(node)

            def is_there() -> bool:
                return self._complete() and len(ground.pids_of(node)) > 1

            await ground.until(f"{node} has not come back", is_there, PATIENCE)

    async def elect(self) -> str:
        """Three nodes register, and one of them leads."""
        ground = self.ground
        for node in NODES:
            ground.start_node(node)
        await ground.until("no leader, or not all nodes registered", self._complete, PATIENCE)
        assert ground.lease is not None
        return f"{ground.lease.node} leads term {ground.lease.term}; registered: {', '.join(sorted(ground.registered))}"

    async def push(self) -> str:
        """A small web service is stored."""
        return await self.ground.type(PUSH)

    async def publish(self) -> str:
        """Three instances, one on each node, and all of them reply."""
        await self.ground.buckets["blueprints"].put(BlueprintKey(OLD), BLUEPRINT.encode())
        await self._serve(3)
        self._check([*self.serving] == [SliceKey(node, OLD) for node in NODES], "not one instance on each node")
        loads = [put for put in self.ground.commands if put.value.state is SliceState.LOAD]
        self._check(len(loads) == 3, f"{len(loads)} LOAD commands instead of 3")
        self._check(all(put.value.term == self._term for put in loads), "a LOAD has another term")
        self.ground.caller.begin()
        return f"3 LOADs of term {self._term}; they reply:\n{_lines(self.serving.values())}"

    async def scale_up(self) -> str:
        """Two more, and the three stay where they are."""
        before = self.serving
        await self.ground.type(SCALE_UP)
        await self._serve(5)
        spread = sorted(Counter(key.node for key in self.serving).values(), reverse=True)
        self._check(before.items() <= self.serving.items(), "an instance moved, or was started again")
        self._check(spread == [2, 2, 1], f"spread {spread} instead of 2+2+1")
        more = [reply for key, reply in self.serving.items() if key not in before]
        return f"spread 2+2+1; {self._asked()}; 2 more reply:\n{_lines(more)}"

    async def scale_down(self) -> str:
        """Exactly two are unloaded, once nobody sends them requests any more."""
        before, mark = self.serving, len(self.ground.commands)
        await self.ground.type(SCALE_DOWN)
        await self._serve(3)
        commands = self.ground.commands[mark:]
        self._check(
            len(commands) == 2 and all(put.value.state is SliceState.UNLOAD for put in commands),
            "not exactly two UNLOAD commands",
        )
        self._check(self.serving.items() <= before.items(), "an instance moved, or was started again")
        await self._gone(before[put.key] for put in commands)
        return f"no longer running: {', '.join(_name(put.key) for put in commands)}; {self._asked()}"

    async def release(self) -> str:
        """A new version takes over: one instance first, then all."""
        ground = self.ground
        await ground.type(RELEASE)
        await ground.until("the rollout is not complete", partial(self._is, RolloutPhase.COMPLETE), PATIENCE)
        self.artifact = NEW
        await self._serve(3)
        second = next((put for put in ground.rollouts if put.value.step == 1), None)
        loads = [put for put in ground.commands if put.key.artifact == NEW]
        first = [put for put in loads if second is not None and put.revision < second.revision]
        self._check(len(first) == 1, f"{len(first)} new instances at first instead of 1")
        asked, new = self._asked(), ground.caller.answers[NEW.version]
        self._check(new > 0, f"{NEW.version} was never asked")
        asked += f"; {NEW.version} replied to {new} of them"
        return f"one instance first, then all; {asked}:\n{_lines(self.serving.values())}"

    async def release_bad(self) -> str:
        """A version that does not start is taken back by itself, and nobody who asks the service notices."""
        ground, before, mark = self.ground, self.serving, len(self.ground.rollouts)
        await ground.type(RELEASE_BAD, code=3)
        await ground.until("the rollout is not reverted", partial(self._is, RolloutPhase.REVERTED), PATIENCE)
        await self._serve(3)
        self._check(self.serving == before, "an instance of the good version moved, or was started again")
        asked = self._asked()
        await ground.caller.stop()
        began, ended = ground.rollouts[mark], ground.rollouts[-1]
        return (
            f"taken back by itself after {ended.at - began.at:.1f} s, exit code 3: {ended.value.reason}\n"
            f"the instances of {NEW.version} run on as they were; {asked}"
        )

    async def kill_slice(self) -> str:
        """The node restarts it; nothing else changes."""
        before, mark = self.serving, len(self.ground.commands)
        key, old = next(iter(before.items()))
        os.kill(old.pid, signal.SIGKILL)
        await self._gone([old], listens=True)
        await self._serve(3)
        new = self.serving[key]
        self._check(before.keys() == self.serving.keys(), "an instance moved")
        self._check(len(self.ground.commands) == mark, "the leader sent a command")
        return f"{old.slice} is restarted, pid {old.pid} → {new.pid}"

    async def kill_leader(self) -> str:
        """Another node leads a higher term, long before the lease ends; no program outlives its keeper."""
        ground, old = self.ground, self.ground.lease
        if old is None:
            raise CdmError("nobody leads")
        lost = [reply for key, reply in self.serving.items() if key.node == old.node]
        self._check(bool(lost), f"no slice on {old.node}")
        began = clock.now()
        ground.kill_node(old.node)
        self.dead = old.node
        took = await ground.until(
            "no new leader", lambda: ground.lease is not None and ground.lease.term > old.term, TTL + 2
        )
        await self._gone(lost)
        gone = clock.now() - began
        assert ground.lease is not None
        led = f"{ground.lease.node} leads term {ground.lease.term} after {took * 1000:.0f} ms"
        return f"{led}; what {old.node} ran is gone after {gone * 1000:.0f} ms"

    async def replace_dead(self) -> str:
        """After its heartbeat TTL the dead node's slices are replaced and its keys deleted."""
        ground, dead, before = self.ground, self.dead, self.serving
        await ground.until(
            "the dead node's registration did not expire", lambda: dead not in ground.registered, TTL + 2
        )
        await ground.until(
            f"slices are still on {dead}", lambda: all(put.key.node != dead for put in ground.slices), PATIENCE
        )
        await self._serve(3)
        stayed = {key: reply for key, reply in before.items() if key.node != dead}
        self._check(stayed.items() <= self.serving.items(), "a healthy instance moved")
        new = [reply for key, reply in self.serving.items() if key not in stayed]
        return f"{dead} is gone; what it ran runs elsewhere:\n{_lines(new)}"

    async def correct_drift(self) -> str:
        """A slice without a key is stopped; the leader adds what is missing and removes what is surplus."""
        ground, slices = self.ground, self.ground.buckets["slices"]
        lost, old = next(iter(self.serving.items()))
        extra = SliceKey(lost.node, self.artifact, 7)
        mark = len(ground.commands)
        await slices.delete(lost)
        await ground.until("no LOAD after a slice was deleted", lambda: len(ground.commands) > mark, PATIENCE)
        await self._serve(3)
        await self._gone([old], listens=True)
        mark = len(ground.commands)
        await slices.put(extra, dump(SliceValue(SliceState.ACTIVE, self._term)))
        await ground.until("the extra slice was not unloaded", lambda: len(ground.commands) > mark, PATIENCE)
        await self._serve(3)
        self._check(len(ground.commands) == mark + 1, "more than one command for one surplus slice")
        unloaded = ground.commands[mark].key
        return f"deleted {lost}: stopped, and loaded again; added {extra}: {unloaded} unloaded; exactly 3 processes run"

    async def stop(self) -> str:
        """No instances."""
        await self.ground.type(STOP)
        await self.ground.until("slices are left", lambda: not self.ground.slices, PATIENCE)
        await self._gone(self.serving.values())
        self._check(not self.ground.programs(), "a program still runs")
        return "no slice is left, no process runs, nothing listens"

    @property
    def _term(self) -> int:
        return self.ground.lease.term if self.ground.lease else 0

    def _complete(self) -> bool:
        return self.ground.lease is not None and self.ground.registered == set(NODES)

    def _is(self, phase: RolloutPhase) -> bool:
        """Whether the rollout that began last is doing this."""
        return bool(self.ground.rollouts) and self.ground.rollouts[-1].value.phase is phase

    def _asked(self) -> str:
        """How many requests the service was asked since the last time, of which none may have failed."""
        caller = self.ground.caller
        asked, self.counted = caller.asked - self.counted, caller.asked
        if caller.failures:
            raise CdmError(f"{len(caller.failures)} of {caller.asked} requests failed: {caller.failures[0]}")
        return f"{asked} requests meanwhile, 0 failed"

    async def _serve(self, count: int) -> None:
        """Wait until so many slices are ACTIVE and reply under their own names, and nothing else runs."""
        ground = self.ground
        group = partial(ground.cluster.group, self.artifact)
        await ground.until(
            f"not exactly {count} slices, all ACTIVE",
            lambda: len(group().slices) == count == group().active,
            PATIENCE,
        )

        async def served() -> bool:
            replies = {reply.slice: reply for reply in await ground.replies()}
            keys = [put.key for put in ground.slices]
            self.serving = {key: replies[name] for key in keys if (name := _name(key)) in replies}
            pids = {reply.pid for reply in self.serving.values()}
            return len(self.serving) == count == len(keys) and pids == ground.programs()

        await ground.wait_until(f"not exactly {count} processes, all replying", served, PATIENCE)

    async def _gone(self, replies: Iterable[HttpReply], *, listens: bool = False) -> None:
        """Wait until these processes have ended, and, unless ``listens``, nothing listens on their ports."""

        async def gone() -> bool:
            if any(lives(reply.pid) for reply in old):
                return False
            return listens or all([await self.ground.ask(reply.port) is None for reply in old])

        old = list(replies)
        await self.ground.wait_until("a process still runs, or something listens on its port", gone, PATIENCE)

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            raise CdmError(problem)


def _name(key: SliceKey) -> str:
    """What a slice calls itself."""
    return str(key).removeprefix("slices/")


def _lines(replies: Iterable[HttpReply]) -> str:
    return "\n".join(f"  {reply.url}  {reply.slice}, pid {reply.pid}" for reply in replies)
