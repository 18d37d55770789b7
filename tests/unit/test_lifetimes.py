"""Keys with a TTL end by the clock: they are looked for when they are due, and never before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.dispatch.messages import Cause, Message, ValuePut, ValueRemove
from cdm.model.keys import BLUEPRINTS, NODES, SLICES, encode
from cdm.store.lifetimes import EARLY, LOOK_AFTER, LOOK_PAUSE, NEVER, Lifetimes, ttl_of
from cdm.store.mirror import Mirror
from cdm.store.wire import StreamState, ttl_header

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10000ms", 10.0),
        ("900", 900.0),
        ("15m0s", 900.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("never", None),
        ("", None),
        ("-1", None),
        ("10 s", None),
        ("s", None),
    ],
)
def test_a_ttl_is_read_as_the_server_reads_it(text: str, seconds: float | None) -> None:
    assert ttl_of({"Nats-TTL": text}) == seconds


@given(st.floats(1.0, 1e6))
def test_what_is_written_is_read(seconds: float) -> None:
    assert ttl_of({"Nats-TTL": ttl_header(seconds)}) == pytest.approx(seconds, abs=0.001)


def test_no_ttl_is_none() -> None:
    assert ttl_of({}) is None


def test_what_is_renewed_in_time_is_never_looked_for() -> None:
    woken: list[int] = []
    it = Lifetimes(lambda: woken.append(1))
    it.begin("a", 10.0)
    for now in range(1, 100):
        it.begin("a", now + 10.0)
        assert it.due(now) == []
    assert len(woken) == 1


def test_what_is_still_there_is_looked_for_after_ever_longer_pauses() -> None:
    it = Lifetimes()
    it.begin("a", 10.0)
    assert it.due(10.0) == []
    looks, now = 0, 10.0
    while now < 3_610.0:
        now = it.look_at
        if due := it.due(now):
            looks += 1
            it.still_there(due, now)
    assert 20 < looks < 100
    it.forget("a")
    assert it.due(now + 100.0) == []
    assert it.look_at == NEVER


def test_the_first_looks_follow_one_another_quickly() -> None:
    it = Lifetimes()
    it.begin("a", 10.0)
    assert it.look_at == 10.0 + LOOK_AFTER
    it.still_there(it.due(it.look_at), 10.0 + LOOK_AFTER)
    assert it.due(it.look_at) == []
    assert it.look_at == pytest.approx(10.0 + LOOK_AFTER + LOOK_PAUSE)


def test_what_was_looked_for_early_is_looked_for_again_when_it_ends() -> None:
    it = Lifetimes()
    it.begin("a", 10.0)
    it.begin("b", 20.0)
    it.doubt(5.0)
    assert it.due(5.0) == ["a", "b"]
    it.still_there(["a", "b"], 5.0)
    assert it.due(5.0) == []
    assert it.look_at == 10.0 + LOOK_AFTER


class World:
    """A mirror of `nodes`, and what it tells."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        self.mirror = Mirror(NODES, self.told.append)
        self.mirror.list(0)
        self.mirror.finish(0.0)

    def put(self, name: str, sequence: int, at: float, ttl: float | None) -> None:
        """A registration is delivered."""
        headers = None if ttl is None else {"Nats-TTL": ttl_header(ttl)}
        self.mirror.update(name, b"{}", headers, sequence, round(at * 1e9), at)

    @property
    def ends(self) -> list[tuple[str, int, Cause, float]]:
        """Of which keys it told that they are gone."""
        return [(encode(it.key), it.revision, it.cause, it.at) for it in self.told if isinstance(it, ValueRemove)]


def test_a_key_that_ended_is_told_to_have_expired() -> None:
    world = World()
    world.put("n1", 1, 1.0, 10.0)
    world.put("n2", 2, 2.0, 10.0)
    world.put("n3", 3, 3.0, None)
    assert world.mirror.lifetimes.due(11.5) == ["n1"]
    world.mirror.ended(["n1"])
    assert world.ends == [("n1", 1, Cause.EXPIRED, 11.0)]
    assert world.mirror.lifetimes.due(1e6) == ["n2"]
    world.mirror.ended(["n2", "n2"])
    assert len(world.ends) == 2
    assert sum(isinstance(each, ValuePut) for each in world.told) == 3


@pytest.mark.parametrize(
    ("said", "ttl", "holds"), [(b"{}", 90.0, 90.0), (b'{"ttl":10.0}', 90.0, 10.0), (b"{}", None, None)]
)
def test_a_registration_that_says_no_ttl_holds_as_long_as_its_message(
    said: bytes, ttl: float | None, holds: float | None
) -> None:
    world = World()
    headers = {"Cdm-By": "somebody"} | ({} if ttl is None else {"Nats-TTL": ttl_header(ttl)})
    for by in (headers, {name: headers[name] for name in headers if name != "Cdm-By"}):
        world.mirror.update("n1", said, by, world.mirror.reached + 1, 1, 1.0)
        put = world.told[-1]
        assert isinstance(put, ValuePut)
        assert put.value.ttl == holds


def test_a_value_without_a_ttl_takes_the_place_of_one_with() -> None:
    world = World()
    world.put("n1", 1, 1.0, 10.0)
    world.put("n1", 2, 2.0, None)
    assert world.mirror.lifetimes.due(1e6) == []


def test_a_marker_that_a_server_puts_tells_it_first() -> None:
    world = World()
    world.put("n1", 1, 1.0, 10.0)
    world.mirror.update("n1", b"", {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": "15m0s"}, 2, round(11e9), 11.0)
    assert world.ends == [("n1", 2, Cause.EXPIRED, 11.0)]
    assert world.mirror.lifetimes.due(1e6) == []


def test_what_has_expired_is_not_taken_for_purged() -> None:
    world = World()
    world.put("n1", 1, 1.0, 10.0)
    world.put("n2", 2, 2.0, None)
    gone = StreamState("", 2, 0.0, first=2, keys=1)
    assert world.mirror.lost(gone, 11.0 - EARLY) == 0
    assert world.mirror.lost(gone, 5.0) == 1


def test_keys_with_a_ttl_are_looked_for_after_a_resumption() -> None:
    world = World()
    world.put("n1", 1, 1.0, 10.0)
    world.put("n2", 2, 2.0, None)
    world.mirror.leave()
    world.mirror.resume(2)
    # What is proven is n2; n1 has expired meanwhile.
    world.mirror.update("n2", b"{}", None, 2, round(2e9), 2.0)
    world.mirror.finish(12.0)
    assert world.mirror.is_live
    assert world.mirror.lifetimes.due(12.0) == ["n1"]


def test_where_older_values_are_kept_the_server_tells() -> None:
    """One that expires uncovers the value before it."""
    told: list[Message] = []
    mirror = Mirror(BLUEPRINTS, told.append)
    mirror.list(0)
    mirror.finish(0.0)
    mirror.update("g/a/1", b"3", {"Nats-TTL": "1s"}, 1, 1, 1.0)
    assert mirror.lifetimes.look_at == NEVER


def test_the_lease_is_a_key_like_others() -> None:
    told: list[Message] = []
    mirror = Mirror(SLICES, told.append)
    mirror.list(0)
    mirror.update("_leader", b'{"node":"n1","term":1}', {"Nats-TTL": "10000ms"}, 1, round(1e9), 1.0)
    mirror.finish(1.0)
    assert mirror.lifetimes.due(12.0) == ["_leader"]
    mirror.ended(["_leader"])
    assert isinstance(told[-1], ValueRemove)
