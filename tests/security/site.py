"""A site that is attacked: servers with the shipped configuration, managers, and a node whose slice must not notice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nats.errors

from cdm.model.artifact import node_id
from cdm.model.keys import slots_of
from cdm.node.node import NodeSettings
from tests.harness.processes import Process, Processes, command_line
from tests.harness.secure import Fortress, Insider, fortress
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, Rejection

THIEF, VICTIM, MANAGER, OTHER_MANAGER = "node-1", "node-2", "manager-1", "manager-2"
VICTIMS = "g/victim/1"
"""The blueprint whose slice runs on the victim."""
OWN = "g/one/1"
"""The blueprint that an operator writes who attacks: the leader tells its status."""
PROGRAM = """#!/usr/bin/env python3
import time
print("served", flush=True)
time.sleep(3600)
"""
SLOTS = tuple(map(slots_of, range(NodeSettings(node_id(MANAGER)).managers)))
"""Keys of managers' slots; which of them are held is a matter of luck."""
BUCKETS = ("blueprints", "slices", "nodes", "status")


class Kept(NamedTuple):
    """What a message in a bucket must stay."""

    sequence: int
    """0 where it is written again and again."""
    value: str


class Site:
    """The site. Made by `site`."""

    def __init__(
        self, found: Fortress, processes: Processes, operator: Insider, manager: Insider, *, told: bool = False
    ) -> None:
        self.found = found
        self.processes = processes
        self.told = told
        """Whether nodes are told their role; else they find out what they may be."""
        self.user = Raw(operator.client)
        """Writes as an operator."""
        self.audit = Raw(manager.client)
        """Reads the buckets themselves: an operator reads copies."""

    def start(self, name: str, *options: str) -> Process:
        """Start a manager, or a node that runs slices."""
        manages = name in self.found.managers
        if self.told and manages:
            options = ("--role", "manager", "--no-create", *options)
        else:
            role = ("--role", "agent") if self.told else ()
            # What runs is to run where it is looked for.
            none = ("--capacity", "0") if manages else ()
            run = ("--runtime", "process", "--folder", str(self.found.folder / f"{name}.state"))
            options = (*role, *none, *run, *options)
        return self.processes.start(name, *self.found.who(name), *options)

    async def contents(self, attacker: str = THIEF) -> dict[str, Any]:
        """All that is stored, but for the attacker's own keys: messages, and what the streams are."""
        found: dict[str, Any] = {}
        for bucket in BUCKETS:
            for record in await self.audit.records(bucket, "all"):
                if not _owns(attacker, bucket, record.key):
                    found[f"{bucket} {record.key} {record.sequence if bucket == 'blueprints' else ''}"] = _kept(
                        bucket, record.key, record.sequence, record.data
                    )
        found["streams"] = (await self.audit.api("INFO"))["streams"]
        for name in (*(f"KV_{bucket}" for bucket in BUCKETS), "OBJ_artifacts"):
            stream = await self.audit.api(f"STREAM.INFO.{name}")
            found[f"stream {name}"] = (stream["created"], stream["config"])
            if name.startswith("OBJ_"):
                found[f"messages {name}"] = (stream["state"]["messages"], stream["state"]["last_seq"])
        return found

    async def at_rest(self) -> bool:
        """Whether the victim's slice runs, and all is told of it."""
        try:
            slices, status = await self.audit.slices(), await self.audit.status(VICTIMS)
        except (Rejection, nats.errors.Error):
            return False
        return slices.get(f"{VICTIM}.{VICTIMS}") == "ACTIVE" and status.get("condition") == "Ready"


def _owns(attacker: str, bucket: str, key: str) -> bool:
    if attacker == "operator":
        return bucket == "blueprints" or key.endswith((".intent", ".seen")) or key == OWN
    own = {"slices": key.startswith(f"{attacker}."), "nodes": key in (attacker, f"{attacker}.seen")}
    return own.get(bucket, False)


def _kept(bucket: str, key: str, sequence: int, data: bytes) -> Kept:
    """Leases and registrations are renewed, and tell how the machine is; a fence is also written anew."""
    renewed = key in ("_leader", "_term") or (bucket == "nodes" and ("." not in key or key.startswith("_manager.")))
    if not renewed:
        return Kept(sequence, data.decode(errors="replace"))
    try:
        value = json.loads(data)
    except ValueError:
        return Kept(0, data.decode(errors="replace"))
    if isinstance(value, dict):
        for each in ("load", "vitals"):
            value.pop(each, None)
    return Kept(0, json.dumps(value))


@asynccontextmanager
async def site(
    folder: Path, size: int, *, told: bool = False, node_ttl: int = 10, lease_ttl: int = 10
) -> AsyncIterator[Site]:
    """A site of so many servers, whose victim runs a slice; the thief has a key, and no process.

    Args:
        folder: where all is that it writes.
        size: how many servers.
        told: whether nodes are told their role.
        node_ttl: seconds after which a registration ends that is not renewed.
        lease_ttl: the same of leadership.
    """
    managers = (MANAGER, OTHER_MANAGER)
    async with fortress(folder, THIEF, VICTIM, managers=managers, size=size) as found:
        replicas = ("--replicas", str(size))

        async def made() -> bool:
            return (await command_line("init", *replicas, *found.options("admin"))).returncode == 0

        await eventually(made, 30, "the servers take the buckets", 0.2)
        times = ("--lease-ttl", str(lease_ttl), "--node-ttl", str(node_ttl), "--reconcile-interval", "1")
        processes = Processes(found.url, folder, times)
        try:
            async with found.client("operator") as operator, found.client(MANAGER) as manager:
                there = Site(found, processes, operator, manager, told=told)
                for name in (*managers, VICTIM):
                    there.start(name)
                script = folder / "program"
                script.write_text(PROGRAM)
                pushed = await command_line("artifact", "push", "g:victim:1", str(script), *found.options("operator"))
                assert pushed.returncode == 0, pushed.stderr
                await there.user.stubborn("blueprints", VICTIMS, 1)
                await eventually(there.at_rest, 60, "the victim's slice runs")
                yield there
        finally:
            processes.kill()
