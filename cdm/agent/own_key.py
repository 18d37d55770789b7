"""One slice key of this node: what is known of it, and what this process wrote there last."""

from __future__ import annotations

from typing import NamedTuple

from cdm import clock
from cdm.agent.known import Current, Deleted, Stale
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceState, SliceValue
from cdm.store.bucket import Bucket
from cdm.store.wire import dump


class LastWrite(NamedTuple):
    """What this process wrote last."""

    revision: int
    at: float
    """When, in seconds on `cdm.clock`."""


class OwnKey:
    """What is known of a slice key. The mirror and this process's own writes tell, in whichever order they come.

    Args:
        slices: the bucket.
        key: the slice's.
    """

    def __init__(self, slices: Bucket, key: SliceKey) -> None:
        self._slices = slices
        self._key = key
        self.known: Current | Stale | Deleted | None = None
        """What it holds; None: there is no such key."""
        self.told = LastWrite(0, float("-inf"))
        self.learned = float("-inf")
        """When the mirror told of it last, in seconds on `cdm.clock`."""

    @property
    def value(self) -> SliceValue | None:
        """What it holds, or held in a stream that is gone; None: nothing."""
        return None if self.known is None or isinstance(self.known, Deleted) else self.known.value

    @property
    def state(self) -> SliceState | None:
        """The state in it; None: there is no key."""
        value = self.value
        return value.state if value is not None else None

    @property
    def is_told(self) -> bool:
        """Whether what it holds is what this process wrote."""
        return isinstance(self.known, Current) and self.known.revision == self.told.revision

    def is_news(self, revision: int) -> bool:
        """Whether this revision is later than what is known."""
        return not isinstance(self.known, (Current, Deleted)) or revision > self.known.revision

    def learn(self, current: Current) -> None:
        """The mirror told of this."""
        self.known, self.learned = current, clock.now()

    def removed(self, revision: int) -> bool:
        """It is gone, since this revision. Returns whether that is news."""
        if self.known is None or not (isinstance(self.known, Stale) or revision >= self.known.revision):
            return False
        self.known = None
        return True

    def forget(self) -> bool:
        """Its stream is another one than before: revisions say nothing about it. Returns whether the key is gone."""
        if isinstance(self.known, Current):
            self.known = Stale(self.known.value)
        elif isinstance(self.known, Deleted):
            self.known = None
            return True
        return False

    async def write(self, known: Current, said: SliceValue | None) -> bool:
        """Write a value, or delete the key (None), by compare-and-set on what is known.

        Returns whether that is news: where the mirror was faster it has told of this write, and maybe that the key is
        gone since. Errors as of `Bucket.put`.
        """
        told: Current | Deleted
        if said is None:
            told = Deleted(await self._slices.delete(self._key, expect=known.revision))
        else:
            told = Current(await self._slices.put(self._key, dump(said), expect=known.revision), said)
        self.told = LastWrite(told.revision, clock.now())
        if self.known is not known:
            return False
        self.known = told
        return True
