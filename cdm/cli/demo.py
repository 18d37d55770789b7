"""``cdm demo``: a cluster's life in ten seconds, on a real nats-server, each step checked."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cdm import clock
from cdm.cli.playground import TTL, Playground, playground
from cdm.errors import CdmError
from cdm.model.artifact import Artifact, NodeId, node_id
from cdm.model.keys import BlueprintKey, SliceKey
from cdm.model.slice import SliceState, SliceValue
from cdm.store.bucket import dump
from cdm.telemetry import LogFormat, LogLevel, configure_logs

ARTIFACT = Artifact("org.example", "slice", "1.0.0")
NODES = [node_id(f"node-{number}") for number in (1, 2, 3)]
PATIENCE = 10.0


def demo() -> int:
    """Play a whole cluster's life on this machine: elect, publish, scale, kill the leader, correct drift.

    Starts an embedded nats-server in a temporary folder and three real `cdm node` processes. The slices' agents are a
    stand-in that only moves states: no program is run. Every step is checked; the exit code is 1 if one fails. Nothing
    is left behind.
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    console = Console(highlight=False)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a `kill` cleans up as Ctrl-C does
    try:
        return anyio.run(_demo, console)
    finally:
        signal.signal(signal.SIGTERM, previous)


class Done(NamedTuple):
    """A step that held, for the screen."""

    title: str
    proof: str
    took: float


async def _demo(console: Console) -> int:
    started = clock.now()
    async with playground() as ground:
        done: list[Done] = []
        script = Script(ground)
        with Live(console=console, auto_refresh=False, transient=True, redirect_stderr=False) as live:
            for title, step in script.steps:

                def draw(title: str = title) -> None:
                    live.update(_screen(ground, title), refresh=console.is_terminal)

                ground.on_change = draw
                draw()
                began = clock.now()
                try:
                    proof = await step()
                except CdmError as error:
                    live.console.print(Text.assemble(("✗ ", "bold red"), f"{title}: {error}"))
                    _show_logs(ground, live.console)
                    return 1
                done.append(Done(title, proof, clock.now() - began))
                live.console.print(Text.assemble(("✓ ", "bold green"), (title, "bold"), f"  {done[-1].took:.1f} s"))
                live.console.print(Padding(Text(proof), (0, 0, 0, 2)))
    console.print(f"\nAll {len(done)} steps held, in {clock.now() - started:.0f} s. Nothing is left behind.")
    return 0


