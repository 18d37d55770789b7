"""Nodes by the thousand in one process: they register, beat, hear and obey as real ones, and run nothing."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import anyio
import anyio.abc
from msgspec.structs import replace

from cdm.agent.own_slices import SENT, Unreadable
from cdm.agent.steps import Do, LocalState, StateReport, next_step
from cdm.dispatch.messages import Connected, Disconnected, ValuePut, ValueRemove
from cdm.dispatch.router import receiver
from cdm.errors import Conflict, StoreError
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey, encode_node
from cdm.model.node import EXTERNAL, PROCESS, Registration, Role, Vitals
from cdm.model.slice import SliceState, SliceValue
from cdm.node.node import ROLES, Node, NodeSettings
from cdm.node.part import Ground, Part
from cdm.node.registration import Presence
from cdm.node.wiring import Wiring
from cdm.store.connection import Access, Connection, connect
from cdm.store.wire import dump
from cdm.wakeup import Wakeup
from tests.harness.waiting import eventually, patience

PER_CONNECTION = 250
"""Nodes that share a connection."""
AT_ONCE = 100
"""Nodes that start at the same time."""
PROBE = "probe"
"""The group of artifacts that are not obeyed: when their LOAD came is noted, and no more."""
RETRY = 0.2
"""Seconds after which a report that was not accepted is made again."""
_DONE = {
    Do.LOAD: LocalState.LOADED,
    Do.ACTIVATE: LocalState.ACTIVE,
    Do.DEACTIVATE: LocalState.LOADED,
    Do.UNLOAD: LocalState.NOTHING,
}


class Account:
    """What simulated nodes did, all together."""

    def __init__(self) -> None:
        self.active = 0
        """Slices that a node reported ACTIVE, and that are so still."""
        self.arrivals: dict[SliceKey, float] = {}
        """When the LOADs of probes came, in seconds since 1970."""
        self.problems: Counter[str] = Counter()
        """What the server did not accept, by kind."""


class Obedience(Part):
    """Obeys the commands under one node's keys: everything succeeds at once.

    Args:
        ground: the node's.
        account: where what it does is noted.
    """

    sends = SENT

    def __init__(self, ground: Ground, account: Account) -> None:
        self.node = ground.settings.node
        self.mirrors = {"slices": f"{encode_node(self.node)}.>"}
        self.receivers = (self, Unreadable())
        self.work = (self._run,)
        self.hearing = False
        self._bucket = ground.buckets["slices"]
        self._account = account
        self._known: dict[SliceKey, tuple[int, SliceValue | None]] = {}
        """Revision and value of each key; None: it is gone, and something is still to be ended."""
        self._local: dict[SliceKey, LocalState] = {}
        self._due: dict[SliceKey, None] = {}
        self._news = Wakeup()

    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        """A command came, or the echo of a report."""
        if put.value.state is SliceState.LOAD and put.key.artifact.group == PROBE:
            self._account.arrivals[put.key] = time.time()
            return
        if (known := self._known.get(put.key)) is None or put.revision > known[0]:
            self._learn(put.key, put.revision, put.value)

    @receiver
    def on_slice_removed(self, remove: ValueRemove[SliceKey, SliceValue]) -> None:
        """What runs under this key must stop."""
        self._learn(remove.key, remove.revision, None)

    @receiver
    def on_connection(self, change: Connected | Disconnected) -> None:
        """Commands can be heard, or not."""
        self.hearing = isinstance(change, Connected)

    @property
    def serves(self) -> bool:
        """Whether any of its slices is ACTIVE."""
        return LocalState.ACTIVE in self._local.values()

    def crash(self) -> None:
        """The node is dead: nothing of it runs."""
        self._account.active -= sum(state is LocalState.ACTIVE for state in self._local.values())

    def _learn(self, key: SliceKey, revision: int, value: SliceValue | None) -> None:
        self._known[key] = revision, value
        self._due[key] = None
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            while self._due:
                key = next(iter(self._due))
                del self._due[key]
                try:
                    while await self._take_step(key):
                        pass
                except Conflict:
                    self._account.problems["conflict"] += 1  # the mirror tells what was written in between
                except StoreError as error:
                    self._account.problems[type(error).__name__] += 1
                    await anyio.sleep(RETRY)
                    self._due[key] = None

    async def _take_step(self, key: SliceKey) -> bool:
        """Take one step; returns whether there may be another."""
        if key not in self._known:
            return False
        revision, value = self._known[key]
        local = self._local.get(key, LocalState.NOTHING)
        match next_step(value.state if value else None, local):
            case Do() as do:
                self._be(key, local, _DONE[do])
            case StateReport(None):
                self._known[key] = await self._bucket.delete(key, expect=revision), None
            case StateReport(SliceState() as state) if value is not None:
                told = replace(value, state=state, loaded=None, after=None, restarts=0)
                written = await self._bucket.put(key, dump(told), expect=revision)
                if written > self._known[key][0]:
                    self._known[key] = written, told
            case _:
                if value is None:
                    self._known.pop(key, None)
                    self._local.pop(key, None)
                return False
        return key in self._known

    def _be(self, key: SliceKey, before: LocalState, after: LocalState) -> None:
        self._local[key] = after
        self._account.active += (after is LocalState.ACTIVE) - (before is LocalState.ACTIVE)


class SimulatedNode:
    """One of them.

    Args:
        settings: of a node of the role `Role.AGENT`.
        connection: shared with others.
        registration: what it says of itself, but for what is its own.
        account: where what it does is noted.
    """

    def __init__(
        self, settings: NodeSettings, connection: Connection, registration: Registration, account: Account
    ) -> None:
        self.node = settings.node
        self.beaten = 0.0
        """When the last heartbeat was sent that is stored, in seconds on `cdm.clock`."""

        def obedience(ground: Ground) -> Obedience:
            return Obedience(ground, account)

        self._wiring = Wiring(settings, connection, ROLES[Role.AGENT]._replace(parts=(obedience,)))
        ground = self._wiring.ground
        self._presence = Presence(
            ground.buckets["nodes"],
            settings.node,
            replace(registration, incarnation=ground.incarnation, address=ground.address()),
            on_beat=self._beat,
            load=lambda: 0.25,
            vitals=lambda: Vitals(round(time.time(), 3), disk_free=10**11, disk_size=10**12, stop_needs=10.0),
        )
        self._scope = anyio.CancelScope()

    @property
    def obedience(self) -> Obedience:
        """What it does about its slices."""
        found = self._wiring.parts[0]
        assert isinstance(found, Obedience)
        return found

    async def run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Be there until crashed; started once it is registered."""
        with self._scope:
            await self._presence.register()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._presence.run)
                for work in self._wiring.work:
                    tasks.start_soon(work)
                task_status.started()

    def crash(self) -> None:
        """Die without a farewell."""
        self._scope.cancel()
        self.obedience.crash()

    def _beat(self, sent: float) -> None:
        self.beaten = sent


