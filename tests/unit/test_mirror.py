"""The mirror ends equal to the bucket and tells of no change that did not happen, whatever becomes of its consumers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from cdm.dispatch.messages import Cause, KeyRejected, Message, RejectedKeyRemoved, ValuePut, ValueRejected, ValueRemove
from cdm.model.keys import BLUEPRINTS, NODES, SLICES, Layout, encode
from cdm.store.mirror import MARGIN, MARKS, Gap, Mirror, SetBack
from cdm.store.session import Behind, Listing, ListingHistory, Live, Resuming
from cdm.store.wire import MARKER_TTL, WRITER, StreamState

LAYOUTS = {"blueprints": BLUEPRINTS, "slices": SLICES, "nodes": NODES}
KEYS = {
    BLUEPRINTS: ("g/a/1", "g/b/1", "no-artifact"),
    SLICES: ("n1.g/a/1", "n1.g/a/1/1", "no-slice"),
    NODES: ("n1", "n2", "no.node"),
}
"""The last one does not decode."""
GOOD = {BLUEPRINTS: b"3", SLICES: b'{"state":"LOAD","term":1}', NODES: b"{}"}
BAD = b"?"
MARKERS = {
    Cause.DELETED: {"KV-Operation": "DEL"},
    Cause.EXPIRED: {"Nats-Marker-Reason": "MaxAge"},
}


class Stored(Struct, frozen=True):
    """A message of a stream; one with a cause is a marker."""

    sequence: int
    key: str
    data: bytes
    time: int
    """When it was stored; no two messages have the same."""
    cause: Cause | None = None


class Stream:
    """A bucket's stream as the server keeps it, with all that it ever held."""

    def __init__(self, layout: Layout, created: int = 0) -> None:
        self.layout = layout
        self.created = created
        self.last = 0
        self.messages: list[Stored] = []
        self.time = 0
        self.log: dict[int, Stored] = {}
        self.lost: set[str] = set()
        """Keys of which a message was removed without a marker."""

    @property
    def state(self) -> StreamState:
        first = self.messages[0].sequence if self.messages else self.last + 1
        return StreamState(str(self.created), self.last, 0.0, "", first, len(self.newest()))

    def store(self, key: str, data: bytes, cause: Cause | None = None) -> None:
        self.last += 1
        self.time += 1
        stored = self.log[self.last] = Stored(self.last, key, data, self.time, cause)
        of_key = [each for each in self.messages if each.key == key]
        for old in of_key[: max(0, len(of_key) + 1 - self.layout.history)]:
            self.messages.remove(old)
        self.messages.append(stored)

    def lose(self, keys: tuple[str, ...]) -> None:
        self.lost |= {each.key for each in self.messages if each.key in keys}
        self.messages = [each for each in self.messages if each.key not in keys]

    def newest(self) -> dict[str, Stored]:
        return {each.key: each for each in self.messages}

    def values(self) -> dict[str, Stored]:
        """What is no marker, by key."""
        return {key: each for key, each in self.newest().items() if each.cause is None}


class Receiver:
    """Takes what a mirror emits, and checks each change against what the stream ever held."""

    def __init__(self, layout: Layout) -> None:
        self.stream = Stream(layout)
        self.values: dict[str, Stored] = {}
        self.in_force: dict[str, int] = {}
        self.free = False
        """Whether sequences may go back: the stream was replaced, or set back."""
        self.told: set[int] = set()
        self.heard = 0
        """How many messages there were."""

    def __call__(self, message: Message) -> None:
        self.heard += 1
        match message:
            case ValuePut(key, _, revision):
                self._put(encode(key), revision, GOOD[self.stream.layout], message.at)
                self.in_force[encode(key)] = revision
            case ValueRejected(key, _, revision):
                self._put(encode(key), revision, BAD, message.at)
                if message.removed > self.in_force.get(encode(key), 0):
                    self.in_force.pop(encode(key), None)
            case KeyRejected(_, name, _, revision):
                self._put(name, revision, None, None)
            case RejectedKeyRemoved(_, name):
                del self.values[name]
            case ValueRemove(key, revision, cause):
                self._remove(encode(key), revision, cause)
            case _:
                raise AssertionError(message)

    def _put(self, name: str, revision: int, data: bytes | None, at: float | None) -> None:
        stored = self.stream.log[revision]
        assert stored.key == name
        assert stored.cause is None
        assert data in (None, stored.data)
        assert at in (None, stored.time)
        if not self.free:
            assert name not in self.values or revision > self.values[name].sequence
            assert revision not in self.told, "a change is told once"
        self.told.add(revision)
        self.values[name] = stored

    def _remove(self, name: str, revision: int, cause: Cause) -> None:
        if name not in self.values:
            assert self.stream.layout is NODES
        if cause is Cause.MISSING:
            assert self.free or name in self.stream.lost
        else:
            stored = self.stream.log[revision]
            assert (stored.key, stored.cause) == (name, cause)
        self.told.add(revision)
        self.values.pop(name, None)
        self.in_force.pop(name, None)


