"""``cdm health``: whether a node answers, for health checks of container engines and supervisors."""

from __future__ import annotations

import socket
from typing import Annotated

import anyio
from cyclopts import Parameter
from msgspec import Struct

from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import ConnectionOptions
from cdm.cli.parameters import HERE, Json
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.errors import NoResponders, Uncertain
from cdm.model.artifact import NodeId, node_id
from cdm.node.registration import ASK_ATTEMPTS, ASK_TIMEOUT, ask
from cdm.store.connection import Access, connect


class Health(Struct, frozen=True):
    """Whether a node answers, and if not, why."""

    node: str
    healthy: bool
    incarnation: str
    reason: str


def health(
    connection: ConnectionOptions = HERE,
    *,
    id: Annotated[str | None, Parameter(name="--id", env_var="CDM_ID")] = None,  # noqa: A002
    json: Json = False,
) -> int:
    """Ask over NATS whether a node runs and is connected; the exit code is 3 where it does not answer.

    Parameters
    ----------
    id
        The node's name. [default: the host name]
    """
    configure_logs(LogFormat.CONSOLE, LogLevel.ERROR)
    found = anyio.run(_ask, connection.access(), connection.prefix, node_id(id or socket.gethostname()))
    if json:
        print_json(found)
    else:
        result = f"answers (incarnation {found.incarnation})" if found.healthy else f"is unhealthy: {found.reason}"
        show([PLAIN(f"{found.node} {result}")])
    return 0 if found.healthy else 3


async def _ask(access: Access, prefix: str, node: NodeId) -> Health:
    async with connect(access, name=f"cdm health {node}", prefix=prefix) as connection:
        try:
            identity = await ask(connection, node)
        except NoResponders:
            return Health(node, False, "", "no process with this id is connected to NATS")
        except Uncertain:
            # Not that it is connected: a server that stands still gives no answer, either.
            asked = f"asked {ASK_ATTEMPTS} times, with {ASK_TIMEOUT:g} s to answer each time"
            return Health(node, False, "", f"a process may have this id, but gave no answer ({asked})")
        return Health(node, True, identity.incarnation, "")
