from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.dispatch.messages import (
    Cause,
    Connected,
    Disconnected,
    IntentChanged,
    KeyRejected,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    about,
    about_rejected,
)
from cdm.dispatch.router import Router
from cdm.manager.topology import MASS_LOSS_PACE, REMEMBERED, Missing, Registered, Topology
from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, IntentKey, NodeKey, SeenKey
from cdm.model.node import LEFT, LOST, NO_INTENT, Intent, Registration, Role, Schedule, Seen
from tests.unit.support import n

TTL = 10.0
SENT = (*about(*NODES.kinds), *about_rejected(NodeKey), Connected, Disconnected, Tick)


class World:
    """A topology in virtual time."""

    def __init__(self, connected: float | None = 0.0) -> None:
        self.said: list[Message] = []
        self.topology = Topology(self.said.append, TTL)
        self.router = Router([self.topology], SENT)
        self.revision = 0
        if connected is not None:
            self.router.route(Connected(connected))

    def beat(self, node: NodeId, at: float, registration: Registration | None = None) -> None:
        self.revision += 1
        self.router.route(ValuePut(NodeKey(node), registration or Registration(), self.revision, at))

    def gone(self, node: NodeId, cause: Cause = Cause.EXPIRED, at: float = 0.0) -> None:
        self.revision += 1
        gone: ValueRemove[NodeKey, Registration] = ValueRemove(NodeKey(node), self.revision, cause, at)
        self.router.route(gone)

    def lose(self, numbers: Iterable[int]) -> None:
        """The registrations of all these nodes expire."""
        for number in numbers:
            self.gone(n(number))

    def seen(self, node: NodeId, gone: str | None = None, at: float = 0.0, ttl: float | None = None) -> None:
        self.router.route(ValuePut(SeenKey(node), Seen(Registration(ttl=ttl), gone), 1, at))

    def tick(self, at: float) -> list[Message]:
        self.said.clear()
        self.router.route(Tick(at))
        return list(self.said)

    def intend(self, node: NodeId, schedule: Schedule) -> None:
        self.router.route(ValuePut(IntentKey(node), Intent(schedule), 1))


def heard(numbers: Iterable[int], at: float = 100.0) -> World:
    """Connected all the time; the latest heartbeats of these nodes came at once."""
    world = World()
    for number in numbers:
        world.beat(n(number), at)
    return world


def test_a_first_registration_is_a_join() -> None:
    world = World()
    registration = Registration(labels={"zone": "a"}, capacity=3)
    world.beat(n(1), 1.0, registration)
    assert world.said == [NodeJoined(n(1), registration)]
    assert world.topology.nodes == {n(1): Registered(registration, 1.0, 1.0, 1.0)}


def test_a_heartbeat_is_no_join() -> None:
    world = World()
    for at in range(5):
        world.beat(n(1), float(at))
    assert len(world.said) == 1


def test_a_node_that_is_busier_than_before_is_no_join() -> None:
    world = World()
    for load in (None, 0.25, 1.5):
        world.beat(n(1), 1.0, Registration(load=load))
    assert world.said == [NodeJoined(n(1), Registration())]
    assert world.topology.nodes == {n(1): Registered(Registration(load=1.5), 1.0, 1.0, 1.0)}


def test_a_process_after_another_one_was_heard_since_the_node_was() -> None:
    """Or one that dies again and again would always be given time to tell of its slices."""
    world = World()
    for number in range(3):
        world.beat(n(1), 1.0 + number, Registration(incarnation=str(number)))
    found = world.topology.nodes[n(1)]
    assert isinstance(found, Registered)
    assert (found.since, found.back) == (3.0, 1.0)
    world.gone(n(1))
    world.beat(n(1), 9.0, Registration(incarnation="3"))
    found = world.topology.nodes[n(1)]
    assert isinstance(found, Registered)
    assert (found.since, found.back) == (9.0, 9.0)


@pytest.mark.parametrize("other", [Registration(capacity=1), Registration(incarnation="b"), Registration(version="2")])
def test_another_description_or_incarnation_is_a_join(other: Registration) -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.beat(n(1), 2.0, other)
    assert world.said[1:] == [NodeJoined(n(1), other)]