class Consumer:
    """Delivers a stream to a mirror, as the watch has it."""

    def __init__(self, stream: Stream, mirror: Mirror, *, resume: bool) -> None:
        self.stream = stream
        self.mirror = mirror
        self.end = stream.last
        if mirror.other_stream(stream.state) or not resume or not mirror.may_resume:
            self.at = 0
            mirror.list(self.end)
            chosen = stream.messages if stream.layout.history > 1 else stream.newest().values()
        else:
            self.at = mirror.resume(self.end)
            chosen = stream.messages
        self.chosen = {each.sequence for each in chosen}
        if not self._pending():
            mirror.finish(0.0)

    def _pending(self) -> list[Stored]:
        return [
            each
            for each in self.stream.messages
            if each.sequence > self.at and (each.sequence in self.chosen or each.sequence > self.end)
        ]

    def deliver(self, count: int | None = None) -> None:
        for each in self._pending()[:count]:
            self.at = each.sequence
            headers = MARKERS[each.cause] if each.cause else None
            self.mirror.update(each.key, each.data, headers, each.sequence, each.time, float(each.time))
        if not self.mirror.is_live and not self._pending():
            self.mirror.finish(0.0)


class World:
    """A bucket, its mirror, and who listens to it."""

    def __init__(self, layout: Layout, marks: int = MARKS) -> None:
        self.layout = layout
        self.receiver = Receiver(layout)
        self.mirror = Mirror(layout, self.receiver)
        self.mirror._marks = deque(maxlen=marks)
        self.consumer: Consumer | None = None
        self.backup: tuple[list[Stored], int] | None = None

    @property
    def stream(self) -> Stream:
        return self.receiver.stream

    def key(self, number: int) -> str:
        return KEYS[self.layout][number]

    # What may happen

    def put(self, number: int, good: bool) -> None:
        self.stream.store(self.key(number), GOOD[self.layout] if good else BAD)

    def remove(self, number: int, cause: Cause) -> None:
        self.stream.store(self.key(number), b"", cause)

    def lose(self, number: int | None) -> None:
        self.stream.lose(KEYS[self.layout] if number is None else (self.key(number),))

    def replace(self) -> None:
        self.consumer, self.backup = None, None
        self.mirror.leave()
        self.receiver.free = True
        self.receiver.stream = Stream(self.layout, self.stream.created + 1)

    def back_up(self) -> None:
        self.backup = (list(self.stream.messages), self.stream.last)

    def restore(self) -> None:
        if self.backup is not None:
            self.consumer = None
            self.mirror.leave()
            self.receiver.free = True
            self.stream.messages, self.stream.last = list(self.backup[0]), self.backup[1]

    def begin(self, resume: bool) -> None:
        self.mirror.leave()
        try:
            self.consumer = Consumer(self.stream, self.mirror, resume=resume)
        except Gap:
            self.consumer = None

    def deliver(self, count: int | None) -> None:
        if self.consumer is not None:
            try:
                self.consumer.deliver(count)
            except SetBack:
                self.consumer = None
                if not self.receiver.free:
                    raise
            except Gap:
                self.consumer = None

    def distrust(self) -> None:
        self.mirror.distrust()
        self.consumer = None

    # What must hold

    def settle(self, resume: bool) -> None:
        self.begin(resume)
        self.deliver(None)
        if self.consumer is None:
            self.begin(False)
            self.deliver(None)
        assert self.mirror.is_live

    def check(self) -> None:
        assert self.receiver.values == self.stream.values()
        assert self.mirror.reached == self.stream.last


