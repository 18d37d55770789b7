"""Whoever holds a key does no harm with it: every stream is afterwards what it was, and what runs goes on."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from nats.aio.msg import Msg

from cdm.cli import Exit
from tests.harness.processes import Processes, command_line
from tests.harness.secure import fortress
from tests.harness.servers import FORGIVEN
from tests.harness.waiting import eventually, in_time
from tests.harness.wire import Rejection, Tenant
from tests.security.attacks import (
    BY_A_NODE,
    BY_ANYBODY,
    LISTENED,
    Attack,
    answers_of_the_server,
    batches,
    deliveries,
    openings,
    replies_of_ones_own,
    roll_ups,
)
from tests.security.site import MANAGER, THIEF, VICTIM, VICTIMS, Kept, Site

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

SETTLED = 0.2
"""Seconds after which what an attack sets off has happened."""


async def _contents(there: Site, who: str) -> dict[str, object]:
    """What there is, but for the traces of what the leader deleted of the thief's."""
    found = await there.contents(who)
    return {key: kept for key, kept in found.items() if not (key.startswith(f"slices {THIEF}.") and _is_trace(kept))}


def _is_trace(kept: object) -> bool:
    return isinstance(kept, Kept) and kept.value == ""


async def _cleared(there: Site) -> bool:
    """Whether the leader has deleted what an attack before left under the thief's own keys."""
    return not [key for key in await _contents(there, "operator") if key.startswith(f"slices {THIEF}.")]


async def _harmless(there: Site, who: str, attack: Attack) -> None:
    await eventually(there.at_rest)
    if who == "operator":
        await eventually(lambda: _cleared(there), 30, "nothing is left of attacks before")
    before = await _contents(there, who)
    heard = await there.user.overhear(LISTENED)
    async with there.found.client(who) as insider:
        await attack(insider)
        await anyio.sleep(SETTLED)
        assert insider.client.is_connected
    assert not heard or who == "operator"
    after = await _contents(there, who)
    assert {key: after.get(key) for key in {*before, *after} if before.get(key) != after.get(key)} == {}
    assert await there.at_rest()
    there.processes.unharmed()


@pytest.mark.parametrize("attack", BY_A_NODE)
async def test_a_node_does_no_harm(attacked: Site, attack: Attack) -> None:
    await _harmless(attacked, THIEF, attack)


@pytest.mark.parametrize("attack", BY_ANYBODY)
async def test_an_operator_reaches_nothing_that_is_not_an_operators(attacked: Site, attack: Attack) -> None:
    await _harmless(attacked, "operator", attack)


async def test_a_node_rolls_nothing_up(tmp_path: Path) -> None:
    async with _bare(tmp_path, before=False) as bare, bare.found.client(VICTIM) as victim:
        await victim.ask(f"$KV.slices.{VICTIM}.g/one/1", {"state": "ACTIVE"})
        before = await bare.contents()
        async with bare.found.client(THIEF) as insider:
            await roll_ups(insider)
        assert await bare.contents() == before


@asynccontextmanager
async def _bare(folder: Path, *, before: bool) -> AsyncIterator[Site]:
    """A site at which nothing runs."""
    async with fortress(folder, THIEF, VICTIM, before=before) as found:
        assert (await command_line("init", *found.options("admin"))).returncode == 0
        async with found.client("operator") as operator, found.client(found.managers[0]) as manager:
            yield Site(found, Processes(found.url, folder, ()), operator, manager)


async def test_what_a_node_asks_managers_for_is_one_consumer_for_each_reader(attacked: Site) -> None:
    before = await attacked.audit.consumers("slices")
    async with attacked.found.client(THIEF) as insider:
        thief = Tenant(insider.client, THIEF)
        for number in range(10):
            for reader in ("node", "agent"):
                await thief.ask(what="create", token=f"cdm-{number:x}", reader=reader)
        # The site's own come and go, too.
        await eventually(lambda: _at_most(attacked, before + 2))


async def _at_most(there: Site, most: int) -> bool:
    return await there.audit.consumers("slices") <= most


async def test_commands_come_through_while_a_node_holds_batches_open(attacked: Site) -> None:
    artifact = f"g/urgent-{secrets.token_hex(4)}/1"
    async with attacked.found.client(THIEF) as insider, anyio.create_task_group() as tasks:

        async def flood() -> None:
            while True:
                await batches(insider)

        tasks.start_soon(flood)
        await attacked.user.put("blueprints", artifact, 1)
        await in_time(lambda: _commanded(attacked, artifact), 1, "the command is given")
        tasks.cancel_scope.cancel()
    await attacked.user.delete("blueprints", artifact)
    await eventually(lambda: _gone(attacked, artifact))


async def _commanded(there: Site, artifact: str) -> bool:
    return f"{VICTIM}.{artifact}" in await there.audit.slices()