def test_candidates_are_those_that_take_part_in_elections() -> None:
    world = World()
    for number, role in enumerate((Role.ALL, Role.MANAGER, Role.AGENT, "of a later version"), 1):
        world.beat(n(number), 1.0, Registration(role=role))
    assert world.topology.candidates == {n(1), n(2), n(4)}
    world.gone(n(1))
    assert world.topology.candidates == {n(2), n(4)}, "it is missing"
    world.beat(n(1), 2.0)
    assert world.topology.candidates == {n(1), n(2), n(4)}
    world.beat(n(2), 2.0, Registration(role=Role.AGENT))
    assert world.topology.candidates == {n(1), n(4)}
    world.gone(n(1), Cause.DELETED)
    assert world.topology.candidates == {n(4)}


def test_a_registration_that_does_not_expire_does_so_here() -> None:
    world = World(connected=0.0)
    world.beat(n(1), 100.0)
    for at in range(100, 113):
        world.beat(n(2), float(at))
        assert world.tick(float(at)) == []
    assert isinstance(world.topology.nodes[n(1)], Registered)
    world.beat(n(2), 118.0)
    assert world.said == [NodeMissing(n(1))]
    assert world.tick(127.9) == []
    world.beat(n(2), 127.9)
    assert world.tick(128.0) == [NodeDied(n(1))]
    assert set(world.topology.nodes) == {n(2)}


@pytest.mark.parametrize("deaf", ["disconnected", "stopped"])
def test_a_registration_counts_as_one_that_does_not_expire_only_after_it_could_be_heard_for_long_enough(
    deaf: str,
) -> None:
    world = heard((1, 2, 3))
    world.said.clear()
    if deaf == "disconnected":
        world.router.route(Disconnected(100.5))
        world.beat(n(1), 113.2)  # stored before this process knew that it is connected
        world.router.route(Connected(113.5))
    else:
        world.topology.was_stopped(113.5)
    world.beat(n(1), 114.0)
    world.beat(n(2), 114.0)
    world.beat(n(1), 125.4)
    assert world.said == [], "the third one is heard from 113.5 on, for 12 s"
    world.beat(n(1), 131.0)
    assert set(world.said) == {NodeMissing(n(2)), NodeMissing(n(3))}


def test_a_server_whose_clock_is_set_costs_no_node() -> None:
    """Heartbeats then seem to be far apart; within a TTL every living node is heard again."""
    world = heard((1, 2, 3))
    for number in (1, 2, 3):
        world.beat(n(number), 1000.0)
        assert not [each for each in world.tick(1000.0) if isinstance(each, NodeDied)]
    assert all(isinstance(each, Registered) for each in world.topology.nodes.values())


def test_a_node_that_leaves_in_good_order_is_gone_at_once() -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.gone(n(1), Cause.DELETED)
    assert world.said[1:] == [NodeLeft(n(1))]
    assert n(1) not in world.topology.nodes
    assert world.tick(100.0) == []


def test_a_missing_node_that_is_deleted_has_left() -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.gone(n(1))
    world.gone(n(1), Cause.DELETED)
    assert world.said[1:] == [NodeMissing(n(1)), NodeLeft(n(1))]
    assert world.topology.wake_at() is None


def test_the_end_of_an_unknown_registration_is_no_news_unless_it_expired() -> None:
    world = World()
    for cause in (Cause.DELETED, Cause.MISSING):
        world.gone(n(9), cause)
    assert world.said == []


def test_an_expiry_that_was_heard_while_connected_for_long_is_a_death() -> None:
    world = World(connected=0.0)
    world.beat(n(1), 100.0)
    world.beat(n(2), 100.0)
    world.beat(n(3), 108.0)
    world.gone(n(1), at=110.0)
    assert world.said[-1] == NodeMissing(n(1))
    assert world.topology.wake_at() == 110.0
    assert world.tick(110.0) == [NodeDied(n(1))]
    assert n(1) not in world.topology.nodes


def test_an_expiry_just_after_connecting_again_is_no_death_for_a_whole_ttl() -> None:
    world = heard((1, 2, 3), 50.0)
    world.router.route(Disconnected(51.0))
    assert world.tick(75.0) == []
    world.router.route(Connected(80.0))
    world.gone(n(1), at=60.0)
    assert world.tick(80.0) == []
    assert world.tick(89.99) == []
    assert world.topology.wake_at() == 90.0
    assert world.tick(90.0) == [NodeDied(n(1))]


