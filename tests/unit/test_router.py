from __future__ import annotations

from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import pytest

from cdm.dispatch import messages
from cdm.dispatch.messages import (
    MESSAGES,
    DeclaredPut,
    KeyedMessage,
    KeyRejected,
    LeaderChange,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
)
from cdm.dispatch.router import Router, receiver
from cdm.errors import WiringError
from cdm.model.artifact import NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import ARTIFACTS, LAYOUTS, BlueprintKey, Key, LeaseKey, NodeKey, SliceKey, StatusKey
from cdm.model.node import Registration
from cdm.model.slice import SliceState, SliceValue
from cdm.model.status import Status
from tests.bench.deciding import Nothing
from tests.unit.support import APP, n

BLUEPRINT = ValuePut(BlueprintKey(APP), Blueprint(3), 1)
SLICE = ValuePut(SliceKey(n(1), APP), SliceValue(SliceState.LOAD), 2)
SLICE_GONE: ValueRemove[SliceKey, SliceValue] = ValueRemove(SliceKey(n(1), APP), 3)
NODE = ValuePut(NodeKey(n(1)), Registration(), 4)
T = TypeVar("T")


class Base:
    def __init__(self, name: str = "", heard: list[Any] | None = None) -> None:
        self.name = name
        self.heard: list[Any] = [] if heard is None else heard


class Blueprints(Base):
    @receiver
    def on_blueprint(self, put: ValuePut[BlueprintKey, Blueprint]) -> None:
        self.heard.append((self.name, put))


class Ticks(Base):
    @receiver
    def on_tick(self, tick: Tick) -> None:
        self.heard.append((self.name, tick))


class UnionOfMessages(Base):
    @receiver
    def on_node(self, change: NodeLeft | NodeDied) -> None:
        self.heard.append(change)


class OldUnion(Base):
    @receiver
    def on_node(self, change: Union[NodeLeft, NodeDied]) -> None:  # noqa: UP007 - people write it so
        self.heard.append(change)


class UnionOfKeys(Base):
    @receiver
    def on_put(self, put: ValuePut[BlueprintKey | SliceKey, Any]) -> None:
        self.heard.append(put)


class UnionOfGenerics(Base):
    @receiver
    def on_slice(self, change: ValuePut[SliceKey, SliceValue] | ValueRemove[SliceKey, SliceValue] | Tick) -> None:
        self.heard.append(change)


class Everything(Base):
    @receiver
    def on_any(self, message: Message) -> None:
        self.heard.append(message)


class EveryPut(Base):
    @receiver
    def on_put(self, put: ValuePut[Key, Any]) -> None:
        self.heard.append(put)


class BarePut(Base):
    @receiver
    def on_put(self, put: ValuePut) -> None:  # type: ignore[type-arg]
        self.heard.append(put)


class EveryKeyed(Base):
    @receiver
    def on_keyed(self, message: KeyedMessage[SliceKey]) -> None:
        self.heard.append(message)


class Rejections(Base):
    @receiver
    def on_rejected(self, rejected: KeyRejected[SliceKey] | RejectedKeyRemoved[SliceKey]) -> None:
        self.heard.append(rejected)


ALL_SENT = (ValuePut[BlueprintKey, Blueprint], ValuePut[SliceKey, SliceValue], ValueRemove[SliceKey, SliceValue], Tick)


def test_a_message_reaches_the_receiver_whose_annotation_covers_it() -> None:
    each = Blueprints()
    Router([each], [ValuePut[BlueprintKey, Blueprint]]).route(BLUEPRINT)
    assert each.heard == [("", BLUEPRINT)]


def test_receivers_are_called_in_the_order_in_which_they_were_given() -> None:
    heard: list[Any] = []
    receivers = [Ticks(name, heard) for name in "cabd"]
    router = Router(receivers, [Tick])
    for at in range(3):
        router.route(Tick(at))
    assert [name for name, _ in heard] == list("cabd") * 3


class InOrder(Base):
    """Its names are not in alphabetical order."""

    @receiver
    def when_it_ticks(self, tick: Tick) -> None:
        self.heard.append("first")

    @receiver
    def on_tick(self, tick: Tick) -> None:
        self.heard.append("second")

    @receiver
    def after(self, message: Message) -> None:
        self.heard.append("third")


