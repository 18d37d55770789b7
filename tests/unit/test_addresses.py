"""Where a node's slices are reached: what its operator says, or else what the connection to NATS shows."""

from __future__ import annotations

from functools import partial

import pytest

from cdm.cli.options import address_of_slices
from cdm.errors import UsageError
from cdm.model.slice import SliceState as S
from cdm.node.address import OwnAddress
from tests.harness.waiting import eventually
from tests.unit.test_agent import World, world

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("chosen", "seen", "told"),
    [
        ("gateway.example.org", ["10.0.0.7"], ["gateway.example.org"]),
        (None, [None, "10.0.0.7", None], [None, "10.0.0.7", "10.0.0.7"]),
        (None, ["::ffff:10.0.0.7"], ["10.0.0.7"]),
        (None, ["fd00::7", "fd00::8"], ["fd00::7", "fd00::8"]),
        # A server on this machine, and one elsewhere.
        (None, ["127.0.0.1", "10.0.0.7", "127.0.0.1", "::1"], ["127.0.0.1", "10.0.0.7", "10.0.0.7", "10.0.0.7"]),
        (None, ["127.0.0.1", "::1"], ["127.0.0.1", "127.0.0.1"]),
    ],
)
def test_an_address_that_others_reach_is_kept_for_one_that_they_do_not(
    chosen: str | None, seen: list[str | None], told: list[str | None]
) -> None:
    connections = iter(seen)
    address = OwnAddress(chosen, lambda: next(connections))
    assert [address() for _ in told] == told


@pytest.mark.parametrize("text", ["10.0.0.7", "::1", " fd00::7 ", "localhost", "node-1", "a.example.org.", "my_host"])
def test_a_host_name_or_an_address_is_taken(text: str) -> None:
    assert address_of_slices(text) == text.strip()


@pytest.mark.parametrize(
    "text", ["10.0.0.7:80", "[::1]", "http://x", "a b", "a/b", "-x", "a..b", ".", "x" * 254, "a\nb", "ü"]
)
def test_anything_else_is_refused_as_it_was_typed(text: str) -> None:
    with pytest.raises(UsageError, match="write a host name or an IP address, without a port") as refused:
        address_of_slices(text)
    assert repr(text) in str(refused.value)


def tells(it: World, address: str) -> bool:
    return it.values[-1].address == address


@pytest.mark.anyio
async def test_what_serves_tells_when_the_node_has_another_address() -> None:
    address: list[str | None] = [None]
    made = World(address=lambda: address[0])
    async with world(made) as it:
        await it.up()
        assert it.values[-1].address is None
        for known in ("10.0.0.7", "10.0.0.8"):
            address[0] = known
            it.agent.wake()
            await eventually(partial(tells, it, known))
            assert it.written[-2:] == [S.ACTIVE, S.ACTIVE]
        address[0] = None
        it.say(S.DEACTIVATE)
        await it.reaches(S.LOADED)
        assert it.values[-1].address is None
