"""``cdm init``: create the buckets."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from cyclopts import Parameter

from cdm.artifacts.repository import Artifacts
from cdm.cli.connected import run_connected
from cdm.cli.options import FLAG, REPLICAS, ConnectionOptions, Replicas
from cdm.cli.parameters import HERE, Json
from cdm.cli.rows import PLAIN, show
from cdm.cli.screen import print_json
from cdm.dispatch.messages import Message, ValuePut
from cdm.errors import AccessDenied, RequestRefused, Unsuitable
from cdm.model.keys import NodeKey
from cdm.model.node import EXPIRY_BY_CLOCK, EXPIRY_IN_WORDS, managers_without
from cdm.node.buckets import BUCKET_PATIENCE, ensure, patiently
from cdm.store.bucket import Bucket, buckets
from cdm.store.connection import Connection
from cdm.store.copies import Copy
from cdm.store.events import EventStream
from cdm.store.snapshot import listed

ROLLS_UP = "existed; takes roll-ups still: see --upgrade"


def init(
    connection: ConnectionOptions = HERE,
    *,
    replicas: Annotated[Replicas | None, REPLICAS] = None,
    upgrade: Annotated[bool, FLAG, Parameter(name="--upgrade")] = False,
    json: Json = False,
) -> int:
    """Create the buckets that are missing, and update the settings of those that exist.

    Parameters
    ----------
    replicas
        Replicas of all buckets, existing ones too; 3 needs three or more servers. [default: 1 for new buckets]
    upgrade
        Take from the buckets also what only managers of an earlier version need; refused while one is registered.
    """
    found = run_connected(connection, "cdm init", partial(_init, replicas=replicas, upgrade=upgrade))
    if json:
        print_json({"buckets": found})
        return 0
    show(PLAIN(f"{name}: {what}") for name, what in found.items())
    return 0


async def _init(connection: Connection, *, replicas: int | None, upgrade: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    known = buckets(connection)
    everything: list[Bucket | Artifacts] = [*known.values(), Artifacts(connection)]
    for bucket in everything:
        new = await ensure(bucket, create=True, replicas=replicas or 1, change_replicas=replicas is not None)
        found[bucket.name] = "created" if new else "existed"
    stream = EventStream(connection)
    try:
        new = await ensure(stream, create=True, replicas=replicas or 1, change_replicas=replicas is not None)
        found[stream.name] = "created" if new else "existed"
    except (AccessDenied, RequestRefused, Unsuitable) as error:
        found[stream.name] = f"no events will be told: {error}"  # all else goes on
    # Where another number of replicas was just asked for, the streams have no leaders for a moment.
    states = {
        name: await patiently(bucket.state, f"bucket {bucket.name}", BUCKET_PATIENCE) for name, bucket in known.items()
    }
    old = [bucket for name, bucket in known.items() if states[name].rolls_up]
    if old and upgrade:
        await _refuse_if_needed(known["nodes"])
    for bucket in old:
        if upgrade:
            await bucket.change_over()
        found[bucket.name] = "upgraded" if upgrade else ROLLS_UP
    for bucket in known.values():
        made = await patiently(Copy(bucket).ensure, f"copy of {bucket.name}", BUCKET_PATIENCE)
        if made is not None:
            found[f"{bucket.name} for operators"] = "created" if made else "existed"
    return found


async def _refuse_if_needed(nodes: Bucket) -> None:
    """Raise `Unsuitable` where a manager is registered that needs the buckets as they are."""
    messages: list[Message] = []
    await listed(nodes, messages.append)
    registered = [
        (each.key.node, each.value) for each in messages if isinstance(each, ValuePut) and isinstance(each.key, NodeKey)
    ]
    if lacking := managers_without(EXPIRY_BY_CLOCK, registered):
        named = ", ".join(f"{node} (cdm {version})" for node, version in lacking)
        who, know = ("manager", "does") if len(lacking) == 1 else ("managers", "do")
        raise Unsuitable(
            f"nothing was upgraded: {who} {named} {know} not know {EXPIRY_IN_WORDS}; upgrade managers first, or wait "
            "until they are not registered any more"
        )
