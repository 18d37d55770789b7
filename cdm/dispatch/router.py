"""Typed dispatch: a receiver's annotation is its only declaration.

::

    class Printer:
        @receiver
        def on_blueprint(self, put: ValuePut[BlueprintKey, Blueprint]) -> None: ...

A router is wired once, with the objects that receive and the messages that will be sent. Whatever does not fit (a
receiver without a usable annotation, a receiver that nothing is sent to, a message that nobody receives) is a
`WiringError` then, not a surprise later. At run time a message costs one dictionary look-up of its topic; the list
behind a topic that is seen for the first time is worked out from the annotations, base classes included.

A topic's receivers are called in the order in which their objects were given to the router, and those of one object in
the order in which its class defines them: a base class's first, an overridden method in the place of what it overrides.

Receivers are synchronous, so that each message is atomic on the event loop. An exception that a receiver raises goes
to the caller of `Router.route`.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cdm.dispatch.messages import KeyedMessage, KeyRejected, Message, RejectedKeyRemoved, Topic
from cdm.errors import WiringError
from cdm.model.keys import Key

Receiver = Callable[[Any], None]
_MARK = "__cdm_receiver__"
F = TypeVar("F", bound=Callable[..., None])


def receiver(method: F) -> F:
    """Mark a method as a receiver of the messages that its one parameter is annotated with."""
    setattr(method, _MARK, True)
    return method


class Router:
    """Hands each message to the receivers whose annotation covers it.

    Args:
        receivers: objects with `receiver` methods, in the order in which they are to be called.
        sends: the message types that will be routed, written as in an annotation (``ValuePut[SliceKey, SliceValue]``).

    Raises:
        WiringError: a receiver and what is sent do not fit together.
    """

    def __init__(self, receivers: Iterable[object], sends: Iterable[Any]) -> None:
        self._wired = [wire for each in receivers for wire in _receivers_of(each)]
        self._table = _Table(self._wired)
        sent = {topic for annotation in sends for topic in _topics(annotation, "sends")}
        for topic in sorted(sent, key=_show):
            self._table[topic]  # raises where nobody receives it
        for method, topics in self._wired:
            for topic in topics:
                if not any(_covers(topic, each) for each in sent):
                    raise WiringError(f"{method.__qualname__} receives {_show(topic)}, which is never sent")

    def route(self, message: Message) -> None:
        """Give the message to all its receivers, in order.

        Raises:
            WiringError: the message was not declared as sent, and nobody receives it.
            Exception: whatever a receiver raises; later receivers do not get the message.
        """
        for receive in self._table[message.topic]:
            receive(message)


class _Table(dict[Topic, tuple[Receiver, ...]]):
    """Topic to receivers, at least one; a topic that is looked up for the first time is resolved and kept.

    Raises:
        WiringError: on looking up a topic that nobody receives.
    """

    def __init__(self, wired: list[tuple[Any, tuple[Topic, ...]]]) -> None:
        super().__init__()
        self._wired = wired

    def __missing__(self, topic: Topic) -> tuple[Receiver, ...]:
        found = tuple(method for method, topics in self._wired if any(_covers(each, topic) for each in topics))
        if not found:
            raise WiringError(f"nobody receives {_show(topic)}")
        self[topic] = found
        return found


def _covers(wanted: Topic, topic: Topic) -> bool:
    message, key = wanted
    if not issubclass(topic[0], message):
        return False
    return key is None or (topic[1] is not None and issubclass(topic[1], key))


def _receivers_of(instance: object) -> Iterator[tuple[Any, tuple[Topic, ...]]]:
    kind = type(instance)
    found = False
    for name in dict.fromkeys(name for base in reversed(kind.__mro__) for name in vars(base)):
        function = getattr(kind, name, None)  # which may override a base class's
        if inspect.isfunction(function) and getattr(function, _MARK, False):
            found = True
            yield getattr(instance, name), _signature(function)
    if not found:
        raise WiringError(f"{kind.__name__} has no @receiver method")


def _signature(function: Callable[..., Any]) -> tuple[Topic, ...]:
    where = function.__qualname__
    if inspect.iscoroutinefunction(function):
        raise WiringError(f"{where} is a coroutine; receivers are synchronous")
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 2 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise WiringError(f"{where} must take exactly one message")
    try:
        annotation = get_type_hints(function).get(parameters[1].name)
    except NameError as error:
        raise WiringError(f"{where}: {error}; annotations of receivers are needed at run time") from None
    if annotation is None:
        raise WiringError(f"{where} does not say which message it receives")
    return tuple(_topics(annotation, where))


def _topics(annotation: Any, where: str) -> Iterator[Topic]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _topics(each, where)
        return
    message = origin or annotation
    # Any is a class from Python 3.11 on, so a bare isinstance check would let it through.
    if not (isinstance(message, type) and issubclass(message, Message)):
        raise WiringError(f"{where}: {annotation!r} is not a message")
    if not issubclass(message, (KeyedMessage, KeyRejected, RejectedKeyRemoved)):
        yield (message, None)
        return
    arguments = get_args(annotation)
    if not arguments:
        yield (message, Key)
        return
    values = arguments[1:]
    for key in _keys(arguments[0], where):
        for value in values:
            _check_value(key, value, where)
        yield (message, key)


def _keys(annotation: Any, where: str) -> Iterator[type[Key]]:
    if get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _keys(each, where)
        return
    if not (isinstance(annotation, type) and issubclass(annotation, Key)):
        raise WiringError(f"{where}: {annotation!r} is not a key")
    yield annotation


def _check_value(key: type[Key], value: Any, where: str) -> None:
    if value is Any or value is object or key is Key:
        return
    allowed = get_args(value) if get_origin(value) in (Union, types.UnionType) else (value,)
    if key.value_type not in allowed:
        raise WiringError(f"{where}: under {key.__name__} there is {key.value_type.__name__}, not {value!r}")


def _show(topic: Topic) -> str:
    message, key = topic
    return message.__name__ if key is None else f"{message.__name__}[{key.__name__}]"