class Derived(InOrder):
    @receiver
    def a_new_one(self, tick: Tick) -> None:
        self.heard.append("fourth")

    @receiver
    def on_tick(self, tick: Tick) -> None:
        self.heard.append("instead of second")


def test_the_receivers_of_one_object_are_called_as_they_are_defined_whatever_their_names() -> None:
    each = InOrder()
    Router([each], [Tick]).route(Tick(1))
    assert each.heard == ["first", "second", "third"]


def test_a_base_classes_receivers_come_first_and_what_overrides_one_takes_its_place() -> None:
    each = Derived()
    Router([each], [Tick]).route(Tick(1))
    assert each.heard == ["first", "instead of second", "third", "fourth"]


def test_the_list_of_messages_is_complete() -> None:
    """Every class of message, about every kind of key that a bucket is for."""
    listed = {get_origin(each) or each for each in MESSAGES}
    keyed = {get_args(each) for each in MESSAGES if get_origin(each) is ValuePut}
    defined = {each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Message)}
    assert listed == defined - {Message, KeyedMessage, DeclaredPut}, "the last is received as what it is derived from"
    assert keyed == {(kind, kind.value_type) for layout in (*LAYOUTS, ARTIFACTS) for kind in layout.kinds}
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("kind", [UnionOfMessages, OldUnion])
def test_a_union_receives_each_of_its_members_and_nothing_else(kind: type[Base]) -> None:
    each, ticks = kind(), Ticks()
    router = Router([each, ticks], [NodeLeft, NodeDied, Tick])
    router.route(NodeLeft(n(1)))
    router.route(Tick(1))
    router.route(NodeDied(n(2)))
    assert each.heard == [NodeLeft(n(1)), NodeDied(n(2))]
    assert ticks.heard == [("", Tick(1))]


def test_a_union_of_keys_receives_each_key() -> None:
    each = UnionOfKeys()
    router = Router([each], [ValuePut[BlueprintKey, Blueprint], ValuePut[SliceKey, SliceValue]])
    router.route(BLUEPRINT)
    router.route(SLICE)
    assert each.heard == [BLUEPRINT, SLICE]


def test_what_is_sent_may_be_a_union_too() -> None:
    each = UnionOfKeys()
    router = Router([each], [ValuePut[BlueprintKey | SliceKey, Any]])
    router.route(SLICE)
    assert each.heard == [SLICE]


def test_a_union_of_generics_and_plain_messages_receives_them_all() -> None:
    each = UnionOfGenerics()
    router = Router([each], ALL_SENT[1:])
    for message in (SLICE, SLICE_GONE, Tick(1)):
        router.route(message)
    assert each.heard == [SLICE, SLICE_GONE, Tick(1)]


def test_a_base_class_receives_everything_below_it() -> None:
    each = Everything()
    router = Router([each], ALL_SENT)
    messages: list[Message] = [SLICE, BLUEPRINT, SLICE_GONE, Tick(1)]
    for message in messages:
        router.route(message)
    assert each.heard == messages


@pytest.mark.parametrize("kind", [EveryPut, BarePut])
def test_the_base_of_keys_receives_puts_of_every_key_and_no_removes(kind: type[Base]) -> None:
    each, slices = kind(), UnionOfGenerics()
    router = Router([each, slices], ALL_SENT)
    for message in (SLICE, BLUEPRINT, SLICE_GONE):
        router.route(message)
    assert each.heard == [SLICE, BLUEPRINT]


def test_a_keyed_base_class_receives_every_message_about_its_key() -> None:
    each, blueprints = EveryKeyed(), Blueprints()
    router = Router([each, blueprints], ALL_SENT[:3])
    for message in (SLICE, BLUEPRINT, SLICE_GONE):
        router.route(message)
    assert each.heard == [SLICE, SLICE_GONE]


def test_rejected_keys_are_told_apart_by_the_kind_that_belongs_there() -> None:
    each = Rejections()
    router = Router([each], [KeyRejected[SliceKey], RejectedKeyRemoved[SliceKey]])
    router.route(KeyRejected(SliceKey, "?", "bad", 1))
    router.route(RejectedKeyRemoved(SliceKey, "?"))
    assert len(each.heard) == 2
    with pytest.raises(WiringError, match="nobody receives"):
        router.route(KeyRejected(BlueprintKey, "?", "bad", 1))


