"""The part of a node for its own slices: it mirrors their keys and no others.

With the runtime ``external`` somebody else's agent obeys the commands, and `Serving` only keeps what the keys say; with
any other runtime `Running` has an agent of ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from msgspec.structs import replace

from cdm.agent.agent import Agent
from cdm.agent.own_slices import SENT, OwnSlices, Unreadable
from cdm.agent.terms import Terms
from cdm.artifacts.cache import Cache
from cdm.artifacts.repository import Artifacts
from cdm.dispatch.messages import Connected, Disconnected
from cdm.dispatch.router import receiver
from cdm.errors import UsageError
from cdm.log import Log
from cdm.model.keys import encode_node
from cdm.model.node import GIVES_SECRETS, MANIFEST_INSIDE, RUNS_SIGNED, Role, Vitals
from cdm.node.folder import ARTIFACTS, RUNTIME, Folder, chosen_folder
from cdm.node.holders import forget_holders, note_holder
from cdm.node.identity import identity_of
from cdm.node.part import Ground, Part
from cdm.output.service import LogService
from cdm.runtimes import Secrets, runtime_named
from cdm.runtimes.run_as import Same

log = Log("cdm.node")

KEPT_LESS = 1.0
"""Seconds before the end of the node's TTL at which slices are stopped that it has left."""


class Serving(Part):
    """The node's own slices, run by somebody else."""

    sends = SENT

    def __init__(self, ground: Ground) -> None:
        node = ground.settings.node
        self.own = OwnSlices(node)
        # This node's keys and no others: a permission can be written for them.
        self.mirrors = {"slices": f"{encode_node(node)}.>"}
        # Where one router serves the manager too, that tells of them.
        self._unreadable = (Unreadable(),) if ground.settings.role is not Role.ALL else ()
        self.receivers = (self.own, *self._unreadable)

    @property
    def slices(self) -> int:
        """How many keys of slices there are."""
        return len(self.own.slices)

    @property
    def figures(self) -> Mapping[str, object]:
        """How many slices there are."""
        return {"slices": self.slices}


class Running(Serving):
    """The node's own slices, run by a runtime of ours."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        settings = ground.settings
        self._keeps = settings.keep
        self._incarnation, self._ttl = ground.incarnation, settings.node_ttl
        self._settled = False
        folder = chosen_folder(settings.folder, settings.prefix, settings.node)
        self._folder = Folder(folder, shared=not isinstance(settings.run_as, Same))
        artifacts = Artifacts(ground.connection)
        cache = Cache(folder / ARTIFACTS, artifacts, settings.cache_bytes)
        self._cache = cache
        secrets = Secrets.of(settings.node, settings.secrets, os.environ, settings.access.files)
        trust = settings.trust and settings.trust.absolute()
        self.agent = Agent(
            settings.node,
            ground.buckets["slices"],
            runtime_named(settings.runtime),
            folder / RUNTIME,
            cache,
            settings.node_ttl,
            address=ground.address,
            terms=Terms(settings.enforce_limits, settings.run_as, secrets, trust, outlive(settings.node_ttl)),
        )
        self._runtime = runtime = self.agent.runtime
        gives = runtime.gives_secrets and secrets.folder is not None
        optional = ((GIVES_SECRETS, gives), (RUNS_SIGNED, trust is not None))
        self.features = (MANIFEST_INSIDE, *(feature for feature, there in optional if there))
        self.logs = LogService(ground.connection, settings.node, runtime if runtime.logs else None)
        self.tallies = (self.logs.tally,)
        self.receivers = (self.agent, self, *self._unreadable)
        self.work = (self.agent.run, self.logs.run, self._folder.watch)

    @property
    def slices(self) -> int:
        """How many slices the agent has to do with."""
        return self.agent.slices

    def vitals(self, of_node: Vitals) -> Vitals:
        """Add what room there is for the folder, and how long the slices may take to stop."""
        free, size = self._folder.space
        needs = 0.0 if self._keeps else (of_node.stop_needs or 0.0) + self.agent.stopping_takes
        return replace(of_node, disk_free=free, disk_size=size, stop_needs=needs)

    async def check(self) -> None:
        """Whether the runtime can run slices on this machine. Raises as `Runtime.check_machine`."""
        await self._runtime.check_machine()

    async def take_over(self) -> None:
        """Take the folder, and find or end what an earlier process of this node left running.

        What is found goes on for as long as NATS is away, as the slices of a process do that runs meanwhile.

        Raises:
            FolderTaken: another living process uses this node's folder.
            UsageError: the folder cannot be used.
        """
        try:
            # First: what another node downloads and runs would be mistaken for a dead one's.
            self._folder.take()
            self.agent.lives_in(identity_of(self._folder.path))
            await self._cache.start()
            await self._runtime.start()
        except OSError as error:
            problem = error.strerror or error
            raise UsageError(
                f"folder {self._folder.path} cannot be used: {problem}; choose another --folder (CDM_FOLDER)"
            ) from None

    async def prepare(self) -> None:
        """Have the folder remember this process, which may register from now on."""
        self._note()

    def heard(self, at: float) -> None:
        """Slices that must not run twice may go on."""
        self.agent.heard(at)
        self._note_settled()

    @receiver
    def on_connection(self, _change: Connected | Disconnected) -> None:
        """The agent may know all its slices by now."""
        self._note_settled()

    def _note_settled(self) -> None:
        """Have it known in the folder whether the node may be given up before its TTL is over, should it die."""
        if (settled := self.agent.is_settled) is self._settled:
            return
        self._settled = settled
        self._note()

    def _note(self) -> None:
        """Have the folder know of this process: also a full disk is no reason not to run."""
        try:
            note_holder(self._folder.path, self._incarnation, self._ttl, settled=self._settled)
        except OSError as error:
            log.warning("cdm node leave will not know of this process", reason=str(error))

    def succeeds(self, until: float) -> None:
        """Slices that must not run twice may run where those processes began them."""
        self.agent.succeeds(until)

    @property
    def leaves_doubt(self) -> bool:
        """Whether one of those may still run there."""
        return self.agent.leaves_doubt

    def reset(self, reason: str) -> None:
        """The revisions that the agent knows are void."""
        self.agent.forget()

    async def resign(self) -> None:
        """Stop the slices that must not run twice: once the registration is gone they are started elsewhere.

        From now on all end with the process, also where it is killed before they are stopped.
        """
        self._runtime.end_with_node()
        await self.agent.resign()

    async def withdraw(self) -> None:
        """Tell that the slices are gone: where this is the last node, nobody else does."""
        await self.agent.withdraw()
        forget_holders(self._folder.path)

    async def close(self) -> None:
        """Stop everything, and then free the folder."""
        try:
            await self._runtime.close()
        finally:
            self._folder.free()

    async def detach(self) -> None:
        """Leave everything running, and free the folder."""
        try:
            await self._runtime.detach()
        finally:
            self._folder.free()


def outlive(ttl: float) -> float:
    """Seconds without an accepted heartbeat that slices have without a process of the node.

    They are stopped a little before others may start them, and within their grace.

    Args:
        ttl: the node's.
    """
    return max(ttl - KEPT_LESS, ttl / 2)