def test_an_expiry_that_is_heard_of_after_this_process_was_stopped_is_no_death_for_a_whole_ttl() -> None:
    """All were stopped together, as by a paused hypervisor: what came meanwhile is told at once, in any order."""
    world = heard((1, 2, 3))
    world.gone(n(1), at=110.0)
    world.topology.was_stopped(112.0)
    world.gone(n(2), at=110.0)
    assert world.tick(112.0) == []
    world.beat(n(2), 112.5)
    assert world.tick(121.9) == []
    assert world.tick(122.0) == [NodeDied(n(1))]


def test_a_process_that_was_stopped_while_disconnected_hears_nobody_yet() -> None:
    world = World(connected=None)
    world.beat(n(1), 0.0)
    world.gone(n(1))
    world.topology.was_stopped(5.0)
    assert world.topology.wake_at() is None


def test_nobody_dies_while_disconnected() -> None:
    world = World(connected=None)
    world.beat(n(1), 0.0)
    world.gone(n(1))
    assert world.topology.wake_at() is None
    assert world.tick(1e9) == []
    world.router.route(Connected(1e9))
    world.router.route(Disconnected(1e9 + 1))
    assert world.topology.wake_at() is None
    assert world.tick(2e9) == []


@pytest.mark.parametrize("cause", [Cause.EXPIRED, Cause.MISSING])
def test_an_outage_in_which_all_expire_at_once_kills_nobody_who_comes_back(cause: Cause) -> None:
    world = heard(range(10), 5.0)
    world.router.route(Disconnected(6.0))
    world.router.route(Connected(60.0))
    for number in range(10):
        world.gone(n(number), cause, 60.0)
    died: list[Message] = []
    for number in range(10):
        world.beat(n(number), 60.5 + number * 0.9)
        died += [each for each in world.tick(60.5 + number * 0.9) if isinstance(each, NodeDied)]
    died += world.tick(1_000.0)
    assert died == []
    assert all(isinstance(each, Registered) for each in world.topology.nodes.values())


def test_a_missing_node_that_comes_back_joins() -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.gone(n(1))
    world.beat(n(1), 2.0)
    assert world.said == [NodeJoined(n(1), Registration()), NodeMissing(n(1)), NodeJoined(n(1), Registration())]
    assert world.tick(500.0) == []


def test_a_node_that_says_its_own_ttl_is_judged_by_it() -> None:
    world = World(connected=0.0)
    for number in (1, 2, 3):
        world.beat(n(number), 100.0, Registration(ttl=30.0) if number == 1 else None)
    world.gone(n(1), Cause.MISSING)
    assert world.topology.wake_at() == 130.0
    assert world.tick(129.0) == []
    assert world.tick(130.0) == [NodeDied(n(1))]


def test_a_second_expiry_of_a_missing_node_does_not_renew_its_time() -> None:
    world = heard((1, 2, 3))
    world.gone(n(1), Cause.MISSING)
    world.gone(n(1), Cause.MISSING)
    assert world.said[3:] == [NodeMissing(n(1))]
    assert world.topology.wake_at() == 110.0


def test_a_dead_node_that_returns_joins() -> None:
    world = heard((1, 2, 3))
    world.gone(n(1))
    assert world.tick(110.0) == [NodeDied(n(1))]
    world.beat(n(1), 120.0)
    assert world.said[-1] == NodeJoined(n(1), Registration())


def test_the_loss_of_most_nodes_is_paced() -> None:
    world = heard(range(10))
    world.lose(range(6))
    died: list[tuple[float, int]] = []
    at = 110.0
    while at < 200.0:
        dead = [each for each in world.tick(at) if isinstance(each, NodeDied)]
        if dead:
            died.append((at, len(dead)))
        at += 0.25
    assert [count for _, count in died] == [1] * 6
    pauses = [late - early for (early, _), (late, _) in pairwise(died)]
    assert all(pause >= MASS_LOSS_PACE * TTL for pause in pauses)
    assert max(pauses) <= MASS_LOSS_PACE * TTL + 0.5


