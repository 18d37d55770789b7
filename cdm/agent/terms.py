"""On what terms slices run on a node."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from cdm.runtimes import Secrets
from cdm.runtimes.run_as import SAME, RunAs


class Terms(Struct, frozen=True):
    """What slices must put up with here, and what they are given."""

    enforce_limits: bool = True
    """See `cdm.runtimes.Surroundings`."""
    run_as: RunAs = SAME
    """Likewise."""
    secrets: Secrets | None = None
    """The node's; None: it has none."""
    trust: Path | None = None
    """File with the keys whose artifacts are run; None: anything is."""
    outlive: float | None = None
    """See `cdm.runtimes.Surroundings`."""