async def _gone(there: Site, artifact: str) -> bool:
    return not await _commanded(there, artifact)


# Reading


async def test_a_node_reads_nothing_of_others(attacked: Site) -> None:
    """Not what their keys hold, and not what they are called; neither by asking nor by listening."""
    heard: list[bytes] = []

    async def take(message: Msg) -> None:
        heard.append(message.subject.encode() + message.data + str(message.headers).encode())

    streams = ("KV_slices", "KV_blueprints", "KV_nodes", "KV_status")
    async with attacked.found.client(THIEF) as insider:
        for subject in (">", "$KV.>", "_INBOX_operator.>", f"cdm.watch.{VICTIM}.*", f"cdm.node.{VICTIM}", "_R_.>"):
            await insider.client.subscribe(subject, cb=take)
        own = insider.client.new_inbox()
        await insider.client.subscribe(own, cb=take)
        asked = [(subject, body) for subject, body in openings(insider) if "artifacts" not in subject]
        for stream in streams:
            last = {"last_by_subj": f"$KV.{stream[3:]}.>"}
            many = {"multi_last": ["$KV.>"], "batch": 100}
            names = {"subjects_filter": ">"}
            asked += [(f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode()) for body in (last, many)]
            asked += [(f"$JS.API.STREAM.MSG.GET.{stream}", json.dumps(last).encode())]
            asked += [(f"$JS.API.STREAM.INFO.{stream}", json.dumps(names).encode())]
            asked += [(f"$JS.API.CONSUMER.{call}.{stream}", b"") for call in ("NAMES", "LIST")]
            for name in (f"cdm-node-{VICTIM}", f"cdm-node-{THIEF}"):
                asked += [(f"$JS.API.CONSUMER.{call}.{stream}.{name}", b"") for call in ("INFO", "MSG.NEXT", "DELETE")]
        asked += [(f"$JS.API.DIRECT.GET.KV_slices.$KV.slices.{VICTIM}.{VICTIMS}", b"")]
        asked += [(f"$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.{VICTIM}", b"")]
        asked += [(f"cdm.watch.{node}", b'{"what":"subjects"}') for node in (THIEF, VICTIM)]
        asked += [(f"cdm.watch.{THIEF}", b'{"what":"create","token":"cdm-1","after":0}')]
        for subject, body in asked:
            await insider.client.publish(subject, body, reply=own)
        await insider.settle()
        await anyio.sleep(SETTLED)
    assert heard, "what it may ask is answered"
    # The names of streams, servers and accounts tell nothing of nodes.
    assert not [each for each in heard if VICTIM.encode() in each or b"victim" in each]


# Being somebody else


@pytest.mark.parametrize("name", ["alone"])
@pytest.mark.parametrize(
    ("options", "denied"),
    [
        (("--id", VICTIM, "--role", "agent"), f'publish "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.{VICTIM}"'),
        (("--id", THIEF, "--role", "manager"), 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
        (("--id", VICTIM), f'publish "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.{VICTIM}"'),
        (("--id", MANAGER), f'publish "$JS.API.DIRECT.GET.KV_nodes.$KV.nodes.{MANAGER}"'),
        (("--id", THIEF, "--role", "all"), 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
        (("--id", MANAGER, "--role", "manager"), 'publish "$JS.API.STREAM.INFO.KV_blueprints"'),
    ],
)
async def test_a_node_is_nobody_else(
    request: pytest.FixtureRequest, name: str, options: tuple[str, ...], denied: str
) -> None:
    there: Site = request.getfixturevalue(name)
    refused = await command_line("node", *options, *there.found.options(THIEF))
    assert refused.returncode == Exit.DENIED, refused.stderr
    assert denied.encode() in refused.stderr


async def test_a_manager_registers_as_no_other_node(alone: Site) -> None:
    async with alone.found.client(MANAGER) as insider:
        assert await insider.may_publish(f"$KV.nodes.{THIEF}", b"{}") is False
        assert await insider.may_publish(f"$KV.nodes.{THIEF}.intent", b"{}") is False
        assert await insider.may_publish("$KV.blueprints.g/evil/1", b"1") is False


# That these are attacks


@pytest.mark.parametrize("attack", [replies_of_ones_own, answers_of_the_server, deliveries])
async def test_the_attacks_do_harm_where_all_nodes_are_in_one_account(tmp_path: Path, attack: Attack) -> None:
    async with _bare(tmp_path, before=True) as bare:
        before = await bare.contents()
        heard = await bare.user.overhear(LISTENED)
        async with bare.found.client(THIEF) as insider:
            await attack(insider)
        await eventually(lambda: heard or _harmed(bare, before))


async def _harmed(there: Site, before: dict[str, object]) -> bool:
    try:
        return await there.contents() != before
    except Rejection:
        return True  # a stream is gone
