"""A cluster of real ``cdm node`` processes that releases a web service, recorded from its first message on.

Managers and agents are processes of their own, so that a leader can be killed without what it runs.
"""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import anyio
from nats.aio.msg import Msg

from cdm.model.artifact import Artifact
from cdm.model.manifest import Http, Manifest, Readiness, Restart
from cdm.store.bucket import buckets
from tests.containers.recorder import Recorder, recording
from tests.containers.rollout_auditor import Bounds, Rollouts
from tests.containers.rollout_replay import Leg
from tests.harness.probing import WEB_SLICE, Probed, Probing, endpoints, probing
from tests.harness.processes import Process, Processes, node_processes
from tests.harness.servers import Addressed, NatsServer
from tests.harness.serving import Yard, yard
from tests.harness.store import connected
from tests.harness.waiting import SLACK, TTL, eventually
from tests.harness.wire import Raw, artifact_of

SERVICE = "g/web"
"""As in keys."""
MIN_HEALTHY = 1.0
DRAIN_DELAY = 5.0
TOLD = 0.5 + SLACK
"""Seconds within which a node tells of a crash; on a noisy machine it may take some more."""
LISTED = 0.5
"""Seconds within which whoever asks has heard of it then."""


class Site:
    """The cluster, and a service that is released there. Made by `site`."""

    def __init__(
        self,
        server: Addressed,
        ground: Yard,
        recorder: Recorder,
        nodes: Processes,
        folder: Path,
        service: str = SERVICE,
    ) -> None:
        self.server = server
        self.ground = ground
        self.recorder = recorder
        self.nodes = nodes
        self.folder = folder
        self.service = service
        """As in keys."""
        self.wanted = 3
        self.ways: dict[str, str] = {}
        """Where nodes find the server that do not find it where all do."""
        self.older: set[str] = set()
        """Nodes of an older version, which is in ``library``."""
        self.library: Path | None = None
        self._leading = ""

    @property
    def user(self) -> Raw:
        """Somebody with nothing but a NATS client."""
        return self.ground.user

    def beside(self, name: str) -> Site:
        """Another service on the same cluster."""
        folder = self.folder / name
        folder.mkdir()
        return Site(self.server, self.ground, self.recorder, self.nodes, folder, f"g/{name}")

    # What an operator does.

    def start(self, name: str, *options: str) -> Process:
        """Start a node: ``m…`` is a manager, all others are agents."""
        library, url = self.library if name in self.older else None, self.ways.get(name, "")
        if name.startswith("m"):
            return self.nodes.start(name, "--role", "manager", *options, library=library, url=url)
        own = ("--runtime", "process", "--folder", str(self.folder / f"of-{name}"))
        return self.nodes.start(name, "--role", "agent", *own, *options, library=library, url=url)

    async def push(
        self,
        version: str,
        env: Mapping[str, str] = MappingProxyType({}),
        *,
        force: bool = False,
        restart: Restart | None = None,
        patience: float = 20,
        remark: str = "",
        port: int | Literal["auto"] = "auto",
    ) -> None:
        """Push the web service under a version.

        Args:
            version: under which.
            env: variables in its manifest.
            force: over what has this version.
            restart: what is done when it ends.
            patience: seconds within which it has to be ready.
            remark: a line that makes its content another one.
            port: a fixed one, if not any.
        """
        check = Readiness(check=Http(), interval=0.1, timeout=patience)
        manifest = Manifest(port=port, readiness=check, stop_grace=5, env=dict(env), restart=restart or Restart())
        group, _, name = self.service.partition("/")
        source = self.folder / "web_slice.py"
        source.write_text(f"{WEB_SLICE.read_text()}# {remark}\n")
        await self.ground.push_file(Artifact(group, name, version), source, manifest, force=force)

    async def put(self, version: str, **fields: Any) -> int:
        """Put the blueprint of a version."""
        own: dict[str, Any] = {"instances": self.wanted, "min_healthy": MIN_HEALTHY, "drain_delay": DRAIN_DELAY}
        return await self.user.stubborn("blueprints", f"{self.service}/{version}", {**own, **fields})

    async def release(self, version: str, **fields: Any) -> None:
        """Push and put a version, and wait until it serves."""
        await self.push(version)
        await self.put(version, **fields)
        await self.serves(version)

    # How it stands.

    def _ours(self, key: str) -> bool:
        return artifact_of(key).startswith(f"{self.service}/")

    async def serves(self, version: str, within: float = 25) -> None:
        """Wait until all instances are of this version, wanted ones and ACTIVE, and its status is Ready."""

        async def served() -> Any:
            states = {key: state for key, state in (await self.user.slices()).items() if self._ours(key)}
            all_there = [artifact_of(key) for key in states] == [f"{self.service}/{version}"] * self.wanted
            status = await self.user.status(f"{self.service}/{version}")
            if all_there and set(states.values()) <= {"ACTIVE"} and status.get("condition") == "Ready":
                return status
            last.append((states, status))
            return None

        last: list[Any] = []
        try:
            await eventually(served, within, f"{version} serves", pause=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {last[-1]}") from None

    async def status(self, version: str) -> dict[str, Any]:
        """What the leader says of a version."""
        return await self.user.status(f"{self.service}/{version}")

    @property
    def legs(self) -> list[Leg]:
        """What the record said so far."""
        return self.rollouts().legs

    async def reaches(self, phase: str, within: float = 25, step: int | None = None, after: float = 0.0) -> Leg:
        """Wait until the record says so, in a record that was stored after a moment."""

        def reached() -> Leg | None:
            legs = [leg for leg in self.legs if leg.entry.time >= after]
            at = [leg for leg in legs if leg.phase == phase and (step is None or leg.step == step)]
            return at[-1] if at else None

        try:
            found = await eventually(reached, within, f"the rollout is {phase}", pause=0.1)
        except AssertionError as error:
            told = [(leg.phase, leg.step, leg.entry.fields.get("reason", "")) for leg in self.legs]
            raise AssertionError(f"{error}; the record said {told}; the slices: {await self.user.slices()}") from None
        assert found is not None
        return found

    async def stays(self, phase: str, seconds: float) -> None:
        """The record says so for so long."""
        await anyio.sleep(seconds)
        assert self.legs[-1].phase == phase, [(leg.phase, leg.step) for leg in self.legs]

    # Whoever asks and whoever judges.

    def probing(self) -> AbstractAsyncContextManager[Probing]:
        """A prober of the service."""
        return probing(self.folder, endpoints(self.service.replace("/", ":"), self.server.url), within=20)

    def rollouts(self, **bounds: Any) -> Rollouts:
        """What was recorded up to now, for judging."""
        own = Bounds(self.service, self.wanted, min_healthy=MIN_HEALTHY)._replace(**bounds)
        return Rollouts(self.recorder.entries("slices"), self.recorder.entries("nodes"), own)

    async def judged(self, **bounds: Any) -> Rollouts:
        """Everything that was promised held."""
        history = await self.recorder.complete(self.user)
        found = self.rollouts(**bounds)
        told = [*history.holes(), *history.terms(), *history.fences(), *found.violations()]
        assert not told, "\n".join(["the auditor found:", *told, "in this:", *self.story()])
        return found

    def story(self) -> list[str]:
        """What was stored of the service, line by line, for the one who reads of a failure."""
        found = []
        for entry in self.recorder.entries("slices"):
            if entry.key == f"_rollout.{self.service}" or self._ours(entry.key):
                shown = {name: value for name, value in entry.fields.items() if name in _TOLD}
                found.append(f"{entry.time:.2f} #{entry.sequence % 10_000} {entry.key} {shown or 'gone'}")
        return found

    def flawless(self, found: Probed, least: int = 20) -> None:
        """No request failed but those that met an instance as it crashed, before anybody could know."""
        crashes = [
            (entry.key.partition(".")[0], entry.time)
            for entry in self.recorder.entries("slices")
            if self._ours(entry.key)
            and entry.fields.get("state") in ("ACTIVATING", "FAILED")
            and entry.fields.get("reason")
        ]
        inexcusable = [
            failure
            for failure in found.failures
            if not any(
                f" on {node} " in failure["to"] and time - TOLD <= failure["time"] <= time + TOLD + LISTED
                for node, time in crashes
            )
        ]
        found._replace(failures=inexcusable).flawless(least)

    # What befalls it.

    @asynccontextmanager
    async def killing(self, moment: Callable[[str, dict[str, Any]], object]) -> AsyncIterator[list[object]]:
        """Kill the leader, as a power cut would, whenever something new happens, and start it again at once.

        Args:
            moment: names what happens when a key is written, by its name and its value; None or empty: nothing does.
                Each is struck at once only.

        Yields the moments that were struck.
        """
        struck: list[object] = []
        work: deque[str] = deque()
        fell = anyio.Event()

        async def look(message: Msg) -> None:
            nonlocal fell
            key = message.subject.removeprefix("audit.slices.")
            value = json.loads(message.data) if message.data else {}
            if key == "_leader":
                self._leading = value.get("node", "")
            name = moment(key, value) if key.endswith(self.service) or self._ours(key) else None
            process = self.nodes.all.get(self._leading)
            if name and name not in struck and process is not None and process.code is None:
                process.send(signal.SIGKILL)
                struck.append(name)
                work.append(self._leading)
                fell.set()

        async def revive() -> None:
            nonlocal fell
            while True:
                await fell.wait()
                fell = anyio.Event()
                while work:
                    self.start(work.popleft())

        self._leading = str((await self.user.lease())["node"])
        subscription = await self.user.client.subscribe("audit.slices.>", cb=look)
        await self.user.client.flush()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(revive)
            try:
                yield struck
            finally:
                await subscription.unsubscribe()
                tasks.cancel_scope.cancel()


_TOLD = ("state", "phase", "step", "weights", "term", "reason", "restarts", "after")


@asynccontextmanager
async def site(
    server: NatsServer,
    folder: Path,
    managers: Sequence[str] = ("m1", "m2"),
    agents: Sequence[str] = ("a1", "a2"),
    *,
    node_ttl: float = 10,
    lease_ttl: float = TTL,
    older: Sequence[str] = (),
    library: Path | None = None,
    ways: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Site]:
    """A cluster that is up, and has nothing to do; nothing of it is left afterwards.

    Args:
        server: for it.
        folder: for it.
        managers: their names.
        agents: their names.
        node_ttl: seconds.
        lease_ttl: likewise; a leader that is killed is replaced before that, one that waits for its turn is not.
        older: the nodes that are of an older version.
        library: where that can be imported from.
        ways: where nodes find the server that do not find it where all do.
    """
    async with AsyncExitStack() as stack:
        ground = await stack.enter_async_context(yard(server, folder))
        async with connected(server) as connection:
            for bucket in buckets(connection).values():
                await bucket.ensure(create=True)
        recorder = await stack.enter_async_context(recording(ground.user, [server.url]))
        nodes = stack.enter_context(node_processes(server, folder, node_ttl, lease_ttl))
        made = Site(server, ground, recorder, nodes, folder)
        made.older, made.library, made.ways = set(older), library, dict(ways)
        for name in (*managers, *agents):
            made.start(name)

        async def up() -> bool:
            nodes.unharmed()
            return {*managers, *agents} <= set(await ground.user.registrations()) and bool(await ground.user.lease())

        await eventually(up, 30, "all nodes are registered, and one leads", pause=0.1)
        yield made