class Script:
    """The steps, in order. Each does something, waits for what must follow, and returns what was seen."""

    def __init__(self, ground: Playground) -> None:
        self.ground = ground
        self.dead: NodeId | None = None
        self.steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("Start three nodes; one is elected", self.elect),
            ("nats kv put blueprints org.example/slice/1.0.0 3", self.publish),
            ("… put 5", self.scale_up),
            ("… put 2", self.scale_down),
            ("Kill the leader (SIGKILL)", self.kill_leader),
            ("What ran on the dead node runs elsewhere", self.replace_dead),
            ("Somebody deletes one slice's key and adds another", self.correct_drift),
            ("nats kv del -f blueprints org.example/slice/1.0.0", self.remove),
        ]

    async def elect(self) -> str:
        """Three nodes register, and one of them leads."""
        ground = self.ground
        for node in NODES:
            ground.start_node(node)
        await ground.until("no leader, or not all nodes registered", self._complete, PATIENCE)
        assert ground.lease is not None
        return f"{ground.lease.node} leads term {ground.lease.term}; registered: {', '.join(sorted(ground.registered))}"

    async def publish(self) -> str:
        """Three instances, one on each node."""
        await self._put(3)
        await self._settled(3)
        keys = [put.key for put in self.ground.slices]
        self._check(keys == [SliceKey(node, ARTIFACT) for node in NODES], "not one instance on each node")
        loads = [put for put in self.ground.commands if put.value.state is SliceState.LOAD]
        self._check(len(loads) == 3, f"{len(loads)} LOAD commands instead of 3")
        self._check(all(put.value.term == self._term for put in loads), "a LOAD of another term")
        return f"3 LOADs of term {self._term}: " + ", ".join(map(str, keys))

    async def scale_up(self) -> str:
        """Two more, and the three stay where they are."""
        before = {put.key for put in self.ground.slices}
        await self._put(5)
        await self._settled(5)
        after = {put.key for put in self.ground.slices}
        spread = sorted(Counter(key.node for key in after).values(), reverse=True)
        self._check(before < after, "an instance moved")
        self._check(spread == [2, 2, 1], f"spread {spread} instead of 2+2+1")
        return f"2 more LOADs, spread 2+2+1: {', '.join(map(str, sorted(after - before)))}"

    async def scale_down(self) -> str:
        """Exactly three are unloaded."""
        mark = len(self.ground.commands)
        await self._put(2)
        await self._settled(2)
        commands = self.ground.commands[mark:]
        self._check(
            len(commands) == 3 and all(put.value.state is SliceState.UNLOAD for put in commands),
            "not exactly three UNLOAD commands",
        )
        return "3 UNLOADs: " + ", ".join(str(put.key) for put in commands)

    async def kill_leader(self) -> str:
        """Another node leads a higher term, long before the lease would have ended."""
        ground, old = self.ground, self.ground.lease
        self._check(old is not None, "nobody leads")
        assert old is not None
        ground.kill_node(old.node)
        self.dead = old.node
        took = await ground.until(
            "no new leader", lambda: ground.lease is not None and ground.lease.term > old.term, TTL + 2
        )
        assert ground.lease is not None
        return f"{ground.lease.node} leads term {ground.lease.term} after {took * 1000:.0f} ms"

    async def replace_dead(self) -> str:
        """After its heartbeat TTL the dead node's slices are replaced and its keys deleted."""
        ground, dead = self.ground, self.dead
        await ground.until(
            "the dead node's registration did not expire", lambda: dead not in ground.registered, TTL + 2
        )
        await ground.until(
            f"slices are still on {dead}", lambda: all(put.key.node != dead for put in ground.slices), PATIENCE
        )
        await self._settled(2)
        return f"{dead} is gone; 2 ACTIVE on " + ", ".join(sorted({put.key.node for put in ground.slices}))

    async def correct_drift(self) -> str:
        """The leader adds what is missing and removes what is too much."""
        ground, slices = self.ground, self.ground.buckets["slices"]
        lost = ground.slices[0].key
        extra = SliceKey(lost.node, ARTIFACT, 7)
        mark = len(ground.commands)
        await slices.delete(lost)
        await ground.until("no LOAD after a slice was deleted", lambda: len(ground.commands) > mark, PATIENCE)
        await self._settled(2)
        await slices.put(extra, dump(SliceValue(SliceState.ACTIVE, self._term)))
        await ground.until("the extra slice was not seen", lambda: len(ground.slices) == 3, PATIENCE)
        await self._settled(2)
        return f"deleted {lost}: loaded again; added {extra}: one unloaded; exactly 2 ACTIVE"

    async def remove(self) -> str:
        """No blueprint, no instances."""
        await self.ground.buckets["blueprints"].delete(BlueprintKey(ARTIFACT))
        await self.ground.until("slices are left", lambda: not self.ground.slices, PATIENCE)
        return "no slice is left"

    @property
    def _term(self) -> int:
        return self.ground.lease.term if self.ground.lease else 0

    def _complete(self) -> bool:
        return self.ground.lease is not None and self.ground.registered == set(NODES)

    async def _put(self, instances: int) -> None:
        await self.ground.buckets["blueprints"].put(BlueprintKey(ARTIFACT), str(instances).encode())

    async def _settled(self, count: int) -> None:
        slices = self.ground.cluster.group
        await self.ground.until(
            f"not exactly {count} slices, all ACTIVE",
            lambda: len(slices(ARTIFACT).slices) == count == slices(ARTIFACT).active,
            PATIENCE,
        )

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            raise CdmError(problem)


def _screen(ground: Playground, title: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "state", "term"):
        table.add_column(column, no_wrap=True)
    styles = {SliceState.ACTIVE: "green", SliceState.FAILED: "red"}
    for put in ground.slices:
        state = put.value.state
        style = styles.get(state, "yellow" if state.kind == "command" else "cyan")
        table.add_row(str(put.key), Text(state, style), str(put.value.term))
    leader = f"{ground.lease.node}, term {ground.lease.term}" if ground.lease else "none"
    return Group(Text.assemble(("▶ ", "bold cyan"), (title, "bold"), f"   leader: {leader}"), table)


def _show_logs(ground: Playground, console: Console) -> None:
    for node in NODES:
        log = ground.log_of(node)
        if log.exists():
            console.print(f"[bold]last lines of {node}[/]")
            console.print(Text("\n".join(log.read_text(errors="replace").splitlines()[-8:])))
