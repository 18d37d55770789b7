"""``cdm node leave``: this machine's node is given up for good, whatever its ``--on-stop`` says."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter
from msgspec import Struct
from msgspec.structs import replace

from cdm.cli import Exit
from cdm.cli.context import expanded
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.node_process import LEAVE
from cdm.cli.options import ConnectionOptions, check_prefix
from cdm.cli.parameters import HERE, Json
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.errors import FolderTaken, NodeUnknown, SliceFailed, StoreError, UsageError, innermost
from cdm.model.artifact import NodeId, node_id
from cdm.node.farewell import take_back
from cdm.node.folder import chosen_folder, holder
from cdm.node.holders import forget_holders, holders_of
from cdm.node.kept import end_left
from cdm.runtimes.abandoned import Abandoned
from cdm.store.access import Access
from cdm.store.connection import connect


class GivenUp(Struct, frozen=True):
    """How a node was given up."""

    node: NodeId
    process: bool
    """Whether a process of it ran here: it has left in good order, and of the rest `alive` alone says something."""
    slices: int = 0
    """How many slices a dead process had left, which are stopped, but for what is `alive`."""
    strays: int = 0
    """How many processes were ended besides, that no keeper kept any more."""
    alive: tuple[str, ...] = ()
    """What cannot be stopped of them, and why."""
    registration: bool = False
    """Whether that process's registration was taken back."""
    keys: int | None = 0
    """How many keys of its slices were; None: the leader removes them."""
    problem: str = ""
    """Why the registration could not be taken back, if there is one."""
    ttl: float | None = None
    """Seconds since its last heartbeat for which it then stands; None: not known."""


def leave(
    connection: ConnectionOptions = HERE,
    *,
    id: Annotated[str | None, Parameter(name="--id", env_var="CDM_ID")] = None,  # noqa: A002
    folder: Annotated[Path | None, Parameter(env_var="CDM_FOLDER")] = None,
    json: Json = False,
) -> int:
    """Have this machine's node leave for good.

    Parameters
    ----------
    id
        The node's name. [default: the host name]
    folder
        The node's folder. [default: /var/lib/cdm/… for root, else ~/.local/state/cdm/…]
    """
    check_prefix(connection.prefix)
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    name = node_id(id or socket.gethostname())
    path = chosen_folder(folder and expanded(folder), connection.prefix, name)
    pid = holder(path)
    if pid is None:
        left = anyio.run(_give_up, path, name, connection.access(), connection.prefix)
    else:
        _tell(pid)
        left = GivenUp(name, process=True, alive=anyio.run(_alive, path, name))
    if json:
        print_json(left)
    else:
        show([PLAIN(_in_words(left))])
    return Exit.FAILED if left.alive else Exit.OK


async def _give_up(path: Path, node: NodeId, access: Access, prefix: str) -> GivenUp:
    """Stop what a dead process left, and take back what it had written. Raises `NodeUnknown`: there is nothing."""
    holders = holders_of(path)
    left = GivenUp(node, process=False, ttl=holders.ttl)

    async def take_back_all(ended: Abandoned) -> None:
        nonlocal left
        left = replace(left, slices=ended.slices, strays=ended.strays, alive=ended.problems)
        if ended.problems:
            left = replace(left, problem="what runs on of its slices would run twice")
            return
        if not holders.incarnations:
            left = replace(left, problem="an earlier version of cdm ran it, whose registration nobody can tell")
            return
        if not holders.settled:
            why = "what must not run twice (stop_after) may run where a process with another folder began it"
            left = replace(left, problem=why)
            return
        try:
            async with connect(access, name="cdm node leave", prefix=prefix) as connection:
                left = replace(left, **(await take_back(connection, node, holders.incarnations))._asdict())
        except (StoreError, BaseExceptionGroup) as error:
            if not isinstance(problem := innermost(error), StoreError):
                raise
            left = replace(left, problem=str(problem))
        else:
            forget_holders(path)

    await end_left(path, node, take_back_all)
    found = left.slices or left.strays or left.alive or left.registration
    if not found and not (left.problem and holders.incarnations):
        raise NodeUnknown(f"no process of node {node} runs here, and no slice of it ({path}); see --id and --folder")
    return left


async def _alive(path: Path, node: NodeId) -> tuple[str, ...]:
    """What a process that has left could not stop."""
    try:
        return (await end_left(path, node, orderly=True)).problems
    except FolderTaken:  # there is another process of it already
        return ()
    except (SliceFailed, UsageError) as error:
        return (str(error),)


def _in_words(left: GivenUp) -> str:
    if left.process:
        alive = f"; not all of its slices are stopped: {'; '.join(left.alive)}" if left.alive else ""
        return f"{left.node} has left{alive}"
    slices = f"; {left.slices} of its slices did, and are stopped" if left.slices else ", and no slice of it"
    if left.strays:
        some, ended = ("1 process", "is ended") if left.strays == 1 else (f"{left.strays} processes", "are ended")
        slices = f"{slices}, and {some} more {ended}" if left.slices else f"; {some} of its slices did, and {ended}"
    if left.alive:
        slices = f"; of its slices ({left.slices}) not all are stopped: {'; '.join(left.alive)}"
    words = f"{left.node}: no process of it runs here{slices}"
    if left.registration:
        return f"{words}; its registration is taken back"
    if not left.problem:
        return f"{words}; its registration is gone, or another process's"
    until = "its --node-ttl" if left.ttl is None else f"{left.ttl:g} s"
    return (
        f"{words}; its registration is not taken back ({left.problem}): the cluster takes it, and its slices, for"
        f" alive until {until} after its last heartbeat"
    )


def _tell(pid: int) -> None:
    """Have the process leave, and wait for its end."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:  # it has just ended
        return
    try:
        signal.pidfd_send_signal(handle, LEAVE)
        select.select([handle], [], [])
    except PermissionError:
        raise UsageError(f"the node's process (pid {pid}) is another user's") from None
    finally:
        os.close(handle)
