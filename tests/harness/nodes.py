"""Nodes that run in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from cdm.errors import StoreError
from cdm.manager.active import Active
from cdm.manager.policy import Policy
from cdm.model.artifact import NodeId
from cdm.model.node import EXTERNAL, PROCESS
from cdm.node import node as runtime
from cdm.node.managing import Managing
from cdm.node.node import Node, NodeSettings
from cdm.store.access import API, Access
from tests.harness.proc import end_keepers, left_keepers
from tests.harness.servers import Addressed
from tests.harness.waiting import LEAST, TTL, bounded, eventually, in_time, patience


class Running:
    """A node that runs in this process. Made by `Nodes.start`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.error: BaseException | None = None
        self.ended = anyio.Event()
        self._node: Node | None = None
        self._stop = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def node(self) -> Node:
        """The node itself."""
        assert self._node is not None
        return self._node

    @property
    def managing(self) -> Managing:
        """The node's part in elections and decisions."""
        return self.node.part(Managing)

    @property
    def manages(self) -> bool:
        """Whether the node has a manager."""
        return any(isinstance(part, Managing) for part in self.node.everything)

    @property
    def active(self) -> int:
        """The term in which its manager is Active; 0 where it is not."""
        if self._node is None or self.ended.is_set() or not self.manages:
            return 0
        state = self.managing.manager.state
        return state.term if isinstance(state, Active) else 0

    async def run(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the node to its end and keep the error that ended it."""
        try:
            async with runtime.node(self.settings) as node:
                self._node = node
                task_status.started()
                with self._scope:
                    await node.run(self._stop)
        except Exception as error:  # noqa: BLE001  # whatever it is, the test judges it
            self.error = error
            while isinstance(self.error, BaseExceptionGroup) and len(self.error.exceptions) == 1:
                self.error = self.error.exceptions[0]
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Let it leave in good order."""
        self._stop.set()
        with bounded():
            await self.ended.wait()
        assert self.error is None, repr(self.error)

    async def crash(self) -> None:
        """End it without a farewell: its connection closes, and what it runs ends, as with its machine."""
        if self._node is not None:
            self._node.leave()
        self._scope.cancel()
        with anyio.fail_after(patience(), shield=True):
            await self.ended.wait()


class Nodes:
    """Nodes that run in this process. Made by `nodes_on`."""

    def __init__(self, server: Addressed, tasks: anyio.abc.TaskGroup, api: str, defaults: dict[str, Any]) -> None:
        self._server = server
        self._api = api
        self._tasks = tasks
        self._defaults = defaults
        self.all: dict[str, Running] = {}

    async def start(self, *names: str, **settings: Any) -> None:
        """Start nodes and wait until they are registered, and until whoever leads them knows it."""
        for name in names:
            access = Access(servers=(self._server.url,), api=self._api)
            options: dict[str, Any] = {
                "lease_ttl": TTL,
                "node_ttl": TTL,
                "runtime": EXTERNAL,
                "policy": Policy(settle=0.0),
                **self._defaults,
                **settings,
            }
            running = Running(NodeSettings(NodeId(name), access, **options))
            self.all[name] = running
            await self._tasks.start(running.run)
        await eventually(lambda: all(self.registered(name) for name in names), what=f"{names} are up")
        await self.heard()

    def registered(self, name: str) -> bool:
        """Whether the node has registered; fails where it ended instead."""
        running = self.all[name]
        assert not running.ended.is_set(), repr(running.error)
        return running.node.presence._revision > 0

    def active(self) -> list[Running]:
        """All nodes whose managers are Active."""
        return [running for running in self.all.values() if running.active]

    async def leader(self, above: int = 0, within: float = LEAST, promised: float | None = None) -> Running:
        """The one node that is Active, in a term above the given one; perhaps within a time that is promised."""

        def one() -> Running | None:
            found = [running for running in self.active() if running.active > above]
            return found[0] if len(found) == 1 and len(self.active()) == 1 else None

        what = f"one node is Active in a term above {above}"
        found = await (eventually(one, within, what) if promised is None else in_time(one, promised, what))
        assert found is not None
        return found

    async def heard(self) -> None:
        """Wait until whoever leads knows all that was written so far: what comes later may go past it.

        Each bucket is a stream of its own. A blueprint may be decided on before a cordon that was written earlier.
        """

        async def known() -> bool:
            try:
                for running in self.active():
                    await running.managing.caught_up()
            except StoreError:
                return False  # its server stood still, and it connects anew
            return True

        await eventually(known, what="whoever leads knows all")

    def unharmed(self) -> None:
        """No node ended that was not told to."""
        for name, running in self.all.items():
            assert running.error is None, f"{name}: {running.error!r}"


@asynccontextmanager
async def nodes_on(server: Addressed, api: str = API, **settings: Any) -> AsyncIterator[Nodes]:
    """Nodes in this process, ended with the ``with`` block; ``api`` is where they call JetStream."""
    async with anyio.create_task_group() as tasks:
        nodes = Nodes(server, tasks, api, settings)
        try:
            yield nodes
        finally:
            for running in nodes.all.values():
                await running.crash()
                if running.settings.runtime == PROCESS and running.settings.folder is not None:
                    end_keepers(*left_keepers(running.settings.folder))  # where an error ended it
        tasks.cancel_scope.cancel()
