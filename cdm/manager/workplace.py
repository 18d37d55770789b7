"""What a manager works with, whatever its state."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field

from cdm.manager.cluster import Cluster
from cdm.manager.outbox import Outbox
from cdm.manager.pace import Pace
from cdm.manager.policy import Policy
from cdm.manager.topology import Topology


class Workplace(Struct, frozen=True):
    """What a manager works with, whatever its state."""

    cluster: Cluster
    topology: Topology
    outbox: Outbox
    clock: Callable[[], float]
    """Seconds on this node's clock."""
    wake: Callable[[], None]
    """Called when there is work; the answer is a `Tick`, soon."""
    policy: Policy
    reconcile_interval: float
    """Seconds between two rounds over everything."""
    epoch: Callable[[], float] = lambda: 0.0
    """The server's clock less this node's, in seconds."""
    pace: Pace = field(default_factory=Pace)
    """How often it goes over everything, and how long that takes."""
