"""A local copy of one bucket, and the changes that follow from what a consumer delivers. Pure: no client, no clock.

However often the consumer is replaced, and whatever happened meanwhile, the mirror ends equal to the bucket and emits
no change that did not happen. Each change is a typed message. Keys and values that do
not decode are messages too. How a node's registration ended is told even where the registration was never known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from cdm.dispatch.messages import Cause, KeyRejected, Message, RejectedKeyRemoved, ValueRemove
from cdm.errors import InvalidKey
from cdm.model.keys import NODES, Layout
from cdm.store.decoding import Decoder, lasting
from cdm.store.history import History, Known, Removal
from cdm.store.lifetimes import Lifetimes, ttl_of
from cdm.store.session import Behind, Listing, ListingHistory, Live, Mark, MirrorPhase, Resuming
from cdm.store.wire import MARKER_TTL, WRITER, StreamState, cause_of

MARKS = 256
"""How many messages are remembered, the newest ones, to know the stream again by."""

MARGIN = 60.0
"""Seconds before their time from which markers may have expired: clocks differ."""


class Gap(Exception):
    """What a consumer delivers does not follow from what is known: everything must be listed."""


class SetBack(Gap):
    """The stream was set back to an older state, and may have been written to since."""


class Mirror:
    """What is known of a bucket.

    ::

        Behind ── resume ──> Resuming ───────── finish ──> Live
               ── list ────> Listing(History) ─ finish ──> Live
        all of them ── leave, distrust, an error ──> Behind

    A session compares the stream with `other_stream`, begins with `resume` or `list`, hands over each message with
    `update`, says with `finish` that everything was delivered that the bucket held at the beginning, and ends with
    `leave`, which may come at any time.

    Args:
        layout: the bucket's.
        emit: takes each message.
        sooner: called when a key is to be looked for sooner than any was.
    """

    def __init__(
        self, layout: Layout, emit: Callable[[Message], None], sooner: Callable[[], None] = lambda: None
    ) -> None:
        self.phase: MirrorPhase = Behind()
        self.reached = 0
        """Everything up to this sequence of the stream was emitted."""
        self.created: str | None = None
        """When the stream was created that this is a copy of; None: it was not seen yet."""
        self.generation = 0
        """How often another stream was found in its place: sequences of different generations cannot be compared."""
        self.listed_at = float("-inf")
        """When everything was last compared with the bucket."""
        self._layout = layout
        self._emit = emit
        self.known: dict[str, Known] = {}
        """What is known of each key."""
        self._markers: dict[str, int] = {}
        """Keys that the stream holds a marker of, and when that was stored, in nanoseconds since 1970."""
        self._none_before = 0
        """No known message is older than this sequence."""
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        """The newest messages, in order, without a gap."""
        self.lifetimes = Lifetimes(sooner)
        """The keys that have a TTL, and when they end."""
        self._decoder = Decoder(layout)
        self._decode, self._decode_declared = self._decoder.decode, self._decoder.decode_declared

    @property
    def is_live(self) -> bool:
        """Whether the copy is complete, and follows."""
        return isinstance(self.phase, Live)

    @property
    def stored(self) -> int:
        """When the newest message was stored, in nanoseconds since 1970, by the server's clock; 0: there was none."""
        return self._marks[-1].stored if self._marks else 0

    def reread(self, now: float) -> None:
        """Everything was held against the bucket beside the present session, and is right."""
        if self.listed_at > float("-inf"):
            self.listed_at = now

    @property
    def may_resume(self) -> bool:
        """Whether a session need not list everything."""
        return self.listed_at > float("-inf") and bool(self._marks)

    # A session

    def other_stream(self, stream: StreamState) -> str:
        """Compare the stream with the one before; returns why it is another one, or an empty string."""
        reason = ""
        if self.created not in (None, stream.created):
            reason = "was created anew"
        elif stream.last < self.reached:
            reason = "went back"
        self.created = stream.created
        if reason:
            self._begin_anew()
        return reason

    def resume(self, end: int) -> int:
        """Go on where the last session ended; returns the sequence behind which a consumer is to begin.

        Args:
            end: the stream's last sequence.
        """
        marks = {mark.sequence: mark for mark in self._marks}
        self.phase = Resuming(end, self.reached, marks, {mark.key: mark for mark in self._marks})
        return self._marks[0].sequence - 1

    def list(self, end: int) -> None:
        """A consumer is about to deliver everything; the stream's last sequence is ``end``."""
        self._marks.clear()
        self._markers.clear()
        self._none_before = end + 1
        kind = ListingHistory if self._layout.history > 1 else Listing
        self.phase = kind(end, self._replaced, self.known.copy())

    def finish(self, now: float) -> None:
        """Everything was delivered that the bucket held when the session began; what was not there is gone.

        Raises:
            Gap: what is known and was not delivered again is gone without a trace.
        """
        match self.phase:
            case Behind() | Live():
                return
            case Resuming(end) as resuming:
                if resuming.missing.keys() - self.lifetimes.over(now):
                    self.distrust()
                    raise Gap(f"{len(resuming.missing)} of the newest keys are gone without a trace")
                self.lifetimes.doubt(now)
            case Listing(end) as listing:
                if isinstance(listing, ListingHistory):
                    for name, history in listing.histories.items():
                        self._emit_history(listing, name, history)
                for name, (data, cause, sequence, at, by) in listing.older.items():
                    self._take(name, data, self.known.get(name), cause, sequence, at, by)
                for name in listing.unlisted:
                    if known := self.known.get(name):
                        self._remove(name, known, end, Cause.MISSING, now)
                self.listed_at = now
        # What was stored while the listing went on may be newer than its end.
        self.skip(max(end, self._marks[-1].sequence if self._marks else 0))
        self.phase = Live()

    def leave(self) -> None:
        """The consumer is gone."""
        if isinstance(self.phase, Listing):
            self.listed_at = float("-inf")
        self.phase = Behind(self._replaced)

    def distrust(self) -> None:
        """Nothing but a whole listing makes this complete again."""
        self.leave()
        self.listed_at = float("-inf")

    def update(
        self, name: str, data: bytes, headers: dict[str, str] | None, sequence: int, stored: int, at: float
    ) -> None:
        """Take a message of the present consumer.

        Args:
            name: the key's string.
            data: its value.
            headers: the message's, where there are any that matter.
            sequence: the message's number in the stream.
            stored: when it was stored, in nanoseconds since 1970, by the server's clock.
            at: the same, in seconds on this node's clock.

        Raises:
            SetBack: the stream is not the one that it was.
            Gap: nothing shows that it is.
        """
        phase = self.phase
        known = self.known.get(name)
        if isinstance(phase, Resuming) and self._proves(phase, Mark(sequence, name, stored)):
            return
        self._marks.append(Mark(sequence, name, stored))
        if headers is not None:
            cause, by = self._note_headers(name, headers, stored, at)
        else:
            cause, by = None, ""
            self._forget_end(name)
        listing = isinstance(phase, Listing)
        if isinstance(phase, Listing):
            self._none_before = min(self._none_before, sequence)
            if isinstance(phase, ListingHistory):
                history = phase.histories.get(name) or phase.histories.setdefault(name, History())
                if cause is not None:
                    history.remove(Removal(sequence, at, cause, by))
                else:
                    history.add(self._decode_declared(name, data, sequence, at, known, by))
                return
            phase.unlisted.pop(name, None)
            phase.older.pop(name, None)
            if known is not None and sequence <= known.revision and not phase.replaced:
                if sequence < known.revision:
                    phase.older[name] = (data, cause, sequence, at, by)
                return
        self._take(name, data, known, cause, sequence, at, by)
        if not listing:
            self.reached = sequence

    def _note_headers(self, name: str, headers: dict[str, str], stored: int, at: float) -> tuple[Cause | None, str]:
        """Note when the value, or the marker, ends; returns why the key is gone, if it is, and who says so."""
        cause = cause_of(headers)
        # Where older values are kept, one that expires uncovers them, or leaves a marker.
        ttl = ttl_of(headers) if cause is None and self._layout.history == 1 else None
        self._forget_end(name)
        if cause is not None:
            self._markers[name] = stored + int((ttl_of(headers) or MARKER_TTL) * 1e9)
        elif ttl is not None:
            self.lifetimes.begin(name, at + ttl)
        return cause, headers.get(WRITER, "")

    def _forget_end(self, name: str) -> None:
        if self._markers:
            self._markers.pop(name, None)
        if self.lifetimes.ends:
            self.lifetimes.forget(name)

    def _take(
        self, name: str, data: bytes, known: Known | None, cause: Cause | None, sequence: int, at: float, by: str
    ) -> None:
        """A key, of which this was known, was given a value, or was removed."""
        if cause is None:
            update = (
                self._decode_declared(name, data, sequence, at, known, by)
                if by
                else self._decode(name, data, sequence, at, known)
            )
            if self._layout is NODES:
                update = lasting(update, at, self.lifetimes.ends.get(name))
            self.known[name] = update
            self._emit(update)
        elif known is not None:
            self._remove(name, known, sequence, cause, at, by)
        elif self._layout is NODES and (sequence > self.reached or not isinstance(self.phase, Listing)):
            self._tell_end(name, sequence, cause, at, by)

    def ended(self, names: Iterable[str]) -> None:
        """These keys' TTL is over, and they are gone."""
        for name in names:
            end = self.lifetimes.ends.get(name, 0.0)
            self.lifetimes.forget(name)
            if known := self.known.get(name):
                self._remove(name, known, known.revision, Cause.EXPIRED, end)

    def lost(self, stream: StreamState, now: float) -> int:
        """How many of the known messages are gone from the stream, at least: they were purged, and left no marker.

        Where the stream is further than ``reached`` some of them may only have been replaced since. Those that may have
        expired by now do not count.
        """
        older, over = 0, self.lifetimes.over(now)
        if stream.first > self._none_before:
            older = sum(known.revision < stream.first for name, known in self.known.items() if name not in over)
            if not older:
                self._none_before = stream.first
        soon = (stream.clock + MARGIN) * 1e9
        self._markers = {name: end for name, end in self._markers.items() if end > soon}
        if len(self.known) + len(self._markers) - len(over) <= stream.keys:
            return older
        kept = sum(known.revision <= stream.last for name, known in self.known.items() if name not in over)
        return max(older, kept + len(self._markers) - stream.keys)

    def skip(self, end: int) -> None:
        """What is left up to this sequence was removed without a trace: nothing of it will be delivered."""
        self.reached = max(self.reached, end)

    # What follows from it

    def _begin_anew(self) -> None:
        """The stream is another one: nothing that is known of the old one says anything about it."""
        self.generation += 1
        self.reached = self._none_before = 0
        self.listed_at = float("-inf")
        self._marks.clear()
        self.phase = Behind(replaced=True)

    def _proves(self, phase: Resuming, mark: Mark) -> bool:
        """Whether a message was known before, as it is now."""
        if mark.sequence <= phase.known_to:
            if phase.marks.get(mark.sequence) != mark:
                self._begin_anew()
                raise SetBack("was set back")
            phase.proven = True
            if phase.missing.get(mark.key) == mark:
                del phase.missing[mark.key]
            return True
        if not phase.proven:
            self.distrust()
            raise Gap("of what is known nothing was delivered again")
        phase.missing.pop(mark.key, None)
        return False

    @property
    def _replaced(self) -> bool:
        return isinstance(self.phase, (Behind, Listing)) and self.phase.replaced

    def _remove(self, name: str, known: Known, sequence: int, cause: Cause, at: float, by: str = "") -> None:
        del self.known[name]
        if self.lifetimes.ends:
            self.lifetimes.forget(name)
        if isinstance(known, KeyRejected):
            self._emit(RejectedKeyRemoved(known.kind, name))
        else:
            self._emit(ValueRemove(known.key, sequence, cause, at, by))

    def _tell_end(self, name: str, sequence: int, cause: Cause, at: float, by: str) -> None:
        """All that is left of a node that went before it was known here is the marker, which tells how it went."""
        try:
            key = self._decoder.key(name)
        except InvalidKey:
            return
        self._emit(ValueRemove(key, sequence, cause, at, by))

    def _emit_history(self, listing: Listing, name: str, history: History) -> None:
        """Emit what a key's history comes to: no value that was deleted or replaced since."""
        known, removed = self.known.get(name), history.removed
        if history.updates:
            listing.unlisted.pop(name, None)
        if known and removed and (listing.replaced or removed.sequence > known.revision):
            self._remove(name, known, removed.sequence, removed.cause, removed.at, removed.by)
            known = None
        for update in history.updates:
            if known is None or listing.replaced or update.revision > known.revision or history.ends_before(known):
                self.known[name] = update
                self._emit(update)
