"""How a bucket's stream is configured: what cdm creates, and what it changes of a stream that others created."""

from __future__ import annotations

import time
from typing import Any

from cdm.model.keys import SLICES, Layout
from cdm.store.wire import MARKER_TTL

# Every bucket allows TTLs: cdm's own deletes leave markers that expire. Nodes read their own keys directly.
_FEATURES = {
    "allow_msg_ttl": True,
    "allow_atomic": True,
    "allow_direct": True,
}
# Where the server marks what expires, it lets clients roll keys up: whoever may write one could remove all others.
_MARKED = {"subject_delete_marker_ttl": MARKER_TTL * 10**9, "allow_rollup_hdrs": True}
_UNMARKED = {"subject_delete_marker_ttl": 0, "allow_rollup_hdrs": False}
MOST_CONSUMERS = 1_000_000
"""Consumers that ``slices`` may have: each node that hears its own keys alone has one. Where neither the stream nor the
account has a limit, a server from 2.15 on makes no more than a thousand."""
_NO_LIMITS = {"max_age": 0, "max_msgs": -1, "max_bytes": -1, "sealed": False}


def created(layout: Layout, stream: str, subjects: str, replicas: int) -> dict[str, Any]:
    """The configuration of a new bucket's stream."""
    return {
        "name": stream,
        "subjects": [subjects],
        "max_msgs_per_subject": layout.history,
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "deny_delete": True,
        "duplicate_window": 120 * 10**9,
        # A stream that is created anew must not number its messages as the one before it did: a fence of the old one
        # would hold in the new one. Milliseconds run ahead of any stream's numbers.
        "first_seq": time.time_ns() // 1_000_000,
        **_FEATURES,
        **(_MARKED if layout.rolls_up else _UNMARKED),
    }


def lacking(layout: Layout, config: dict[str, Any]) -> dict[str, Any]:
    """What must be changed of a stream that exists, with the values that are needed."""
    if config.get("mirror"):
        return {}  # a copy for those who only read: nobody writes here, see `cdm.store.copies`
    needed = {**_FEATURES, **_MARKED} if layout.rolls_up else _FEATURES
    missing: dict[str, Any] = {name: value for name, value in needed.items() if not config.get(name)}
    # A value that expires must leave nothing behind, and not an older value in its place.
    kept = config.get("max_msgs_per_subject", -1)
    if kept != layout.history and (layout.expires or 0 < kept < layout.history):
        missing["max_msgs_per_subject"] = layout.history
    # No limit may make values vanish: a blueprint is in force, and the fence holds, until somebody removes it.
    return missing | {name: none for name, none in _NO_LIMITS.items() if config.get(name, none) != none}


def crowded(layout: Layout, config: dict[str, Any]) -> dict[str, Any]:
    """What lets a stream have as many consumers as there may be nodes, in an account that does not limit them itself.

    Nothing may be refused for want of it: a server before 2.12 cannot change it, and has no limit of its own.
    """
    limited = layout is not SLICES or config.get("mirror") or config.get("max_consumers", -1) > 0
    return {} if limited else {"max_consumers": MOST_CONSUMERS}


def outdated(layout: Layout, config: dict[str, Any]) -> dict[str, Any]:
    """What earlier versions need of a stream and this one does without, with the values that it is to get.

    It is changed only once no manager needs it any more.
    """
    if layout.rolls_up or config.get("mirror"):
        return {}
    return {name: value for name, value in _UNMARKED.items() if config.get(name, value) != value}
