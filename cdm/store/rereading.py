"""One pass over all that a bucket holds, a part at a time, held against what a mirror knows of it. Pure.

It goes on beside the mirror, which follows the bucket all the time: what differs at one moment may only have been
changed meanwhile. So differences are suspicions, for somebody to ask the stream's leader about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdm.store.history import Known

RELIST_INTERVAL = 300.0
"""Seconds between two full comparisons with the bucket."""


class Rereading:
    """Takes the bucket's messages in the order of the stream; for buckets that keep one message of each key.

    Args:
        known: what the mirror knows, as it changes.
    """

    def __init__(self, known: Mapping[str, Known]) -> None:
        self._known = known
        self._seen: set[int] = set()
        """Sequences of this part whose message is known as it is."""
        self._begin = 0
        self.reached = 0
        """Sequence of the last message that was taken."""
        self.suspects: set[str] = set()
        """Keys of which the bucket and the mirror did not say the same."""

    @property
    def seen(self) -> int:
        """How many messages of this part are known as they are."""
        return len(self._seen)

    def take(self, name: str, sequence: int, headers: bytes) -> None:
        """The bucket holds this message, of those after the last one that was taken.

        Args:
            name: the key's string.
            sequence: the message's number in the stream.
            headers: its header block, which tells whether it removes the key.
        """
        self.reached = sequence
        if (known := self._known.get(name)) is None:
            if b"KV-Operation" not in headers and b"Nats-Marker" not in headers:
                self.suspects.add(name)
        elif (revision := known.revision) == sequence:
            self._seen.add(revision)
        else:
            self.suspects.add(name)

    def finish(self, end: int) -> None:
        """Nothing more is there, though the stream went up to this sequence."""
        self.reached = max(self.reached, end)

    def names(self) -> list[str]:
        """The keys that `look_for` is to go over at the end of a part."""
        return list(self._known)

    def look_for(self, names: Iterable[str]) -> None:
        """Suspect those of these keys whose message was to be taken with this part, and was not."""
        begin, end, seen, get = self._begin, self.reached, self._seen, self._known.get
        self.suspects.update(
            name
            for name in names
            if (update := get(name)) is not None and begin < update.revision <= end and update.revision not in seen
        )

    def next_part(self) -> None:
        """What was to be taken with this part was looked for."""
        self._begin = self.reached
        self._seen.clear()
