"""What happens in ``cdm demo``, step by step; each does something, and sees whether what must follow does."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path

from cdm import clock
from cdm.artifacts.entry import completed
from cdm.artifacts.packing import pack
from cdm.artifacts.repository import Artifacts
from cdm.cli.demo import web
from cdm.cli.demo.asking import HttpReply
from cdm.cli.demo.playground import TTL, Playground, lives
from cdm.errors import CdmError
from cdm.model.artifact import Artifact, NodeId, Service, node_id
from cdm.model.keys import BlueprintKey, SliceKey
from cdm.model.manifest import Http, Manifest, Readiness
from cdm.model.record import RolloutPhase
from cdm.model.slice import SliceState, SliceValue
from cdm.store.wire import dump

SERVICE = Service("org.example", "slice")
OLD, NEW, BROKEN = (SERVICE.version(version) for version in ("1.0.0", "1.1.0", "1.2.0"))
MANIFEST = Manifest(port="auto", readiness=Readiness(Http(), interval=0.05))
NODES = [node_id(f"node-{number}") for number in (1, 2, 3)]
SETTINGS = {"min_healthy": 0.5, "drain_delay": 1}
"""Shorter than the defaults, to keep the demo short."""
PATIENCE = 10.0
"""Seconds that a step may take."""
ROLLOUT_PATIENCE = 30.0


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
        put = f"nats kv put blueprints {_path(OLD)}"
        canary = {"from": OLD.version, "kind": "canary", "steps": [{"weight": 33}]}
        self.steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("Start three nodes; one is elected", self.elect),
            (f"cdm artifact push {OLD} web.py", partial(self.push, OLD, Path(web.__file__))),
            (f"{put} '{_blueprint(3)}'", self.publish),
            ("… the same with 5 instances", self.scale_up),
            ("… with 3 instances", self.scale_down),
            (f"{put.replace(OLD.version, NEW.version)} '{_blueprint(3, rollout=canary)}'", self.canary),
            ("… put 1.2.0, which does not start, in place of 1.1.0", self.bad_version),
            ("kill -9 one slice's process", self.kill_slice),
            ("kill -9 the leading node", self.kill_leader),
            ("What ran on the dead node runs elsewhere", self.replace_dead),
            ("Delete one slice's key by hand, and add another", self.correct_drift),
            (f"nats kv del -f blueprints {_path(NEW)}", self.remove),
        ]

    async def elect(self) -> str:
        """Three nodes register, and one of them leads."""
        ground = self.ground
        for node in NODES:
            ground.start_node(node)
        await ground.until("no leader, or not all nodes registered", self._complete, PATIENCE)
        assert ground.lease is not None
        return f"{ground.lease.node} leads term {ground.lease.term}; registered: {', '.join(sorted(ground.registered))}"

    async def push(self, artifact: Artifact, path: Path) -> str:
        """A program is stored."""
        artifacts = Artifacts(self.ground.connection)
        await artifacts.ensure(create=True)
        with tempfile.TemporaryDirectory(prefix="cdm-push-") as folder:
            packed = pack(path, Path(folder))
            content = packed.content(completed(MANIFEST, packed.tree))
            await artifacts.push(artifact, packed.path, content)
        stored = await artifacts.describe(artifact)
        self._check(stored.content == content, "the store holds something else")
        return f"a web service of {content.size} bytes, sha256 {content.sha256[:12]}"

    async def publish(self) -> str:
        """Three instances, one on each node, and all of them reply."""
        await self._put(3)
        await self._serve(3)
        self._check([*self.serving] == [SliceKey(node, OLD) for node in NODES], "not one instance on each node")
        loads = [put for put in self.ground.commands if put.value.state is SliceState.LOAD]
        self._check(len(loads) == 3, f"{len(loads)} LOAD commands instead of 3")
        self._check(all(put.value.term == self._term for put in loads), "a LOAD has another term")
        self.ground.caller.begin()
        return f"3 LOADs of term {self._term}; they reply:\n" + "\n".join(map(_line, self.serving.values()))

    async def scale_up(self) -> str:
        """Two more, and the three stay where they are."""
        before = self.serving
        await self._put(5)
        await self._serve(5)
        spread = sorted(Counter(key.node for key in self.serving).values(), reverse=True)
        self._check(before.items() <= self.serving.items(), "an instance moved, or was started again")
        self._check(spread == [2, 2, 1], f"spread {spread} instead of 2+2+1")
        more = [reply for key, reply in self.serving.items() if key not in before]
        return f"spread 2+2+1; {self._asked()}; 2 more reply:\n" + "\n".join(map(_line, more))

    async def scale_down(self) -> str:
        """Exactly two are unloaded, once nobody sends them requests any more."""
        before, mark = self.serving, len(self.ground.commands)
        await self._put(3)
        await self._serve(3)
        commands = self.ground.commands[mark:]
        self._check(
            len(commands) == 2 and all(put.value.state is SliceState.UNLOAD for put in commands),
            "not exactly two UNLOAD commands",
        )
        self._check(self.serving.items() <= before.items(), "an instance moved, or was started again")
        await self._gone(before[put.key] for put in commands)
        return f"no longer running: {', '.join(_name(put.key) for put in commands)}; {self._asked()}"

    async def canary(self) -> str:
        """A new version takes over: one instance first, then all."""
        ground = self.ground
        await self.push(NEW, Path(web.__file__))
        before = ground.caller.answers.copy()
        await self._release(NEW, OLD)
        first = partial(self._reached, NEW, step=1)
        await ground.until("the first new instance did not become healthy", first, ROLLOUT_PATIENCE)
        meanwhile = ground.caller.answers - before
        second = next(put for put in ground.rollouts if put.value.step == 1)
        loads = [put for put in ground.commands if put.key.artifact == NEW and put.revision < second.revision]
        self._check(len(loads) == 1, f"{len(loads)} new instances at first instead of 1")
        complete = partial(self._reached, NEW, RolloutPhase.COMPLETE)
        await ground.until("the new version did not take over", complete, ROLLOUT_PATIENCE)
        self.artifact = NEW
        await self._serve(3)
        share = f"one new instance first, which replied to {meanwhile[NEW.version]} of {meanwhile.total()} requests"
        return f"{share}; then all; {self._asked()}:\n" + "\n".join(map(_line, self.serving.values()))

    async def bad_version(self) -> str:
        """A version that does not start comes to nothing by itself, and nobody notices."""
        ground, before = self.ground, self.serving
        with tempfile.TemporaryDirectory(prefix="cdm-broken-") as folder:
            (path := Path(folder, "broken.py")).write_text("raise SystemExit('broken')\n", encoding="utf-8")
            await self.push(BROKEN, path)
        await self._release(BROKEN, NEW)
        reverted = partial(self._reached, BROKEN, RolloutPhase.REVERTED)
        took = await ground.until("the bad version was not taken back", reverted, ROLLOUT_PATIENCE)
        await self._serve(3)
        self._check(self.serving == before, "an instance of the good version moved, or was started again")
        self._check(not ground.caller.answers[BROKEN.version], "the bad version was asked")
        asked, reason = self._asked(), ground.rollout.reason if ground.rollout else ""
        await ground.caller.stop()
        return f"taken back by itself after {took:.1f} s: {reason}\nthe three of {NEW.version} run on; {asked}"

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
        """Another node leads a higher term, long before the lease ends; no program outlives its node."""
        ground, old = self.ground, self.ground.lease
        if old is None:
            raise CdmError("nobody leads")
        lost = [reply for key, reply in self.serving.items() if key.node == old.node]
        self._check(len(lost) == 1, f"{len(lost)} slices on {old.node} instead of 1")
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
        return f"{dead} is gone; its slice runs elsewhere:\n" + "\n".join(map(_line, new))

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

    async def remove(self) -> str:
        """No blueprint, no instances."""
        await self.ground.buckets["blueprints"].delete(BlueprintKey(self.artifact))
        await self.ground.until("slices are left", lambda: not self.ground.slices, PATIENCE)
        await self._gone(self.serving.values())
        self._check(not self.ground.programs(), "a program still runs")
        return "no slice is left, no process runs, nothing listens; nor do the other versions come back"

    @property
    def _term(self) -> int:
        return self.ground.lease.term if self.ground.lease else 0

    def _complete(self) -> bool:
        return self.ground.lease is not None and self.ground.registered == set(NODES)

    def _reached(self, artifact: Artifact, phase: RolloutPhase | None = None, step: int = 0) -> bool:
        """Whether the rollout to a version has come so far."""
        record = self.ground.rollout
        if record is None or record.target.version != artifact.version:
            return False
        if record.reason and phase is not RolloutPhase.REVERTED:
            raise CdmError(record.reason)
        return record.step >= step and phase in (None, record.phase)

    async def _put(self, instances: int) -> None:
        await self.ground.buckets["blueprints"].put(BlueprintKey(self.artifact), _blueprint(instances).encode())

    async def _release(self, artifact: Artifact, old: Artifact) -> None:
        """Have a version take over from another one, as a canary."""
        rollout = {"from": old.version, "kind": "canary", "steps": [{"weight": 33}]}
        raw = _blueprint(3, rollout=rollout).encode()
        await self.ground.buckets["blueprints"].put(BlueprintKey(artifact), raw)

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


def _line(reply: HttpReply) -> str:
    return f"  {reply.url}  {reply.slice}, pid {reply.pid}"


def _path(artifact: Artifact) -> str:
    """The key of an artifact's blueprint."""
    return f"{artifact.group}/{artifact.name}/{artifact.version}"


def _blueprint(instances: int, **more: object) -> str:
    return json.dumps({"instances": instances, **SETTINGS, **more})