class Swarm:
    """Simulated nodes. Made by `swarm`."""

    def __init__(self, nodes: list[SimulatedNode], account: Account | None = None) -> None:
        self.nodes = nodes
        self.account = account or Account()

    @property
    def active(self) -> int:
        """How many slices are ACTIVE."""
        return self.account.active

    def crash(self, doomed: Iterable[SimulatedNode]) -> float:
        """Have some die at once; returns when the last of their registrations ends, less its TTL."""
        gone = {each.node: each for each in doomed}
        for each in gone.values():
            each.crash()
        self.nodes = [each for each in self.nodes if each.node not in gone]
        return max(each.beaten for each in gone.values())

    async def all_beat(self, since: float, within: float) -> float:
        """Wait until each of them was heard that was sent after this; returns when the last of these was sent."""
        await eventually(lambda: all(each.beaten > since for each in self.nodes), within, "all are heard", pause=0.05)
        return max(each.beaten for each in self.nodes)

    async def all_hear(self, within: float) -> None:
        """Wait until each of them hears its commands."""
        await eventually(lambda: all(each.obedience.hearing for each in self.nodes), within, "all hear", pause=0.1)


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Do not look for garbage in the ``with`` block.

    To look through what ten thousand nodes hold takes four seconds, in which none of them hears anything: their
    consumers count as lost, and are made anew. Real ones have a process each.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@asynccontextmanager
async def swarm(urls: tuple[str, ...], names: list[NodeId], ttl: float) -> AsyncIterator[Swarm]:
    """So many nodes, registered, and gone without a farewell at the end of the ``with`` block."""
    account = Account()
    template = NodeSettings(names[0], Access(urls), Role.AGENT, runtime=EXTERNAL, node_ttl=ttl)
    turns = anyio.Semaphore(AT_ONCE)
    made: list[SimulatedNode] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(_garbage_left())
        tasks = await stack.enter_async_context(anyio.create_task_group())

        async def start(each: SimulatedNode) -> None:
            async with turns:
                await tasks.start(each.run)

        for first in range(0, len(names), PER_CONNECTION):
            connection = await stack.enter_async_context(connect(template.access, name="simulated nodes"))
            said = replace(Node(template, connection)._registration(), runtime=PROCESS)
            made += (
                SimulatedNode(replace(template, node=name), connection, said, account)
                for name in names[first : first + PER_CONNECTION]
            )
        with anyio.fail_after(patience(10 + len(names) / 50)):
            async with anyio.create_task_group() as starting:
                for each in made:
                    starting.start_soon(start, each)
        found = Swarm(made, account)
        try:
            await found.all_hear(60.0)
            yield found
        finally:
            for each in made:
                each.crash()
