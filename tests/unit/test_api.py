"""The public API: everything that its users need is exported, and has the types that it promises."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, assert_type, get_args, get_origin, get_type_hints

import pytest

import cdm
from cdm import (
    MESSAGES,
    Artifact,
    Blueprint,
    BlueprintKey,
    Key,
    KeyRejected,
    Message,
    NodeId,
    Outbox,
    Registered,
    Router,
    SliceKey,
    SliceState,
    SliceValue,
    Tick,
    Topology,
    ValuePut,
    ValueRejected,
    ValueRemove,
    api,
    encode,
    legal,
    node_id,
    receiver,
)

ROOT = Path(__file__).parents[2]
PUBLIC = set(api.__all__)


def classes(annotation: Any) -> Iterator[type[Any]]:
    """The classes that an annotation names."""
    origin = get_origin(annotation)
    if isinstance(origin or annotation, type):
        yield origin or annotation
    for argument in get_args(annotation):
        yield from classes(argument)


def annotations_of(exported: Any) -> Iterator[Any]:
    """The annotations of a function, or of the fields and public methods of a class."""
    if not isinstance(exported, type):
        yield from get_type_hints(exported).values()
        return
    yield from get_type_hints(exported).values()
    for name, member in inspect.getmembers(exported):
        # What manager makes an Active of is its own affair.
        if name.startswith("_") and (name != "__init__" or exported is cdm.Active):
            continue
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function):
            yield from get_type_hints(function).values()


def test_what_is_exported_is_listed_in_order_and_can_be_imported() -> None:
    assert len(api.__all__) == len(PUBLIC)
    assert api.__all__ == sorted(api.__all__, key=lambda name: (not name.isupper(), name)), "constants first"
    for name in api.__all__:
        assert getattr(cdm, name) is getattr(api, name)


def test_every_message_and_what_it_is_about_is_exported() -> None:
    """A receiver's annotation needs nothing else."""
    needed = {each for message in MESSAGES for each in classes(message)}
    needed |= {each.value_type for each in needed if issubclass(each, Key)}
    assert {each.__name__ for each in needed} <= PUBLIC


@pytest.mark.parametrize("name", [name for name in api.__all__ if inspect.isclass(getattr(api, name))])
def test_what_an_exported_class_takes_and_gives_is_exported(name: str) -> None:
    ours = {
        each.__name__
        for annotation in annotations_of(getattr(api, name))
        for each in classes(annotation)
        if each.__module__.startswith("cdm.")
    }
    assert ours <= PUBLIC


def test_everything_that_the_documents_import_is_exported() -> None:
    imported: set[str] = set()
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        for code in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module == "cdm":
                    imported.update(alias.name for alias in node.names)
    assert {"Router", "receiver"} <= imported <= PUBLIC


def test_messages_are_typed_by_their_key_and_value() -> None:
    key = SliceKey(node_id("n1"), Artifact.parse("g:a:1"))
    put = ValuePut(key, SliceValue(SliceState.ACTIVE), 1)
    assert_type(put, ValuePut[SliceKey, SliceValue])
    assert_type(put.key, SliceKey)
    assert_type(put.key.node, NodeId)
    assert_type(put.value, SliceValue)
    assert_type(put.revision, int)
    remove: ValueRemove[BlueprintKey, Blueprint] = ValueRemove(BlueprintKey(key.artifact), 2)
    assert_type(remove.key, BlueprintKey)
    assert_type(ValueRejected[SliceKey, SliceValue](key, "bad", 3).key, SliceKey)
    assert_type(KeyRejected(SliceKey, "?", "bad", 4), KeyRejected[SliceKey])
    assert_type(encode(key), str)
    assert_type(legal(SliceState.LOAD, SliceState.LOADING), bool)
    assert put.topic == (ValuePut, SliceKey)


def test_a_receiver_keeps_the_type_of_its_method() -> None:
    class Slices:
        @receiver
        def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
            assert_type(put.value.state, SliceState)

        @receiver
        def on_gone(self, change: ValueRemove[SliceKey, SliceValue] | Tick) -> None:
            assert_type(change, ValueRemove[SliceKey, SliceValue] | Tick)

    on_slice: Callable[[ValuePut[SliceKey, SliceValue]], None] = Slices().on_slice
    assert_type(on_slice, Callable[[ValuePut[SliceKey, SliceValue]], None])
    router = Router([Slices()], [ValuePut[SliceKey, SliceValue], ValueRemove[SliceKey, SliceValue], Tick])
    assert_type(router, Router)
    route: Callable[[Message], None] = router.route
    route(Tick(1.0))


def test_the_topology_tells_of_nodes_by_type() -> None:
    topology = Topology(lambda message: None, 10.0)
    assert_type(topology.nodes.get(node_id("n1")), Registered | cdm.Missing | None)
    outbox = Outbox(lambda: None, lambda: None)
    assert_type(outbox.take_order(), cdm.Order | None)
    assert topology.nodes == {}