number = st.integers(0, 2)
event = st.one_of(
    st.tuples(st.just(World.put), number, st.booleans()),
    st.tuples(st.just(World.put), number, st.just(True)),
    st.tuples(st.just(World.remove), number, st.sampled_from(list(MARKERS))),
    st.tuples(st.just(World.begin), st.booleans()),
    st.tuples(st.just(World.deliver), st.integers(1, 4)),
    st.tuples(st.just(World.distrust)),
)
loss = st.tuples(st.just(World.lose), st.none() | number)
disaster = st.tuples(st.sampled_from([World.replace, World.back_up, World.restore]))
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)

Event = tuple[Callable[..., None], *tuple[object, ...]]


@layouts
@given(events=st.lists(event, max_size=40), resume=st.booleans())
def test_the_mirror_ends_equal_to_the_bucket(layout: Layout, events: list[Event], resume: bool) -> None:
    world = World(layout)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume)
    world.check()
    for name in KEYS[layout][:2]:
        of_key = [each for each in world.stream.messages if each.key == name]
        if len(of_key) < layout.history:  # else the valid one may have been pushed out of the bucket
            assert world.receiver.in_force.get(name) == _in_force(of_key, layout)


def _in_force(messages: list[Stored], layout: Layout) -> int | None:
    """The last valid value since the key was last removed."""
    found = None
    for each in messages:
        if each.cause:
            found = None
        elif each.data == GOOD[layout]:
            found = each.sequence
    return found


@layouts
@given(events=st.lists(event | loss, max_size=40))
def test_what_vanishes_without_a_marker_is_found_missing_by_the_next_listing(
    layout: Layout, events: list[Event]
) -> None:
    world = World(layout)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume=False)
    world.check()


@layouts
@given(events=st.lists(event | loss | disaster, max_size=40))
def test_a_listing_makes_up_for_any_disaster(layout: Layout, events: list[Event]) -> None:
    """Also where the stream was deleted and created anew, or where an old backup of it was put in its place."""
    world = World(layout)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume=False)
    world.check()


@layouts
@given(events=st.lists(event | disaster, max_size=40), marks=st.integers(1, 4) | st.just(MARKS))
def test_a_session_that_resumes_finds_out_that_the_stream_was_set_back(
    layout: Layout, events: list[Event], marks: int
) -> None:
    """However much was written to it since, and however few messages it is known again by."""
    world = World(layout, marks)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume=True)
    world.check()


@layouts
@given(events=st.lists(event, max_size=30), count=st.integers(0, 10))
def test_a_listing_of_what_is_known_tells_nothing(layout: Layout, events: list[Event], count: int) -> None:
    world = World(layout)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume=False)
    heard = world.receiver.heard
    world.begin(resume=False)
    world.deliver(count)
    world.settle(resume=False)
    assert world.receiver.heard == heard


@layouts
@given(events=st.lists(event, max_size=40), losses=st.lists(st.none() | number, max_size=3))
def test_what_was_purged_is_counted(layout: Layout, events: list[Event], losses: list[int | None]) -> None:
    world = World(layout)
    for act, *arguments in events:
        act(world, *arguments)
    world.settle(resume=True)
    assert world.mirror.lost(world.stream.state, 0.0) == 0
    before = len(world.stream.newest())
    for loss in losses:
        world.lose(loss)
    lost = world.mirror.lost(world.stream.state, 0.0)
    assert lost == before - len(world.stream.newest())
    world.settle(resume=False)
    assert world.mirror.lost(world.stream.state, 0.0) == 0


# Single steps


def mirror(layout: Layout = SLICES) -> tuple[Mirror, list[Message]]:
    heard: list[Message] = []
    return Mirror(layout, heard.append), heard


def deliver(it: Mirror, sequence: int, key: str = "n1.g/a/1", *, stored: int = 0, removed: Cause | None = None) -> None:
    headers = MARKERS[removed] if removed else None
    it.update(
        key, b"" if removed else b'{"state":"LOAD","ttl":10}', headers, sequence, stored or sequence, float(sequence)
    )


def test_the_phases_of_a_session() -> None:
    it, _ = mirror()
    phases: list[object] = []

    def look() -> None:
        phases.append(type(it.phase))

    look()
    it.list(3)
    look()
    it.leave()
    look()
    it.list(3)
    deliver(it, 3)
    it.finish(1.0)
    look()
    it.leave()
    look()
    assert it.may_resume
    assert it.resume(5) == 2
    look()
    deliver(it, 3)
    it.finish(2.0)
    look()
    it.distrust()
    look()
    assert phases == [Behind, Listing, Behind, Live, Behind, Resuming, Live, Behind]
    assert it.reached == 5


