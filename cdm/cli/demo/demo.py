"""``cdm demo``: a cluster's life in about twenty seconds, on a real nats-server, each step checked."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, NamedTuple

import anyio
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cdm import clock
from cdm.cli.demo.playground import Playground, playground
from cdm.cli.demo.script import NODES, SERVICE, Script
from cdm.cli.demo.staying import ANYWHERE, page_shown, show_hints
from cdm.cli.http_server import http_server
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG
from cdm.cli.signals import open_signals
from cdm.errors import CdmError
from cdm.model.slice import SliceState

if TYPE_CHECKING:
    from cdm.http.server import HttpServer


GONE = "Nothing is left behind."


def demo(*, page: Annotated[bool, FLAG] = False, stay: Annotated[bool, FLAG] = False) -> int:
    """Play a cluster's whole life on this machine: elect, push, publish, scale, release, kill, correct drift.

    Starts an embedded nats-server in a temporary folder and three real `cdm node` processes, which run a small web
    service. Every step is checked, also by asking the service; the exit code is 1 if one fails. Nothing is left behind.

    Parameters
    ----------
    page
        Show the cluster in a browser meanwhile, at an address that is printed. Needs the extra http.
    stay
        Keep the cluster running after the last step, to be played with, until Ctrl-C.
    """
    server = http_server(ANYWHERE) if page else None
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    return anyio.run(_until_signal, Console(highlight=False), server, stay)


async def _until_signal(console: Console, server: HttpServer | None, stay: bool) -> int:
    """Play, and clean up also after Ctrl-C or SIGTERM."""
    code, played = 130, anyio.Event()
    async with anyio.create_task_group() as tasks:
        with open_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:

            async def listen() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            code = await _demo(console, server, played if stay else None)
            tasks.cancel_scope.cancel()
    if played.is_set():
        console.print(GONE)
        return 0
    return code


class Done(NamedTuple):
    """A step that held, for the screen."""

    title: str
    proof: str
    took: float


async def _demo(console: Console, server: HttpServer | None, played: anyio.Event | None) -> int:
    """Play; with ``played``, which is set then, the cluster stays until this is cancelled."""
    started = clock.now()
    async with playground(SERVICE) as ground, page_shown(server, ground, console):
        done: list[Done] = []
        script = Script(ground)
        with Live(console=console, auto_refresh=False, transient=True, redirect_stderr=False) as live:
            for title, step in script.steps if played is None else script.steps_to_stay:

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
        held = _conclusion(ground, len(done), clock.now() - started)
        if played is not None:
            console.print(held)
            await script.bring_back()
            show_hints(ground, console)
            played.set()
            await anyio.sleep_forever()
    console.print(f"{held} {GONE}")
    return 0


def _conclusion(ground: Playground, steps: int, took: float) -> str:
    caller = ground.caller
    return (
        f"\nWhile it was scaled and released, the service was asked {caller.asked:,} times, "
        f"each time once and on a new connection: {len(caller.failures)} failed.\n"
        f"All {steps} steps held, in {took:.0f} s."
    )


def _screen(ground: Playground, title: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "state", "term", "port"):
        table.add_column(column, no_wrap=True)
    styles = {SliceState.ACTIVE: "green", SliceState.FAILED: "red"}
    for put in ground.slices:
        state = put.value.state
        style = styles.get(state, "yellow" if state.kind == "command" else "cyan")
        table.add_row(str(put.key), Text(state, style), str(put.value.term), str(put.value.port or ""))
    told = [f"leader: {ground.lease.node}, term {ground.lease.term}" if ground.lease else "no leader"]
    if (record := ground.rollout) is not None and record.phase.under_way:
        told.append(f"{record.phase} {record.source.version} → {record.target.version}")
    if asked := ground.caller.asked:
        told.append(f"{asked} requests, {len(ground.caller.failures)} failed")
    return Group(Text.assemble(("▶ ", "bold cyan"), (title, "bold")), Text(f"  {'; '.join(told)}"), table)


def _show_logs(ground: Playground, console: Console) -> None:
    for node in NODES:
        log = ground.log_of(node)
        if log.exists():
            console.print(f"[bold]last lines of {node}[/]")
            console.print(Text("\n".join(log.read_text(errors="replace").splitlines()[-8:])))