def test_a_receiver_in_a_base_class_is_inherited() -> None:
    class Child(Ticks):
        pass

    each = Child()
    Router([each], [Tick]).route(Tick(1))
    assert each.heard == [("", Tick(1))]


def test_one_object_may_hear_a_message_through_two_receivers() -> None:
    class Both(Ticks, Everything):
        pass

    each = Both()
    Router([each], [Tick]).route(Tick(1))
    assert len(each.heard) == 2


def test_a_message_that_nobody_receives_is_a_wiring_error_at_once() -> None:
    with pytest.raises(WiringError, match=r"nobody receives ValuePut\[SliceKey\]"):
        Router([Blueprints()], [ValuePut[BlueprintKey, Blueprint], ValuePut[SliceKey, SliceValue]])


def test_a_receiver_that_nothing_is_sent_to_is_a_wiring_error_at_once() -> None:
    with pytest.raises(WiringError, match=r"on_tick receives Tick, which is never sent"):
        Router([Blueprints(), Ticks()], [ValuePut[BlueprintKey, Blueprint]])


def test_every_member_of_a_receivers_union_must_be_sent() -> None:
    with pytest.raises(WiringError, match=r"NodeDied, which is never sent"):
        Router([UnionOfMessages()], [NodeLeft])
    with pytest.raises(WiringError, match=r"ValuePut\[SliceKey\], which is never sent"):
        Router([UnionOfKeys()], [ValuePut[BlueprintKey, Blueprint]])


def test_an_undeclared_message_is_a_wiring_error_when_it_is_routed() -> None:
    router = Router([Ticks()], [Tick])
    for _ in range(2):
        with pytest.raises(WiringError, match="nobody receives NodeLeft"):
            router.route(NodeLeft(n(1)))


def test_an_exception_reaches_the_caller_and_later_receivers_are_not_called() -> None:
    class Broken:
        @receiver
        def on_tick(self, tick: Tick) -> None:
            raise LookupError("broken")

    first, last = Ticks(), Ticks()
    router = Router([first, Broken(), last], [Tick])
    with pytest.raises(LookupError, match="broken"):
        router.route(Tick(1))
    assert len(first.heard) == 1
    assert last.heard == []


def test_a_coroutine_cannot_receive() -> None:
    class Coroutine:
        @receiver  # type: ignore[type-var]
        async def on_tick(self, tick: Tick) -> None: ...

    with pytest.raises(WiringError, match="coroutine"):
        Router([Coroutine()], [Tick])


class Missing:
    @receiver
    def on_tick(self, tick) -> None: ...  # type: ignore[no-untyped-def]


class AnyMessage:
    @receiver
    def on_tick(self, tick: Any) -> None: ...


class NoMessage:
    @receiver
    def on_tick(self, tick: int) -> None: ...


class NoMessageInUnion:
    @receiver
    def on_tick(self, tick: Tick | None) -> None: ...


class AMessageClass:
    @receiver
    def on_tick(self, tick: type[Tick]) -> None: ...


class NoKey:
    @receiver
    def on_put(self, put: ValuePut[int, str]) -> None: ...  # type: ignore[type-var]


class AnyKey:
    @receiver
    def on_put(self, put: ValuePut[Any, Any]) -> None: ...


class WrongValue:
    @receiver
    def on_put(self, put: ValuePut[BlueprintKey, SliceValue]) -> None: ...


class WrongValueInUnion:
    @receiver
    def on_put(self, put: ValuePut[BlueprintKey, Blueprint] | ValueRemove[SliceKey, Blueprint]) -> None: ...


class WrongValueForOneKey:
    @receiver
    def on_put(self, put: ValuePut[BlueprintKey | SliceKey, Blueprint]) -> None: ...


class TooFew:
    @receiver
    def on_tick(self) -> None: ...


class TooMany:
    @receiver
    def on_tick(self, tick: Tick, other: Tick) -> None: ...


class Variadic:
    @receiver
    def on_tick(self, *ticks: Tick) -> None: ...


class KeywordOnly:
    @receiver
    def on_tick(self, *, tick: Tick) -> None: ...


