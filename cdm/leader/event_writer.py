"""Tells what happened, as events. They are for people: commands go first, and nothing ever waits for an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
from msgspec import Struct

from cdm import clock
from cdm.errors import AccessDenied, BucketMissing, NoResponders, RequestRefused, StoreError, Unsuitable
from cdm.leader.election import Election
from cdm.log import Log
from cdm.manager.events import Teller
from cdm.manager.journal import TELLABLE, Journal, Note
from cdm.model.artifact import Artifact
from cdm.model.event import Event
from cdm.store.events import EventStream
from cdm.wakeup import Wakeup

log = Log("cdm.events")

BATCH = 200
"""Most events that are written at once: so many take some milliseconds to be made."""
PAUSE = 0.05
"""Seconds between two writes."""
TURNS = 20
"""Such pauses for which events let commands go first, each time."""
LAST_TURNS = 10
"""Such pauses for which a leader that stops, and has no successor, tells what happened last."""
RETRY = 1.0
"""Seconds after which what was not answered is written again."""
LONGEST_ERROR = 500
"""Most characters of an error that are logged."""
DROPS_INTERVAL = 10.0
"""Seconds between two times that it is told how many events are missing."""


class Telling(Struct, frozen=True):
    """How events are told.

    Args:
        node: who tells them.
        incarnation: of that node.
        create: whether the stream may be created where it is missing.
        replicas: of a new stream.
        retry: seconds after which a stream is tried again that is missing, or may not be written.
        removed: revisions at which artifacts' blueprints were removed.
        told: told too what is told as events: takes each note, and the server's clock less that of the note.
    """

    node: str
    incarnation: str
    create: bool = True
    replicas: int = 1
    retry: float = 30.0
    removed: Mapping[Artifact, int] = {}
    told: Callable[[Note, float], None] | None = None


class EventWriter:
    """Writes the notes of a journal while this process leads.

    Args:
        stream: where to.
        journal: where they come from.
        ready: set when there are any.
        election: nothing is written while this process does not lead.
        busy: whether commands wait to be decided or written.
        epoch: the server's clock less this node's, in seconds.
        how: what there is to say about it.
    """

    def __init__(
        self,
        stream: EventStream,
        journal: Journal,
        ready: Wakeup,
        election: Election,
        busy: Callable[[], bool],
        epoch: Callable[[], float],
        how: Telling,
    ) -> None:
        self._stream = stream
        self._journal = journal
        self._ready = ready
        self._election = election
        self._busy = busy
        self._epoch = epoch
        self._how = how
        self._teller = Teller(stream.source, how.removed)
        self._writing = False
        """Whether something that was taken from the journal may not be stored yet."""
        self._missing = 0
        """Events that were dropped, and of which that was not told so far."""
        self._drops = 0
        """How often it was told that events are missing."""
        self._drops_told_at = float("-inf")
        self._problem: type[StoreError] | None = None
        """Of which kind of problem was told last, where it lasts."""

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            await self._ready.wait()
            while self._journal.leads:
                await self._let_commands_go_first()
                if self._election.valid(clock.now()):
                    notes = self._journal.take(BATCH)
                    if not (notes or self._missing):
                        break
                    self._writing = True
                    await self._tell(notes)
                    self._writing = False

    async def all_told(self) -> None:
        """Wait until all that was noted is told, while this process leads, but not for long."""
        for _ in range(LAST_TURNS):
            if not (self._journal.leads and (self._journal.waiting or self._writing)):
                return
            await anyio.sleep(PAUSE)

    async def _let_commands_go_first(self) -> None:
        for _ in range(TURNS):
            await anyio.sleep(PAUSE)
            if not self._busy():
                return

    async def _tell(self, notes: list[Note]) -> None:
        epoch, now = self._epoch(), clock.now()
        fresh = [note for note in notes if note.at > now - TELLABLE]
        self._missing += len(notes) - len(fresh) + self._journal.dropped()
        told = (self._told(note, epoch) for note in fresh)
        events = [*self._drop(now, epoch), *(each for each in told if each is not None)]
        until = min((note.at for note in fresh), default=now) + TELLABLE
        if events and not await self._write(events, until) and self._journal.leads:
            await anyio.sleep(self._how.retry)  # nothing else would be stored now, either

    def _told(self, note: Note, epoch: float) -> Event | None:
        try:
            if self._how.told is not None:
                self._how.told(note, epoch)
            return self._teller.tell(note, epoch)
        except Exception as error:  # noqa: BLE001  # the node goes on, and so do all other events
            log.error("what happened cannot be told", error=repr(error)[:LONGEST_ERROR])
            self._missing += 1
            return None

    def _drop(self, now: float, epoch: float) -> list[Event]:
        """The event that others are missing, where that is so."""
        if not self._missing or now < self._drops_told_at + DROPS_INTERVAL:
            return []
        count, self._missing, self._drops_told_at = self._missing, 0, now
        self._drops += 1
        log.warning("events were dropped: more happened than could be told", count=count)
        about = f"{self._how.node}.{self._how.incarnation}.{self._drops}"
        return [self._teller.tell_dropped(count, self._how.node, about, now + epoch)]

    async def _write(self, events: list[Event], until: float) -> bool:
        """Write them, again and again where need be; after ``until`` that could repeat what another leader told.

        Returns whether any are stored.
        """
        while self._journal.leads:
            try:
                await self._stream.publish(events)
            except RequestRefused as error:
                if len(events) > 1:  # it may be about one of them
                    return any([await self._write([each], until) for each in events])
                self._missing += 1
                self._complain(error)
                return False
            except AccessDenied as error:
                self._complain(error)
                await anyio.sleep(self._how.retry)
            except StoreError as error:
                # Where others listen to the events' subjects, only silence tells that there is no stream.
                log.debug("events are not stored", reason=str(error))
                if not (await self._make() and isinstance(error, NoResponders)):
                    await anyio.sleep(RETRY)
            else:
                if self._problem is not None:
                    self._problem = None
                    log.info("events are told")
                return True
            if clock.now() > until:
                self._missing += len(events)
                break
        return False

    async def _make(self) -> bool:
        """Make sure that there is a stream; returns whether there is."""
        try:
            await self._stream.ensure(create=self._how.create, replicas=self._how.replicas)
        except (AccessDenied, BucketMissing, RequestRefused, Unsuitable) as error:
            self._complain(error)
            await anyio.sleep(self._how.retry)
            return False
        except StoreError as error:
            log.debug("no stream of events", reason=str(error))
            return False
        return True

    def _complain(self, error: StoreError) -> None:
        """Say once that there will be no events."""
        if type(error) is not self._problem:
            self._problem = type(error)
            log.warning("events are not told; all else goes on", reason=str(error))
