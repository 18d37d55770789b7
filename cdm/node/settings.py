"""What can be chosen for a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from cdm.manager.journal import Note
from cdm.manager.policy import Policy
from cdm.model.artifact import NodeId
from cdm.model.node import PROCESS, HttpAt, Role
from cdm.node.machine import Machine
from cdm.node.metadata import ADDRESS
from cdm.runtimes.run_as import SAME, RunAs
from cdm.store.access import Access
from cdm.store.rereading import RELIST_INTERVAL


class NodeSettings(Struct, frozen=True):
    """Everything that can be chosen for a node. Times in seconds."""

    node: NodeId
    access: Access = Access()
    role: Role = Role.ALL
    managers: int = 5
    """Of role `Role.AUTO`: most nodes of that role that manage."""
    prefix: str = ""
    create: bool = True
    """Create buckets that are missing."""
    replicas: int = 1
    """Replicas of buckets that it creates."""
    drain_for: float | None = None
    """For how long a node that is to stop waits at most until its slices are replaced elsewhere; None: not at all."""
    keep: bool = False
    """Whether slices outlive the node's process also where it is told to stop: until a new one has taken them over, or
    the node's TTL is nearly over. They always do where it ends by itself, or is killed."""
    stop_limit: float | None = None
    """Seconds after which a supervisor kills a node that is to stop; None: that is not known."""
    labels: dict[str, str] = {}
    labels_from_metadata: bool = False
    """Ask the cloud that the node runs in for more labels; what is in ``labels`` counts more."""
    metadata_address: str = ADDRESS
    """Where it is asked."""
    capacity: int | None = None
    """Most slices that the node takes; None: no limit."""
    machine: Machine = Machine(None, None)
    """What slices may reserve between them; None: what is detected."""
    reserved: Machine = Machine(None, None)
    """What is kept back of that."""
    address: str | None = None
    """Where its slices are reached; None: at the node's own address on its connection to NATS."""
    http: HttpAt | None = None
    """Where HTTP is served beside it; None: nowhere."""
    runtime: str = PROCESS
    folder: Path | None = None
    """Where the node keeps artifacts and what its slices write; None: `cdm.node.folder.state_folder`."""
    cache_bytes: int = 10 * 2**30
    """Most bytes of artifacts that are kept while no slice uses them."""
    enforce_limits: bool = True
    """Refuse slices with a limit that cannot be enforced on this machine; else they are run with a warning."""
    secrets: Path | None = None
    """Where the secrets are that slices are given; None: the credentials that systemd gave the process, if any."""
    run_as: RunAs = SAME
    """As whom slices run, where the runtime can choose that."""
    trust: Path | None = None
    """File with the public keys of those whose artifacts are run, and no others; None: anything is run."""
    lease_ttl: float = 10.0
    node_ttl: float = 10.0
    reconcile_interval: float = 30.0
    relist_interval: float = RELIST_INTERVAL
    policy: Policy = Policy()
    told: Callable[[Note, float], None] | None = None
    """Told too what a leader tells as events: each note, and the server's clock less that of the note; None: nobody."""