class NoReceiver:
    def on_tick(self, tick: Tick) -> None: ...


class NotAtRunTime:
    @receiver
    def on_tick(self, tick: NowhereDefined) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Missing, "does not say which message"),
        (AnyMessage, "not a message"),
        (NoMessage, "not a message"),
        (NoMessageInUnion, "not a message"),
        (AMessageClass, "not a message"),
        (NoKey, "not a key"),
        (AnyKey, "not a key"),
        (WrongValue, "under BlueprintKey there is Blueprint"),
        (WrongValueInUnion, "under SliceKey there is SliceValue"),
        (WrongValueForOneKey, "under SliceKey there is SliceValue"),
        (TooFew, "exactly one message"),
        (TooMany, "exactly one message"),
        (Variadic, "exactly one message"),
        (KeywordOnly, "exactly one message"),
        (NoReceiver, "has no @receiver"),
        (NotAtRunTime, "needed at run time"),
    ],
)
def test_an_unusable_receiver_is_a_wiring_error_that_names_it(kind: type[Any], complaint: str) -> None:
    with pytest.raises(WiringError, match=complaint) as caught:
        Router([kind()], [Tick, *ALL_SENT])
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize("sent", [Any, int, None, ValuePut[BlueprintKey, SliceValue], "Tick"])
def test_what_is_sent_is_checked_as_receivers_are(sent: Any) -> None:
    with pytest.raises(WiringError):
        Router([Everything()], [Tick, sent])


class WholeUnion(Base):
    @receiver
    def on_put(self, put: ValuePut[BlueprintKey | SliceKey, Blueprint | SliceValue]) -> None:
        self.heard.append(put)


def test_a_union_of_values_may_stand_beside_a_union_of_keys() -> None:
    each = WholeUnion()
    Router([each], [ValuePut[BlueprintKey, Blueprint], ValuePut[SliceKey, SliceValue]]).route(SLICE)
    assert each.heard == [SLICE]


class ChildKey(SliceKey, frozen=True):
    pass


def test_a_derived_key_reaches_the_receivers_of_its_base() -> None:
    class Slices(Base):
        @receiver
        def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
            self.heard.append(put)

    each = Slices()
    derived = ValuePut(ChildKey(n(1), APP), SliceValue(SliceState.LOAD), 2)
    Router([each], [ValuePut[SliceKey, SliceValue]]).route(derived)
    assert each.heard == [derived]


class Envelope(Message, Generic[T], frozen=True):
    """A generic message of somebody's own."""

    content: T


def test_a_generic_message_without_key_goes_by_its_class() -> None:
    class Envelopes(Base):
        @receiver
        def on_envelope(self, envelope: Envelope[int]) -> None:
            self.heard.append(envelope)

    each = Envelopes()
    Router([each], [Envelope[int]]).route(Envelope(1))
    assert each.heard == [Envelope(1)]


def test_wiring_an_instance_attribute_that_only_looks_like_a_method_is_harmless() -> None:
    class Odd(Ticks):
        @property
        def on_fire(self) -> int:
            raise AssertionError("wiring must not evaluate properties")

    Router([Odd()], [Tick]).route(Tick(1))


@pytest.mark.parametrize(
    ("message", "topic"),
    [
        (Tick(1), (Tick, None)),
        (LeaderChange(None, 1, False), (LeaderChange, None)),
        (NodeJoined(n(1), Registration()), (NodeJoined, None)),
        (SLICE, (ValuePut, SliceKey)),
        (SLICE_GONE, (ValueRemove, SliceKey)),
        (ValueRejected(LeaseKey(), "bad", 1), (ValueRejected, LeaseKey)),
        (KeyRejected(NodeKey, "?", "bad", 1), (KeyRejected, NodeKey)),
        (ValuePut(StatusKey("x"), Status, 1), (ValuePut, StatusKey)),
    ],
)
def test_a_messages_topic_is_its_class_and_the_class_of_its_key(message: Message, topic: object) -> None:
    assert message.topic == topic


def test_the_topic_of_a_node_message_does_not_depend_on_the_node() -> None:
    assert NodeDied(NodeId("a")).topic == NodeDied(NodeId("b")).topic


def test_the_benchmark_of_the_router_knows_every_message() -> None:
    Router((Nothing(),), MESSAGES)
