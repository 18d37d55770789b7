"""A large bucket is held against its mirror in parts, and what a listing would find is found as soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from cdm.model.keys import SLICES
from cdm.store import rereader
from cdm.store.consumer import Hearing
from tests.harness.servers import FORGIVEN, NatsServer, running_server
from tests.harness.store import Watching, watching
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

KEY = "org.example/one/1.0.0"
NODES_OWN: dict[str, Any] = {"keys": "n1.>", "hearing": Hearing(of_each_node=True)}
"""What a node follows."""


def slice_value(term: int = 1) -> dict[str, Any]:
    return {"state": "LOAD", "term": term}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of a few keys count as large, and are read in half a second where they are listed in a quarter of an
    hour.
    """
    for name, number in (("LARGE", 3), ("AT_ONCE", 3), ("PART", 5), ("TURN", 2), ("PACE", 0.0005)):
        monkeypatch.setattr(rereader, name, number)


DAMAGES = ["missed put", "missed replacement", "missed delete", "vanished"]


async def do(damage: str, watched: Watching, user: Raw, names: list[str], other: str) -> None:
    """Have the mirror not know the fourth of the names as it is, or another name that is not there."""
    known = watched.watch._mirror.known
    match damage:
        case "missed put":
            del known[names[3]], watched.mirror.values[names[3]]
        case "missed replacement":
            known[names[3]] = replace(known[names[3]], revision=known[names[2]].revision)
            watched.mirror.values[names[3]] = ("good", known[names[2]].revision)
        case "missed delete":
            known[other] = known[names[3]]
        case _:
            await user.api("STREAM.PURGE.KV_slices", {"filter": f"$KV.slices.{names[3]}"})


@pytest.mark.usefixtures("large")
async def test_a_large_bucket_is_held_against_its_mirror_without_being_listed(server: NatsServer) -> None:
    names = [f"n{number}.{KEY}" for number in range(8)]
    async with raw(server) as user, watching(server, SLICES, relist_interval=900.0) as watched:
        for name in (*names, "n9.out-of-order"):
            await user.put("slices", name, slice_value())
        await user.put("slices", names[0], slice_value(2))
        await watched.watch.caught_up()
        watched.watch.relist()  # large by now
        await watched.watch.caught_up()
        told, listings, reread = len(watched.mirror.heard), watched.watch.listings, watched.watch._rereader
        for number in range(20):  # beside changes, which differ for a moment
            await user.put("slices", names[number % 8], slice_value(3))
            await user.delete("slices", names[number * 3 % 8])
            await anyio.sleep(0.05)
        for name in names:
            await user.put("slices", name, slice_value(4))
        done = reread.passes
        await eventually(lambda: reread.passes >= done + 2, 30, "it is read twice more")
        await watched.watch.caught_up()
        assert watched.watch.listings == listings
        assert len(watched.mirror.heard) > told + 20, "updates were told meanwhile"
        assert await watched.equals(user)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_a_mirror_of_a_large_bucket_missed_is_found_in_time(server: NatsServer, damage: str) -> None:
    names = [f"n{number}.{KEY}" for number in range(8)]
    async with raw(server) as user, watching(server, SLICES, relist_interval=900.0) as watched:
        for name in names:
            await user.put("slices", name, slice_value())
        await watched.watch.caught_up()
        watched.watch.relist()
        await watched.watch.caught_up()
        known, listings = watched.watch._mirror.known, watched.watch.listings
        await do(damage, watched, user, names, "n8.g/a/1")
        await eventually(lambda: watched.watch.listings > listings, 30, "everything is listed")
        await watched.watch.caught_up()
        assert {*known} == {*(await user.contents("slices"))}
        if damage in ("missed put", "vanished"):
            assert await watched.equals(user)