def test_wake_at_tells_when_the_next_paced_eviction_is_due() -> None:
    world = heard(range(4))
    world.lose(range(3))
    deaths: list[float] = []
    while (at := world.topology.wake_at()) is not None:
        assert len(deaths) < 5
        dead = world.tick(at)
        assert len(dead) == 1, "woken for nothing"
        deaths.append(at)
    assert deaths == [110.0, 115.0, 120.0]


def test_the_loss_of_no_more_than_half_is_not_paced() -> None:
    world = heard(range(10))
    world.lose(range(5))
    assert world.tick(110.0) == [NodeDied(n(number)) for number in range(5)]


def test_a_lone_node_among_two_is_given_up_at_once() -> None:
    world = heard((1, 2))
    world.gone(n(1))
    assert world.tick(110.0) == [NodeDied(n(1))]


def test_pacing_ends_when_the_lost_ones_are_back() -> None:
    world = heard(range(4))
    world.lose(range(3))
    assert world.tick(110.0) == [NodeDied(n(0))]
    for number in range(4):
        world.beat(n(number), 111.0)
    world.gone(n(0))
    assert world.tick(121.0) == [NodeDied(n(0))]


def test_most_nodes_lost_in_one_outage_and_back_again_are_not_evicted_in_between() -> None:
    world = heard(range(4))
    world.lose(range(4))
    assert world.tick(110.0) == [NodeDied(n(0))]
    for number in range(1, 4):
        world.beat(n(number), 112.0)
    assert world.tick(500.0) == []


def test_a_node_that_a_leader_remembered_and_that_is_not_there_is_missing() -> None:
    world = World(connected=95.0)
    world.beat(n(1), 100.0)
    world.beat(n(2), 100.0)
    world.seen(n(9))
    assert world.said[-1] == NodeMissing(n(9))
    assert isinstance(world.topology.nodes[n(9)], Missing)
    world.seen(n(9))
    assert world.said.count(NodeMissing(n(9))) == 1
    assert world.tick(104.9) == []
    assert world.tick(105.0) == [NodeDied(n(9))]


@pytest.mark.parametrize("left_behind", ["remembered", "expired"])
def test_nodes_that_this_process_never_saw_slow_no_eviction_down(left_behind: str) -> None:
    """Forty of them come with an old backup."""
    world = heard(range(4))
    for number in range(100, 140):
        if left_behind == "remembered":
            world.seen(n(number))
        else:
            world.gone(n(number))
    world.gone(n(0), at=110.0)
    assert world.topology.wake_at() == TTL, "nothing was to be heard of them for a whole TTL"
    assert world.tick(110.0) == [NodeDied(n(number)) for number in (*range(100, 140), 0)]


def test_nodes_that_this_process_never_saw_are_given_up_in_the_middle_of_a_paced_loss() -> None:
    world = heard(range(4))
    world.lose(range(3))
    assert world.tick(110.0) == [NodeDied(n(0))]
    for number in range(100, 140):
        world.seen(n(number))
    assert world.tick(110.5) == [NodeDied(n(number)) for number in range(100, 140)]
    assert world.topology.wake_at() == 115.0
    world.router.route(Connected(112.0))
    world.seen(n(200))
    for number in range(3):
        world.beat(n(number), 113.0)
        world.gone(n(number))
    assert world.tick(123.0) == [NodeDied(n(200)), NodeDied(n(0))]


def test_a_paced_loss_is_over_when_all_that_was_seen_are_back() -> None:
    world = heard(range(4))
    world.lose(range(3))
    assert world.tick(110.0) == [NodeDied(n(0))]
    world.router.route(Connected(111.0))
    world.seen(n(9))
    for number in range(3):
        world.beat(n(number), 112.0)
    world.gone(n(1))
    world.beat(n(2), 121.0)
    world.beat(n(3), 121.0)
    assert world.tick(122.0) == [NodeDied(n(9)), NodeDied(n(1))], "not from 115.0 on, one by one"


@pytest.mark.parametrize("ttl", [None, TTL, 86_400.0])
def test_a_remembered_ttl_is_believed_up_to_the_managers_own(ttl: float | None) -> None:
    world = World(connected=100.0)
    world.seen(n(9), ttl=ttl)
    assert world.topology.wake_at() == 110.0
    world.seen(n(8), ttl=4.0)
    assert world.topology.wake_at() == 104.0


