"""What a newcomer has of the demo beside its steps: a page that shows the cluster, and a cluster to play with."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from rich.console import Console
from rich.text import Text

from cdm.cli.demo.playground import Playground
from cdm.cli.demo.script import NEW, NODES, SERVICE

if TYPE_CHECKING:
    from cdm.http.server import HttpServer

ANYWHERE = "127.0.0.1:0"
"""Where the page is served: at a port that is free."""
_NEXT = SERVICE.version("1.3.0")
"""A version that was never released."""


@asynccontextmanager
async def page_shown(server: HttpServer | None, ground: Playground, console: Console) -> AsyncIterator[None]:
    """Serve the page meanwhile, say where, and open it where there is a browser; None: it is not wanted."""
    if server is None:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        tasks.start_soon(server.follow, ground.connection)
        console.print(Text.assemble("The page: ", (f"{server.urls}/", "bold underline")))
        if sys.stdout.isatty() and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
            await anyio.to_thread.run_sync(webbrowser.open, f"{server.urls}/")
        yield
        tasks.cancel_scope.cancel()


def hints(ground: Playground) -> list[tuple[str, str]]:
    """What can be tried with the demo's cluster: commands, and what follows."""
    victim = NODES[-1]
    return [
        (f"export NATS_URL={ground.connection.access.servers[0]}", "first, in each of them"),
        ("cdm status --watch", "the cluster as it changes"),
        (f"cdm scale {NEW} 6", "three more instances"),
        (f"cdm explain {NEW}", "why they are where they are"),
        (f"cd {ground.folder}", "to the demo's files"),
        (f"cdm deploy {_NEXT} web.py --manifest web.toml --canary 33", "another version takes over"),
        (f"cdm logs {SERVICE} --follow", "what all of them write"),
        (f"cdm drain {NODES[0]}", f"its slices move; `cdm uncordon {NODES[0]}` takes it back"),
        (
            f"kill -9 {' '.join(map(str, ground.pids_of(victim)))}",
            f"{victim} and its keeper die, as with their machine; what ran there moves within seconds",
        ),
    ]


def show_hints(ground: Playground, console: Console) -> None:
    """Say what can be tried."""
    console.print("\nThe cluster stays until Ctrl-C. What to try, in another terminal:\n")
    tried = hints(ground)
    wide = max(len(command) for command, _ in tried)
    for command, follows in tried:
        console.print(Text.assemble(("  " + command.ljust(wide), "bold"), f"   # {follows}"), soft_wrap=True)