@pytest.mark.usefixtures("large")
async def test_a_large_bucket_is_listed_by_users_who_may_not_ask_for_parts_of_it(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    user = {"user": "u", "password": "p", "permissions": {"publish": {"deny": ["$JS.API.CONSUMER.MSG.NEXT.>"]}}}
    config.write_text(json.dumps({"authorization": {"users": [user]}, "no_auth_user": "u"}), encoding="utf-8")
    async with (
        running_server(arguments=["-c", str(config)]) as server,
        raw(server) as other,
        watching(server, SLICES, relist_interval=0.5) as watched,
    ):
        for number in range(8):
            await other.put("slices", f"n{number}.{KEY}", slice_value())
        await watched.watch.caught_up()
        listings = watched.watch.listings
        await eventually(lambda: watched.watch.listings >= listings + 3, 30, "it is listed now and then")
        await watched.watch.caught_up()
        assert await watched.equals(other)


# A node's keys


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's leader is asked within a second where a listing comes in a quarter of an hour."""
    monkeypatch.setattr(rereader, "PACE", 0.0005)


@pytest.mark.usefixtures("soon")
async def test_a_nodes_keys_are_asked_for_without_another_consumer(server: NatsServer) -> None:
    """In a cluster a consumer is work for all of its servers, and each node has one."""
    names = [f"n1.g/a/{number}" for number in range(8)]
    async with (
        raw(server) as user,
        watching(server, SLICES, relist_interval=900.0, **NODES_OWN) as watched,
    ):
        for name in (*names, "n1.out-of-order", "n1.back\\slash", "n1.\x0b\xff", "n2.g/a/1"):
            await user.put("slices", name, slice_value())
        await watched.watch.caught_up()
        told, reread = len(watched.mirror.heard), watched.watch._rereader
        sessions, listed = watched.watch.listings + watched.watch.resumes, watched.watch._mirror.listed_at
        for number in range(20):  # beside changes, which differ for a moment
            await user.put("slices", names[number % 8], slice_value(3))
            await user.delete("slices", names[number * 3 % 8])
            await anyio.sleep(0.05)
        for name in names[:4]:
            await user.put("slices", name, slice_value(4))
        done = reread.passes
        await eventually(lambda: reread.passes >= done + 2, 30, "they are asked for twice more")
        await watched.watch.caught_up()
        assert watched.watch.listings + watched.watch.resumes == sessions
        assert watched.watch._mirror.listed_at > listed, "that counts as a listing"
        assert len(watched.mirror.heard) > told + 20, "updates were told meanwhile"
        assert {*watched.watch._mirror.known} >= {*names[:4], "n1.out-of-order"}
        assert not any(name.startswith("n2") for name in watched.watch._mirror.known)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_the_mirror_of_a_nodes_keys_missed_is_found_in_time(server: NatsServer, damage: str) -> None:
    names = [f"n1.g/a/{number}" for number in range(8)]
    async with (
        raw(server) as user,
        watching(server, SLICES, relist_interval=900.0, **NODES_OWN) as watched,
    ):
        for name in (*names, "n2.g/a/1"):
            await user.put("slices", name, slice_value())
        await watched.watch.caught_up()
        known, listings = watched.watch._mirror.known, watched.watch.listings
        await do(damage, watched, user, names, "n1.g/b/1")
        await eventually(lambda: watched.watch.listings > listings, 30, "everything is listed")
        await watched.watch.caught_up()
        assert {*known} == {name for name in await user.contents("slices") if name.startswith("n1.")}


@pytest.mark.usefixtures("soon")
async def test_a_nodes_keys_are_listed_by_users_who_may_not_ask_for_them(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    user = {"user": "u", "password": "p", "permissions": {"publish": {"deny": ["$JS.API.STREAM.MSG.GET.>"]}}}
    config.write_text(json.dumps({"authorization": {"users": [user]}, "no_auth_user": "u"}), encoding="utf-8")
    async with (
        running_server(arguments=["-c", str(config)]) as server,
        raw(server) as other,
        watching(server, SLICES, relist_interval=0.5, **NODES_OWN) as watched,
    ):
        await other.put("slices", f"n1.{KEY}", slice_value())
        await watched.watch.caught_up()
        listings = watched.watch.listings
        await eventually(lambda: watched.watch.listings >= listings + 3, 30, "they are listed now and then")
        await watched.watch.caught_up()
        assert not watched.watch._rereader.serves(watched.watch._mirror)
        assert [*watched.watch._mirror.known] == [f"n1.{KEY}"]