def test_a_remembered_node_that_registers_is_a_member_like_others() -> None:
    world = World()
    world.seen(n(9))
    world.beat(n(9), 1.0)
    assert world.said == [NodeMissing(n(9)), NodeJoined(n(9), Registration())]
    world.seen(n(9))
    assert len(world.said) == 2
    assert world.tick(100.0) == []


@pytest.mark.parametrize("leader_first", [True, False])
def test_a_node_that_left_is_not_missing_whatever_was_remembered_of_it(leader_first: bool) -> None:
    world = World()
    if leader_first:
        world.seen(n(8))
    world.gone(n(8), Cause.DELETED)
    world.seen(n(8))
    world.seen(n(8), LEFT)
    assert world.topology.nodes == {}
    assert world.topology.lost == {}
    assert world.topology.wake_at() is None


def test_a_node_that_another_leader_gave_up_is_given_up() -> None:
    world = World()
    world.seen(n(7), LOST, 40.0)
    world.gone(n(7))
    assert world.said == []
    world.seen(n(8))
    world.seen(n(8), LOST, 50.0)
    assert world.said == [NodeMissing(n(8)), NodeDied(n(8))]
    assert world.topology.nodes == {}
    assert world.topology.lost == {n(7): 40.0, n(8): 50.0}, "something may still run there"
    world.beat(n(8), 60.0)
    world.seen(n(8), LOST, 61.0)
    assert isinstance(world.topology.nodes[n(8)], Registered)
    assert world.topology.lost == {n(7): 40.0}


def test_what_is_remembered_can_be_forgotten() -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.seen(n(1))
    assert world.topology.seen == {n(1): Seen(Registration())}
    world.router.route(ValueRejected(SeenKey(n(1)), "nonsense", 9))
    assert world.topology.seen == {}


@pytest.mark.parametrize("remembered", [True, False])
def test_a_node_whose_registration_expired_before_is_given_its_time(remembered: bool) -> None:
    world = World(connected=100.0)
    if remembered:
        world.seen(n(8))
    world.gone(n(8), Cause.EXPIRED, at=50.0)
    assert world.said == [NodeMissing(n(8))]
    assert world.topology.wake_at() == 110.0


@pytest.mark.parametrize("what", ["beat", "beat, expire", "expire", "down, up"])
def test_a_node_that_left_and_may_have_come_back_is_given_its_time(what: str) -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.gone(n(1), Cause.DELETED)
    for each in what.split(", "):
        match each:
            case "beat":
                world.beat(n(1), 2.0)
            case "expire":
                world.gone(n(1))
            case "down":
                world.router.route(Disconnected(2.0))
            case _:
                world.router.route(Connected(3.0))
    world.seen(n(1))
    assert n(1) in world.topology.nodes


def test_of_the_many_nodes_that_left_the_last_ones_are_remembered() -> None:
    world = World()
    for number in (0, *range(REMEMBERED), 0, REMEMBERED):
        world.gone(n(number), Cause.DELETED)
    assert [world.topology.left(n(number)) for number in (0, 1, 2, REMEMBERED)] == [True, False, True, True]


def test_intents_are_told_once_each() -> None:
    world = World()
    assert world.topology.schedule(n(1)) is Schedule.NORMAL
    for schedule in (Schedule.NORMAL, Schedule.CORDON, Schedule.CORDON, Schedule.DRAIN):
        world.intend(n(1), schedule)
        assert world.topology.schedule(n(1)) is schedule
    gone: ValueRemove[IntentKey, Intent] = ValueRemove(IntentKey(n(1)), 9)
    world.router.route(gone)
    world.router.route(gone)
    assert world.topology.schedule(n(1)) is Schedule.NORMAL
    assert world.said == [
        IntentChanged(n(1), Intent(Schedule.CORDON)),
        IntentChanged(n(1), Intent(Schedule.DRAIN)),
        IntentChanged(n(1), NO_INTENT),
    ]


def test_an_intent_outlives_its_nodes_death() -> None:
    world = World()
    world.beat(n(1), 1.0)
    world.intend(n(1), Schedule.CORDON)
    world.gone(n(1), Cause.DELETED)
    world.beat(n(1), 2.0)
    assert world.topology.schedule(n(1)) is Schedule.CORDON


