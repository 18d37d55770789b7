"""The demo's requests are counted: which version has answered, and each that was not answered as it should be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import anyio
import pytest

from cdm.cli.demo.asking import Caller
from cdm.cli.demo.web import HelloHandler
from cdm.dispatch.messages import ValuePut, ValueRemove
from cdm.model.artifact import Service, node_id
from cdm.model.keys import NodeKey, SliceKey
from cdm.model.node import Registration
from cdm.model.slice import SliceState, SliceValue
from tests.harness.servers import free_port
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.quick]

SERVICE, NODE = Service("org.example", "slice"), node_id("node-1")
KEY = SliceKey(NODE, SERVICE.version("1.1.0"))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the demo's web service listens, under the name of an instance of 1.1.0."""
    monkeypatch.setenv("CDM_SLICE", str(KEY).removeprefix("slices/"))
    with ThreadingHTTPServer(("127.0.0.1", 0), HelloHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def caller() -> Caller:
    """Knows a node."""
    caller = Caller(SERVICE)
    caller.view.take(ValuePut(NodeKey(NODE), Registration(address="127.0.0.1"), 1))
    return caller


def serves(caller: Caller, port: int, key: SliceKey = KEY) -> None:
    caller.view.take(ValuePut(key, SliceValue(SliceState.ACTIVE, 1, port=port), 2))


async def failure(caller: Caller) -> str:
    """What the first failed request ran into."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run)
        caller.begin()
        await eventually(lambda: bool(caller.failures), 10)
        await caller.stop()
    return caller.failures[0]


async def test_what_is_answered_is_counted_by_version(caller: Caller, port: int) -> None:
    serves(caller, port)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run)
        caller.begin()
        await eventually(lambda: caller.asked >= 10, 10)
        await caller.stop()
    assert caller.failures == []
    assert caller.answers == {"1.1.0": caller.asked}


async def test_nobody_to_ask_is_a_failure(caller: Caller, port: int) -> None:
    serves(caller, port)
    caller.view.take(ValueRemove(KEY, 3))
    assert await failure(caller) == "there was nobody to ask"


async def test_a_port_where_nobody_listens_is_a_failure(caller: Caller) -> None:
    serves(caller, port := free_port())
    assert f"127.0.0.1:{port}" in await failure(caller)
    assert not caller.answers


async def test_the_answer_of_another_version_is_a_failure(caller: Caller, port: int) -> None:
    serves(caller, port, SliceKey(NODE, SERVICE.version("1.0.0")))
    assert await failure(caller) == "node-1/org.example:slice:1.1.0 replied where 1.0.0 was asked"
