"""What the workers of one node share: its connection to the bucket, its runtime, its artifacts, and turns."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from cdm.agent.elsewhere import Own
from cdm.agent.ports import Ports
from cdm.agent.steps import Do
from cdm.agent.trust import Trust
from cdm.artifacts.cache import Cache
from cdm.runtimes import Runtime
from cdm.store.bucket import Bucket

LOADS = 16
"""Slices that are loaded at the same time; others wait for their turn."""
ACTIVATIONS = 64
"""Slices that are activated at the same time: most of that time they only wait for their programs to be ready."""


class Shared:
    """What the workers of one node share.

    Args:
        slices: the bucket, to report to.
        runtime: runs slices.
        cache: fetches artifacts.
        least_stop_after: seconds that ``stop_after`` must be at least, so that one lost heartbeat stops nothing.
        address: tells where the node's slices are reached; None: that is not known.
        trust: judges what is loaded and started.
    """

    def __init__(
        self,
        slices: Bucket,
        runtime: Runtime,
        cache: Cache,
        least_stop_after: float,
        address: Callable[[], str | None],
        trust: Trust,
    ) -> None:
        self.slices = slices
        self.runtime = runtime
        self.cache = cache
        self.least_stop_after = least_stop_after
        self.address = address
        self.trust = trust
        self.own = Own()
        """What is known of this process, and of others that had the node's id."""
        self.hearing = False
        """Whether the mirror is up to date: without NATS it is not."""
        self.listed = False
        """Whether all keys were listed: what is found there is obeyed as it is."""
        self.resigned = False
        """Whether the node stops: nothing new is begun."""
        self.leaving = False
        """Whether the node is about to leave: the keys of its slices are deleted."""
        self.ports = Ports()
        self.turns = {Do.LOAD: anyio.Semaphore(LOADS), Do.ACTIVATE: anyio.Semaphore(ACTIVATIONS)}

    def may_begin(self) -> bool:
        """Whether anything new may be started."""
        return self.hearing and not self.resigned