def test_a_malformed_intent_counts_as_cordon() -> None:
    world = World()
    world.intend(n(1), Schedule.DRAIN)
    world.said.clear()
    world.router.route(ValueRejected(IntentKey(n(1)), "Invalid enum value", 2))
    assert world.topology.schedule(n(1)) is Schedule.CORDON
    assert world.said == [IntentChanged(n(1), Intent(Schedule.CORDON))]


def rubbish(world: World, node: NodeId, at: float) -> None:
    world.router.route(ValueRejected(NodeKey(node), "nonsense", 2, at))


def test_a_node_that_lives_writes_over_a_malformed_registration_and_nothing_comes_of_it() -> None:
    world = World()
    world.beat(n(1), 1.0)
    rubbish(world, n(1), 2.0)
    assert world.said[1:] == [NodeMissing(n(1))]
    world.beat(n(1), 4.0)
    assert world.tick(60.0) == []
    assert isinstance(world.topology.nodes[n(1)], Registered)


def test_a_node_whose_registration_was_written_over_is_dead_when_nobody_mends_it() -> None:
    """What is there has no TTL: its end will never be told."""
    world = World()
    world.beat(n(1), 1.0, Registration(ttl=30.0))
    rubbish(world, n(1), 2.0)
    assert world.tick(31.9) == []
    assert world.tick(32.1) == [NodeDied(n(1))]


def test_a_node_whose_heartbeats_nobody_can_read_is_heard_all_the_same() -> None:
    world = World()
    world.beat(n(1), 1.0)
    for at in range(2, 60, 5):
        rubbish(world, n(1), float(at))
        assert world.tick(at + 5.0) == []
    assert world.tick(57.0 + TTL) == [NodeDied(n(1))]


def test_a_malformed_registration_alone_makes_no_node() -> None:
    world = World()
    rubbish(world, n(1), 2.0)
    assert world.topology.nodes == {}
    assert world.said == []


def test_keys_that_do_not_parse_are_left_alone() -> None:
    world = World()
    world.router.route(KeyRejected(NodeKey, "a.b", "bad", 2))
    world.router.route(RejectedKeyRemoved(NodeKey, "a.b"))
    assert world.topology.nodes == {}
    assert world.said == []


steps = st.lists(
    st.tuples(
        st.sampled_from(["beat", "expire", "leave", "list", "seen", "up", "down", "tick"]),
        st.integers(0, 4),
        st.floats(0.0, 8.0),
    ),
    max_size=60,
)


@given(steps)
def test_a_death_is_told_only_after_a_whole_ttl_of_hearing_nothing(script: list[tuple[str, int, float]]) -> None:
    world = World(connected=None)
    now, up_since = 0.0, None
    heard: dict[NodeId, float] = {}
    dead: set[NodeId] = set()
    for what, number, pause in script:
        now += pause
        node = n(number)
        world.said.clear()
        match what:
            case "beat":
                world.beat(node, now)
                heard[node] = now
                dead.discard(node)
            case "expire":
                world.gone(node)
            case "list":
                world.gone(node, Cause.MISSING)
            case "leave":
                world.gone(node, Cause.DELETED)
            case "seen":
                world.seen(node)
            case "up":
                world.router.route(Connected(now))
                up_since = now
            case "down":
                world.router.route(Disconnected(now))
                up_since = None
            case _:
                world.router.route(Tick(now))
        for said in world.said:
            if isinstance(said, NodeDied):
                assert up_since is not None
                assert now - max(up_since, heard.get(said.node, up_since)) >= TTL
                assert said.node not in dead, "nobody dies twice"
                dead.add(said.node)
        due = world.topology.wake_at()
        assert (due is None) == (
            up_since is None or not any(isinstance(each, Missing) for each in world.topology.nodes.values())
        )
    # Whoever stays away is dead in the end, and nobody else.
    world.router.route(Connected(now))
    missing = {node for node, each in world.topology.nodes.items() if isinstance(each, Missing)}
    present = set(world.topology.nodes) - missing
    for _ in range(20):
        now += TTL
        world.router.route(Tick(now))
    assert set(world.topology.nodes) == present
