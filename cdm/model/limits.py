"""What of a manifest holds while its program runs: all of it that a keeper needs to know, and has in memory."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Bytes = Annotated[int, Meta(gt=0, le=2**60, description="a whole number of bytes (more than 0, at most 2^60)")]
Amount = Annotated[int, Meta(ge=0, le=1_000_000)]


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What a slice may use: rlimits for each process, and a cgroup for all where there is one. None: no limit."""

    memory: Bytes | None = None
    cpu_seconds: Amount | None = None
    open_files: Amount | None = None
    processes: Amount | None = None
    file_size: Bytes | None = None


class Logs(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a slice's output is kept on the node's disk."""

    max_bytes: Bytes = 10 * 1024 * 1024
    """Size at which a new file is begun."""
    files: Annotated[int, Meta(ge=1, le=100)] = 3
    """Files that are kept, including the newest."""
