"""Anything at any time: commands, and crashes of slices, of their keeper and of the node, on real processes.

While that goes on no slice lives twice. In the end what lives is what the keys say.

``CDM_TEST_COMMANDS`` says about how many commands and crashes there are in all, ``CDM_TEST_SEED`` which ones; what the
node does between them is never the same again.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from cdm.model.manifest import Restart
from cdm.model.slice import SliceState, legal
from tests.harness.judging import assert_legal
from tests.harness.proc import children
from tests.harness.processes import Process, node_processes
from tests.harness.servers import NatsServer, running_server, temporary_folder
from tests.harness.serving import ANSWERING, PLAIN, PORTS, SLEEP, Hand, made, yard
from tests.harness.waiting import eventually
from tests.harness.wire import CONFLICT, EXPECT, Record, Rejection
from tests.integration.test_agent_restart import start

pytestmark = pytest.mark.timeout(1800)

S = SliceState
COMMANDS = int(os.environ.get("CDM_TEST_COMMANDS", "120"))
SEED = int(os.environ.get("CDM_TEST_SEED", "0")) or time.time_ns() % 1_000_000
STEPS = 10
"""Of one example; each is about three commands and crashes."""
SOON = Restart(backoff=0.05)
PROGRAMS = {
    "good": (SLEEP, replace(PLAIN, restart=SOON)),
    "serving": (PORTS, replace(ANSWERING, restart=SOON)),
    "brief": ("import random, sys, time\ntime.sleep(random.random() / 4)\nsys.exit(1)", replace(PLAIN, restart=SOON)),
    "broken": ("import sys\nsys.exit(1)", replace(ANSWERING, restart=SOON)),
    "stubborn": (
        f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}",
        replace(PLAIN, restart=SOON, stop_grace=0.2),
    ),
}
TWICE = ("good", "serving")
"""Programs that there are two slices of."""

Following = Mapping[SliceState | None, SliceState | None]
"""What is put over which state; None: no key."""


def _legal(command: SliceState) -> Following:
    return {state: command for state in (None, *S) if legal(state, command)}


ORDERS: Sequence[Following] = (
    _legal(S.LOAD),
    _legal(S.ACTIVATE),
    _legal(S.DEACTIVATE),
    _legal(S.UNLOAD),
    dict.fromkeys(S),
    {S.LOADING: S.LOAD, S.ACTIVATING: S.ACTIVATE, S.DEACTIVATING: S.DEACTIVATE, S.UNLOADING: S.UNLOAD},  # once more
)
AFTER: Sequence[dict[str, float]] = ({}, {"after": 0.0}, {"after": 0.3}, {"after": 1.5})
"""How long what is told to go is to serve on."""
Order = tuple[int, int, float]
"""Which of `ORDERS`, unless no key is in a state for it; which of these keys; and how many seconds pass before."""
numbers = st.integers(0, 1_000_000)
orders = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 1, 1, 2, 3, 4, 5]),  # mostly what begins something, or too little would live
        numbers,
        st.sampled_from([0.0, 0.02, 0.2]),
    ),
    min_size=1,
    max_size=5,
)


class NodeMachine(RuleBasedStateMachine):
    """A node, and a leader who does not know what he wants."""

    def __init__(self) -> None:
        super().__init__()
        print(f"seed {SEED}")
        self.done: Counter[str] = Counter()
        with ExitStack() as stack:
            self.portal = stack.enter_context(start_blocking_portal("asyncio"))
            self.folder = stack.enter_context(temporary_folder())
            server = stack.enter_context(self.portal.wrap_async_context_manager(running_server()))
            self.ground = stack.enter_context(self.portal.wrap_async_context_manager(yard(server, self.folder)))
            self.running = stack.enter_context(node_processes(server, self.folder))
            self.portal.call(self._begin, server)
            self.stack = stack.pop_all()

    async def _begin(self, server: NatsServer) -> None:
        await made(server, self.ground.user)
        hand = Hand(self.ground.user)
        self.keys = [hand.key("g/missing/1")]
        for name, (program, manifest) in PROGRAMS.items():
            path = await self.ground.push(name, program, manifest)
            self.keys += [hand.key(path, ordinal) for ordinal in range(2 if name in TWICE else 1)]
        start(self.running, self.folder)
        for key in self.keys:
            await hand.put(key, "LOAD")
        for key in self.keys[1:]:
            await hand.reaches(key, "LOADED", 30)
            await hand.put(key, "ACTIVATE")
        await eventually(self.ground.exact, 30, "all is up")

    @property
    def node(self) -> Process:
        """The node's process of now."""
        return self.running.all["n1"]

    # The leader

    @rule(orders=orders)
    def leader_commands(self, orders: Sequence[Order]) -> None:
        for which, number, pause in orders:
            self.portal.call(anyio.sleep, pause)
            self.portal.call(self._put, (ORDERS[which], *ORDERS), *divmod(number, 2))

    async def _put(self, choices: Sequence[Following], number: int, level: int) -> None:
        """Put the first command, or delete, that goes over any key's state, by compare-and-set."""
        user = self.ground.user
        found = {record.key: record for record in await user.records("slices")}
        states = {key: _state_of(found.get(key)) for key in self.keys}
        following = next(each for each in choices if not each.keys().isdisjoint(states.values()))
        keys = [key for key in self.keys if states[key] in following]
        key = keys[number % len(keys)]
        command = following[states[key]]
        headers = {EXPECT: str(found[key].sequence if key in found else 0)}
        after = AFTER[number % len(AFTER)] if command in (S.UNLOAD, S.DEACTIVATE) else {}
        value: object = {"state": command, "term": 7, "overrides": {"env": {"LEVEL": str(level)}}, **after}
        if command is None:
            headers["KV-Operation"], value = "DEL", b""
        try:
            await user.put("slices", key, value, headers)
        except Rejection as rejection:
            if rejection.code != CONFLICT:
                raise
            self._note("refused")  # the agent was faster
        else:
            self._note(str(command or "delete"), f"{key}, which was {states[key] or 'gone'}")

    # Crashes, and what the leader commands meanwhile

    @rule(orders=orders, number=numbers)
    def slice_is_killed(self, orders: Sequence[Order], number: int) -> None:
        if pids := sorted(pid for pids in self.ground.living.values() for pid in pids):
            with suppress(ProcessLookupError):
                os.kill(pids[number % len(pids)], signal.SIGKILL)
                self._note("slice killed")
        self.leader_commands(orders)

    @rule(orders=orders)
    def keeper_is_killed(self, orders: Sequence[Order]) -> None:
        for pid in self.node.keepers():
            os.kill(pid, signal.SIGKILL)
            self._note("keeper killed")
        self.leader_commands(orders)

    @rule(orders=orders, number=st.sampled_from([signal.SIGKILL, signal.SIGTERM]), awaited=st.booleans())
    def node_ends_and_starts_again(self, orders: Sequence[Order], number: signal.Signals, awaited: bool) -> None:
        before = self.portal.call(self._incarnation)
        self.node.send(number)
        self._note(f"node {number.name}")
        self.leader_commands(orders)
        # One that has just begun does not hear SIGTERM yet.
        assert self.portal.call(self.node.ends, 30) in (0, -number)
        start(self.running, self.folder)
        if awaited:
            self.portal.call(eventually, partial(self._registered, before), 30, "the node is up")

    async def _incarnation(self) -> str:
        """The node's, as it is registered; empty: it is not."""
        found = (await self.ground.user.registrations()).get("n1")
        return str(found.value["incarnation"]) if found is not None else ""

    async def _registered(self, before: str) -> bool:
        return await self._incarnation() not in ("", before)

    @rule(orders=orders)
    def node_freezes(self, orders: Sequence[Order]) -> None:
        self.node.send(signal.SIGSTOP)
        self._note("node frozen")
        self.leader_commands(orders)
        self.node.send(signal.SIGCONT)

    def _note(self, what: str, about: str = "") -> None:
        self.done[what] += 1
        print(f"{datetime.now(UTC):%T.%f} {what} {about}")

    # What always holds

    @invariant()
    def no_slice_lives_twice(self) -> None:
        if doubled := self._doubled():
            # A look takes its time, but who is seen by two of them lived all the while between.
            again = self._doubled()
            both = {name: pids & again.get(name, set()) for name, pids in doubled.items()}
            assert all(len(pids) < 2 for pids in both.values()), f"live at the same time: {both}"

    def _doubled(self) -> dict[str, set[int]]:
        return {name: set(pids) for name, pids in self.ground.living.items() if len(pids) > 1}

    @invariant()
    def node_does_not_end_by_itself(self) -> None:
        self.running.unharmed()

    # At rest

    @rule()
    def all_comes_to_rest(self) -> None:
        self.portal.call(eventually, self._exact, 30, "processes are equal to keys")

    def teardown(self) -> None:
        with self.stack:
            try:
                self.portal.call(self._at_rest_all_is_well)
            except BaseException:
                print(self.running.logs())
                raise
            print(dict(self.done))

    async def _at_rest_all_is_well(self) -> None:
        await eventually(self._exact, 30, "processes are equal to keys")
        self.node.send(signal.SIGTERM)
        assert await self.node.ends(30) == 0
        assert not self.ground.living
        assert_legal(await self.ground.user.recorded(), deleted=True, repeated=True)

    async def _exact(self) -> bool:
        """Whether what lives is what the keys say, and nobody has a child besides, not even a zombie."""
        kept = self.node.keepers()
        living = [pid for pids in self.ground.living.values() for pid in pids]
        alone = set(children(self.node.pid)) <= set(kept)
        return alone and [sorted(children(pid)) for pid in kept] == [sorted(living)] and await self.ground.exact()


def _state_of(record: Record | None) -> SliceState | None:
    return None if record is None or record.gone else S(record.value["state"])


NodeMachine.TestCase.settings = settings(
    max_examples=1 + -(-COMMANDS // (3 * STEPS)),  # the first one is always the simplest, and does not count
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=False,
    database=None,
    phases=[Phase.generate],  # what real processes did is not to be had again, let alone with less
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestNodeMachine = seed(SEED)(NodeMachine).TestCase
