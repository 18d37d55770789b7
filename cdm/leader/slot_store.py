"""Reads and writes the slots of managers."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cdm.errors import Conflict, InvalidKey, StoreError
from cdm.log import Log
from cdm.model.keys import NODES, SlotKey, slots_of
from cdm.model.node import Slot
from cdm.model.problems import UNREADABLE
from cdm.store.bucket import Bucket
from cdm.store.jetstream import of_leader
from cdm.store.wire import dump

log = Log("cdm.lease")

PATIENCE = 2.0
"""Seconds to wait for an answer."""
GONE_AFTER = 1.0
"""Seconds for which the marker of a slot that was given back stays: the least that the server takes."""


class Slots(NamedTuple):
    """One look at the slots."""

    held: frozenset[int]
    keys: int
    """How many keys the bucket has."""


class SlotStore:
    """The slots in ``nodes``, as one process reads and writes them. Errors are those of `Bucket`.

    Args:
        nodes: the bucket.
        holder: what this process writes.
        ttl: the slots', in seconds.
    """

    def __init__(self, nodes: Bucket, holder: Slot, ttl: float) -> None:
        self._nodes = nodes
        self._holder = holder
        self._ttl = ttl

    async def look(self) -> Slots:
        """Ask the stream's leader which slots are held: one question, whatever the number of nodes."""
        question = {"subjects_filter": self._nodes.subject(slots_of("*"))}
        call = f"STREAM.INFO.{self._nodes.stream}"
        info = of_leader(await self._nodes.connection.api(call, question, PATIENCE), self._nodes.name)
        state, start = info["state"], len(self._nodes.subject(""))
        held = set()
        for subject in state.get("subjects") or ():
            try:
                key = NODES.decode(subject[start:])
            except InvalidKey:
                continue
            if isinstance(key, SlotKey):
                held.add(key.number)
        return Slots(frozenset(held), int(state.get("num_subjects", 0)))

    async def take(self, number: int) -> int:
        """Write a slot where there is none; returns its revision."""
        return await self._put(number, 0, PATIENCE)

    async def renew(self, number: int, revision: int, within: float = PATIENCE) -> int:
        """Write it again, within so many seconds; returns its new revision."""
        return await self._put(number, revision, min(PATIENCE, max(within, 0.01)))

    async def read(self, number: int) -> tuple[Slot | None, int]:
        """What is stored there, and its revision; None: nothing, or what cannot be read."""
        stored = await self._nodes.read(SlotKey(number), timeout=PATIENCE)
        if stored is None or stored.payload is None:
            return None, 0
        try:
            return msgspec.json.decode(stored.payload, type=Slot), stored.revision
        except UNREADABLE:
            return None, stored.revision

    async def give_back(self, number: int, revision: int) -> None:
        """Let another node have it at once; never raises."""
        try:
            try:
                await self._delete(number, revision)
            except Conflict:
                # A renewal was on its way: delete what it wrote, if it is still ours.
                stored, revision = await self.read(number)
                if stored == self._holder:
                    await self._delete(number, revision)
        except StoreError as error:
            log.debug("slot not given back; it expires", slot=number, reason=str(error))

    async def _delete(self, number: int, revision: int) -> None:
        await self._nodes.delete(SlotKey(number), expect=revision, timeout=PATIENCE, marked_for=GONE_AFTER)

    async def _put(self, number: int, expect: int, timeout: float) -> int:
        key, payload = SlotKey(number), dump(self._holder)
        return await self._nodes.put(key, payload, expect=expect, ttl=self._ttl, timeout=timeout)
