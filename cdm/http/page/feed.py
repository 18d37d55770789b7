"""Tells browsers what the page shows, as server-sent events: all of it once, and then what is new."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec

from cdm import clock
from cdm.dispatch.messages import KeyRejected, Message, RejectedKeyRemoved, ValueRemove
from cdm.http.desk import Desk
from cdm.http.page.facts import FactChanges, PageFacts, told
from cdm.http.page.happenings import Happenings

BETWEEN = 0.2
"""Seconds between two looks for what is new: what changes meanwhile is told at once."""
TICK = 4.0
"""Seconds after which something is said although nothing is new, so that the page knows that it is heard."""
LISTING_PATIENCE = 5.0
"""Seconds for which the page waits until all buckets are listed before it shows what is known so far."""


class Feed:
    """What the page's browsers are told.

    Args:
        desk: what is known of the cluster.
        happenings: what happened there.
    """

    def __init__(self, desk: Desk, happenings: Happenings) -> None:
        self.facts = PageFacts()
        self.current: dict[object, Message] = {}
        """The message about each key that counts, for who explains."""
        self._desk = desk
        self._happenings = happenings
        self._run = secrets.token_hex(4)
        """Numbers are those of this process: another one counts anew."""
        self._whole: tuple[int, bytes] = (-1, b"")
        """All facts as they are sent, up to a number."""

    def take(self, message: Message) -> None:
        """Take in one message."""
        for name, value in told(message, time.time() - clock.now()):
            self.facts.note(name, value)
        match message:
            case KeyRejected(kind=kind, name=name):
                self.current[kind, name] = message
            case RejectedKeyRemoved(kind=kind, name=name):
                self.current.pop((kind, name), None)
            case ValueRemove(key=key):
                self.current.pop(key, None)
            case _:
                self.current[getattr(message, "key", None)] = message

    async def stream(self, last: str) -> AsyncIterator[bytes]:
        """What one browser is told, for as long as it listens.

        Args:
            last: what it was told last, where it comes back (``Last-Event-ID``).
        """
        self._happenings.watched += 1
        try:
            number, happened = self._known(last)
            said = 0.0
            await self._listed()
            while not self._desk.sight.closing:
                self._note_whether_away()
                if number is None or self.facts.number > number:
                    changes, said = self.facts.since(number), clock.now()
                    number = changes.number
                    yield self._encoded(changes, happened)
                if (news := self._happenings.since(happened)) is not None:
                    happened, said = news.number, clock.now()
                    yield _event("events", self._id(number, happened), news.told)
                if clock.now() - said > TICK:
                    said = clock.now()
                    yield _event("tick", "", {})
                await anyio.sleep(BETWEEN)
        finally:
            self._happenings.watched -= 1

    async def _listed(self) -> None:
        with anyio.move_on_after(LISTING_PATIENCE):
            while not (self._desk.sight.listed or self._desk.sight.closing):
                await self._desk.sight.after(self._desk.sight.changes)

    def _note_whether_away(self) -> None:
        age = self._desk.sight.age(clock.now())
        if not age:
            self.facts.note("away", None)
        elif self.facts.get("away") is None:
            self.facts.note("away", int(time.time() - age))
        self.facts.note("problem", self._desk.sight.problem or None)

    def _known(self, last: str) -> tuple[int | None, int | None]:
        """Up to which numbers a browser knows facts and events that was told this last."""
        run, *numbers = last.split("-")
        if run != self._run or len(numbers) != 2 or not all(each.isascii() and each.isdigit() for each in numbers):
            return None, None
        return int(numbers[0]), int(numbers[1])

    def _id(self, number: int, happened: int | None) -> str:
        return f"{self._run}-{number}-{happened or 0}"

    def _encoded(self, changes: FactChanges, happened: int | None) -> bytes:
        name = self._id(changes.number, happened)
        if not changes.whole:
            return _event("facts", name, {"whole": False, "facts": changes.facts})
        if self._whole[0] != changes.number:
            self._whole = changes.number, msgspec.json.encode(changes.facts)
        # Encoded once for all who come before anything changes.
        return _event("facts", name, {"whole": True, "facts": msgspec.Raw(self._whole[1])})


def _event(kind: str, name: str, told: dict[str, Any]) -> bytes:
    """An event as it is sent. JSON has no line breaks of its own."""
    data = msgspec.json.encode({"now": round(time.time(), 3), **told})
    head = f"event: {kind}\n{f'id: {name}{chr(10)}' if name else ''}data: "
    return b"".join((head.encode(), data, b"\n\n"))
