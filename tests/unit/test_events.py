"""What is noted of what happens, and what of it is told as an event."""

from __future__ import annotations

from typing import Any

import pytest

from cdm.cli.led_to import joined
from cdm.dispatch.messages import (
    Cause,
    DeclaredPut,
    LeaderChange,
    NodeDied,
    NodeLeft,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.explain.words import event_in_words
from cdm.manager import journal as module
from cdm.manager.cluster import Desired
from cdm.manager.events import Teller
from cdm.manager.journal import TELLABLE, Journal, Note
from cdm.manager.outbox import Order
from cdm.manager.plan import Command
from cdm.model.blueprint import Blueprint
from cdm.model.event import KINDS, Event, EventData, event_filter
from cdm.model.keys import BlueprintKey, IntentKey, NodeKey, SeenKey, SliceKey, StatusKey
from cdm.model.node import Intent, Registration, Role, Schedule
from cdm.model.slice import SliceState
from cdm.model.status import Condition, Status
from tests.unit.support import APP, S, n, put

EPOCH = 1_700_000_000.0
KEY = SliceKey(n(1), APP)
LEADS = LeaderChange(n(1), 1, local_node_is_leader=True)


def tell(message: Any, before: Any = None, beside: Any = None, teller: Teller | None = None) -> Event | None:
    return (teller or Teller()).tell(Note(message, before, beside), EPOCH)


def sure(message: Any, before: Any = None, beside: Any = None) -> Event:
    event = tell(message, before, beside)
    assert event is not None
    assert event.kind in KINDS
    return event


def test_a_command_is_told_with_its_reason_and_what_led_to_it() -> None:
    order = Order(APP, 1, [Command(KEY, S.LOAD, "instance missing", blueprint=7)])
    event = sure(put(n(1), S.LOAD, at=2.5, revision=9, blueprint=7), None, order)
    assert (event.id, event.type, event.subject) == ("slices@9.load", "cdm.load", str(KEY))
    assert event.time == "2023-11-14T22:13:22.500Z"
    assert (event.data.reason, event.data.cause, event.data.to) == ("instance missing", "blueprints@7", "LOAD")
    assert event.tokens == ("cdm", "event", "load", "n1", "org.example/slice/1.0.0")
    assert event_filter() == ("cdm", "event", "*", "*", ">")
    assert event_filter("load", n(1), APP) == event.tokens
    removed = Teller(removed={APP: 12}).tell(Note(put(n(1), S.UNLOAD), None, None), EPOCH)
    assert removed is not None
    assert removed.data.cause == "blueprints@12"


def test_a_state_is_told_once_with_the_write_that_it_answers() -> None:
    active = put(n(1), S.ACTIVE, revision=5)
    assert sure(active, put(n(1), S.ACTIVATING, revision=4)).data.cause == "slices@4"
    assert tell(put(n(1), S.ACTIVE, revision=6), active) is None
    failed = sure(put(n(1), S.FAILED, revision=7, reason="exit\nstatus 1", fatal=True), active)
    assert (failed.data.source, failed.data.fatal) == ("ACTIVE", True)
    assert event_in_words(failed) == "was ACTIVE: exit status 1"
    gone = sure(ValueRemove(KEY, 8, Cause.MISSING), put(n(1), S.UNLOADING))
    assert gone.id == "slices@8.n1.org.example/slice/1.0.0.gone", "other keys may be missing at the same revision"
    assert tell(ValueRemove(KEY, 8), None) is None


def test_who_wrote_a_blueprint_and_what_changed() -> None:
    key = BlueprintKey(APP)
    before = Desired(Blueprint(2), 1, 1)
    scaled = sure(DeclaredPut(key, Blueprint(3), 2, 0.0, "alice"), before)
    assert (scaled.data.by, scaled.data.changes) == ("alice", ("instances 2 -> 3",))
    assert event_in_words(scaled) == "instances 2 -> 3, by alice"
    made = sure(ValuePut(key, Blueprint(3), 2))
    assert event_in_words(made) == "created, instances 3, by unknown"
    assert sure(ValuePut(key, Blueprint(2), 2), before).data.changes == ("the same again",)
    assert sure(ValuePut(key, Blueprint(2), 2), Desired(None, 0, 1, "no")).data.changes == ("mended",)
    refused = sure(ValueRejected(key, "instances: what?", 4, by="bob"), before)
    assert (refused.kind, refused.data.by, refused.data.reason) == ("refused", "bob", "instances: what?")
    assert sure(ValueRemove(key, 5, by="bob"), before).data.changes == ("deleted",)
    cordoned = sure(ValuePut(IntentKey(n(2)), Intent(Schedule.CORDON, reason="disk"), 3))
    assert event_in_words(cordoned) == "normal -> cordon: disk, by unknown"
    assert sure(ValueRemove(IntentKey(n(2)), 4), Intent(Schedule.CORDON)).data.to == "normal"


def test_a_condition_is_told_where_it_is_another_one() -> None:
    key = StatusKey("org.example/slice/1.0.0")
    ready = Status(Condition.READY, observed_revision=3)
    assert sure(ValuePut(key, ready, 1)).data.blueprint == 3
    assert tell(ValuePut(key, ready, 2), ready) is None
    nameless = sure(ValuePut(StatusKey("no artifact"), Status(Condition.INVALID), 3))
    assert nameless.tokens[-1] == "_"


def test_a_node_joins_when_it_started_and_not_when_it_is_first_heard_of() -> None:
    def registered(incarnation: str, started: float, **more: Any) -> ValuePut[NodeKey, Registration]:
        text = f"2023-11-14T22:13:{20 + started:06.3f}+00:00"
        return ValuePut(NodeKey(n(1)), Registration(incarnation=incarnation, started=text, **more), 1, 300.0)

    assert tell(registered("a", 0.0), None, False) is None
    old = registered("a", 0.0)
    assert sure(registered("b", 0.0), old, True).kind == "joined"
    assert sure(registered("a", 0.0), None, True).kind == "joined", "it was gone"
    changed = sure(registered("a", 0.0, labels={"zone": "a"}, load=1.0), old, True)
    assert (changed.kind, changed.data.changes) == ("changed", ("labels.zone a",))
    for one, other in ((Role.AGENT, Role.ALL), (Role.ALL, Role.AGENT)):
        role = sure(registered("a", 0.0, role=other), registered("a", 0.0, role=one), True)
        assert role.data.changes == (f"role {one} -> {other}",)
    assert tell(old, old, True) is None, "it was not heard for a while"
    later = ValuePut(old.key, old.value, 9, 310.0)
    assert sure(NodeDied(n(1)), old, 3.0).kind == "lost"
    assert sure(NodeDied(n(1)), old, 3.0).id == sure(NodeDied(n(1)), later, 3.0).id, (
        "whichever heartbeat was noted first"
    )
    assert sure(NodeLeft(n(1)), None, 3.0).kind == "left"
    assert sure(LEADS, None, 1.0).id == "term@1.leader"
    assert tell(LeaderChange(None, 1, local_node_is_leader=False), None, 1.0) is None


def test_what_is_too_much_is_counted_and_a_new_leader_tells_what_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    woken: list[int] = []
    journal = Journal(lambda: woken.append(1))
    for at in (0.0, 50.0, 110.0, 120.0):
        journal.note(put(n(1), S.ACTIVE, at=at))
    journal.lead(LEADS, 50.0 + TELLABLE)
    assert journal.leads
    assert [note.at for note in journal.take(10)] == [110.0, 120.0, 150.0]
    assert journal.dropped() == 0, "others told it, or should have"
    assert len(woken) == 1
    assert journal.take(10) == []
    for _ in range(5):
        journal.note(put(n(1), S.ACTIVE))
    assert len(woken) == 2, "once"
    assert len(journal.take(2)) == 2
    assert (journal.dropped(), journal.dropped()) == (2, 0)
    journal.follow()
    assert not journal.leads


def test_what_became_of_a_node_is_said_once() -> None:
    def event(kind: str, **data: Any) -> Event:
        return Event("1", f"cdm.{kind}", "nodes/n1", "2023-11-14T22:13:20Z", EventData("n1", by="ann", **data))

    assert event_in_words(event("intent", source="cordon", to="drain", changes=("schedule cordon -> drain",))) == (
        "cordon -> drain, by ann"
    )
    assert (
        event_in_words(event("intent", source="drain", to="drain", changes=("deadline 1h",)))
        == "drain, deadline 1h, by ann"
    )
    assert event_in_words(event("forgotten")) == "is not remembered any more, by ann"


def test_a_revision_is_joined_with_what_it_led_to() -> None:
    def event(kind: str, second: int, blueprint: int = 7, to: str = "") -> Event:
        return Event(
            str(second), f"cdm.{kind}", "", f"2023-11-14T22:13:{second:02}Z", EventData(to=to, blueprint=blueprint)
        )

    events = [event("condition", 20, to="Ready"), event("load", 10), event("failed", 12), event("load", 11)]
    later = [
        event("unload", 40),
        event("load", 41),
        event("condition", 42, to="Progressing"),
        event("condition", 50, to="Ready"),
    ]
    found = joined([*events, event("unload", 30, 8), event("lost", 1, 0), *later])
    assert found[7].shown == "2 load, 1 failed, Ready after 10 s"
    assert found[8].shown == "1 unload"
    assert len(found) == 2


def test_of_nodes_that_are_forgotten_nothing_is_kept() -> None:
    journal, registration = Journal(), Registration(incarnation="a")
    for number in range(3):
        journal.note_node(ValuePut(NodeKey(n(number)), registration, 1, 1.0))
        journal.note_gone(NodeLeft(n(number)), 2.0)
        journal.note_forgotten(ValueRemove(SeenKey(n(number)), 3))
    assert journal._nodes == {}


def test_every_state_of_slices_has_a_kind_of_its_own() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert {state.lower() for state in SliceState} <= set(KINDS)
