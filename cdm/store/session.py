"""What a mirror does with what its present consumer delivers; the transitions are with `cdm.store.mirror.Mirror`."""

from __future__ import annotations

from msgspec import Struct, field

from cdm.dispatch.messages import Cause
from cdm.store.history import History, Known


class Mark(Struct, frozen=True, gc=False):
    """A message that was delivered."""

    sequence: int
    key: str
    stored: int
    """When it was stored, in nanoseconds since 1970, by the server's clock."""


class Behind(Struct, frozen=True):
    """There is no consumer: changes may be missed."""

    replaced: bool = False
    """Whether the stream is another one than that which the known keys are from: revisions cannot be compared."""


class Resuming(Struct):
    """A consumer delivers the last messages that are known, so far as they are there still, and what was stored since.

    The first ones prove that the stream is the one that it was.
    """

    end: int
    """The stream's last sequence when the consumer was made."""
    known_to: int
    """Everything up to this sequence was emitted in sessions before."""
    marks: dict[int, Mark]
    """What may be delivered again, by sequence."""
    missing: dict[str, Mark]
    """The newest message of each of these keys, while neither it nor a newer one was delivered."""
    proven: bool = False
    """Whether a message was delivered that is known."""


class Listing(Struct, frozen=True):
    """A consumer delivers the newest message of each key."""

    end: int
    replaced: bool
    unlisted: dict[str, Known]
    """Keys known before that were not delivered so far."""
    older: dict[str, tuple[bytes, Cause | None, int, float, str]] = field(default_factory=dict)
    """What was delivered of keys of which something newer is known. A replica that is behind delivers it, and then what
    it lacks; where nothing follows, the stream was set back."""


class ListingHistory(Listing, frozen=True):
    """A consumer delivers everything that the bucket keeps of each key."""

    histories: dict[str, History] = field(default_factory=dict)


class Live(Struct, frozen=True):
    """Everything that the bucket held was delivered; a consumer delivers what follows."""


MirrorPhase = Behind | Resuming | Listing | ListingHistory | Live