def test_what_a_replica_that_is_behind_delivers_is_not_told() -> None:
    it, heard = mirror()
    it.list(5)
    deliver(it, 5)
    it.finish(1.0)
    heard.clear()
    it.list(7)
    deliver(it, 3)
    assert not heard
    deliver(it, 7)  # it has caught up
    it.finish(2.0)
    assert [message.revision for message in heard if isinstance(message, ValuePut)] == [7]
    assert len(heard) == 1


def test_what_was_set_back_is_told_when_all_is_listed() -> None:
    it, heard = mirror()
    it.list(5)
    deliver(it, 5)
    it.finish(1.0)
    it.list(5)
    deliver(it, 3)
    deliver(it, 4, "n2.g/a/1")
    assert [message.revision for message in heard if isinstance(message, ValuePut)] == [5, 4]
    it.finish(2.0)
    assert [message.revision for message in heard if isinstance(message, ValuePut)] == [5, 4, 3]


def test_only_a_listing_that_was_not_broken_off_counts_as_one() -> None:
    it, _ = mirror()
    it.list(3)
    deliver(it, 3)
    it.finish(1.0)
    it.resume(3)
    deliver(it, 3)
    it.finish(2.0)
    assert it.listed_at == 1.0
    it.list(3)
    it.leave()
    assert it.listed_at == float("-inf")
    it.list(3)
    it.finish(3.0)
    assert it.listed_at == 3.0
    it.distrust()
    assert it.listed_at == float("-inf")


def resumed(*marks: int) -> tuple[Mirror, list[Message]]:
    """A mirror that knows the key ``n1.g/a/1/SEQUENCE`` by each of these messages, and is about to resume."""
    it, heard = mirror()
    it.list(marks[-1])
    for sequence in marks:
        deliver(it, sequence, f"n1.g/a/1/{sequence}")
    it.finish(0.0)
    it.leave()
    heard.clear()
    assert it.resume(9) == marks[0] - 1
    return it, heard


def test_what_is_known_is_not_told_again_when_a_session_resumes() -> None:
    it, heard = resumed(3, 5, 7)
    for sequence in (3, 5, 7, 8):
        deliver(it, sequence, f"n1.g/a/1/{sequence}")
    it.finish(0.0)
    assert [message.revision for message in heard if isinstance(message, ValuePut)] == [8]
    assert it.is_live


@pytest.mark.parametrize(
    ("sequence", "key", "stored"), [(5, "n1.g/a/1/5", 99), (5, "n1.g/a/1/4", 5), (6, "n1.g/a/1/5", 5)]
)
def test_a_known_sequence_with_another_message_shows_that_the_stream_was_set_back(
    sequence: int, key: str, stored: int
) -> None:
    it, heard = resumed(3, 5, 7)
    deliver(it, 3, "n1.g/a/1/3")
    with pytest.raises(SetBack):
        deliver(it, sequence, key, stored=stored)
    assert it.phase == Behind(replaced=True)
    assert not heard
    assert (it.generation, it.reached, it.may_resume) == (1, 0, False)


def test_a_known_message_that_is_gone_without_a_newer_one_shows_that_something_was_lost() -> None:
    it, _ = resumed(3, 5, 7)
    deliver(it, 3, "n1.g/a/1/3")
    deliver(it, 8, "n1.g/a/1/5")
    with pytest.raises(Gap) as caught:
        it.finish(0.0)
    assert not isinstance(caught.value, SetBack)
    assert it.phase == Behind()


def test_where_nothing_that_is_known_is_left_everything_is_listed() -> None:
    it, heard = resumed(3, 5)
    with pytest.raises(Gap):
        deliver(it, 8, "n1.g/a/1/3")
    assert it.phase == Behind()
    assert not heard, "until then nothing is told"


def test_a_blueprint_that_waits_for_itself_or_replaces_itself_is_refused_by_its_key() -> None:
    it, told = mirror(BLUEPRINTS)
    it.list(0)
    it.finish(0.0)
    for sequence, data in enumerate(
        (b'{"instances": 1, "after": ["g:a"]}', b'{"instances": 1, "rollout": {"from": "1"}}'), 1
    ):
        it.update("g/a/1", data, None, sequence, sequence, 0.0)
    assert [type(each) for each in told] == [ValueRejected, ValueRejected]
    assert [getattr(each, "reason", "").partition(":")[0] for each in told] == ["after[0]", "rollout.from"]
    it.update("g/a/2", b'{"instances": 1, "after": ["g:b"], "rollout": {"from": "1"}}', None, 3, 3, 0.0)
    assert isinstance(told[-1], ValuePut)


def test_a_bucket_with_history_is_listed_with_it() -> None:
    it, _ = mirror(BLUEPRINTS)
    it.list(3)
    assert isinstance(it.phase, ListingHistory)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (StreamState("a", 5, 0.0), ""),
        (StreamState("a", 9, 0.0), ""),
        (StreamState("a", 4, 0.0), "went back"),
        (StreamState("b", 9, 0.0), "was created anew"),
    ],
)
def test_another_stream_is_known_by_its_age_and_its_last_sequence(state: StreamState, reason: str) -> None:
    it, _ = mirror()
    it.other_stream(StreamState("a", 5, 0.0))
    it.list(5)
    it.finish(0.0)
    assert it.other_stream(state) == reason
    assert (it.generation, it.reached) == ((1, 0) if reason else (0, 5))


def test_that_the_stream_is_another_one_is_known_until_it_is_listed() -> None:
    """A session may end in the middle of the listing: the next one still may not compare revisions."""
    it, heard = mirror()
    it.list(9)
    deliver(it, 9)
    it.finish(0.0)
    it.other_stream(StreamState("a", 9, 0.0))
    it.other_stream(StreamState("b", 9, 0.0))
    for _ in range(2):
        it.list(9)
        it.leave()
    it.list(9)
    deliver(it, 9)
    it.finish(0.0)
    assert [message.revision for message in heard if isinstance(message, ValuePut)] == [9, 9]
    it.leave()
    it.list(9)
    deliver(it, 9)
    it.finish(0.0)
    assert len(heard) == 2


def test_how_a_node_went_that_was_never_known_is_told() -> None:
    it, heard = mirror(NODES)
    it.list(2)
    deliver(it, 1, "n1", removed=Cause.DELETED)
    deliver(it, 2, "n2", removed=Cause.EXPIRED)
    deliver(it, 3, "no.node", removed=Cause.DELETED)
    removes = [message for message in heard if isinstance(message, ValueRemove)]
    assert [(encode(remove.key), remove.cause, remove.revision, remove.at) for remove in removes] == [
        ("n1", Cause.DELETED, 1, 1.0),
        ("n2", Cause.EXPIRED, 2, 2.0),
    ]
    assert len(heard) == 2
    it.update("n3.intent", b"", {"KV-Operation": "DEL", WRITER: "ann"}, 4, 4, 4.0)
    assert isinstance(heard[-1], ValueRemove)
    assert heard[-1].by == "ann"


def stream(last: int, *, first: int = 1, keys: int = 0, clock: float = 0.0) -> StreamState:
    return StreamState("a", last, clock, "", first, keys)


def test_markers_that_may_have_expired_are_not_missed() -> None:
    it, _ = mirror()
    it.list(9)
    deliver(it, 8, "n1.g/a/1")
    deliver(it, 9, "n1.g/a/1/1", stored=int(1e9), removed=Cause.DELETED)
    it.finish(0.0)
    assert it.lost(stream(9, first=8, keys=2), 0.0) == 0
    assert it.lost(stream(9, first=8, keys=1, clock=MARKER_TTL - MARGIN), 0.0) == 1
    assert it.lost(stream(9, first=8, keys=1, clock=MARKER_TTL), 0.0) == 0
    assert it.lost(stream(9, first=10, keys=0, clock=MARKER_TTL), 0.0) == 1


def test_what_came_after_the_stream_was_looked_at_is_not_missed() -> None:
    it, _ = mirror()
    it.list(5)
    deliver(it, 5, "n1.g/a/1")
    it.finish(0.0)
    deliver(it, 6, "n1.g/a/1/1")
    assert it.lost(stream(5, first=5, keys=1), 0.0) == 0
    assert it.lost(stream(7, first=7, keys=2), 0.0) == 2, "both may have been replaced: what is on its way tells"
    deliver(it, 7, "n1.g/a/1")
    deliver(it, 8, "n1.g/a/1/1")
    assert it.lost(stream(8, first=7, keys=2), 0.0) == 0
