"""For authors of runtimes: the tests that every runtime passes. It needs pytest, and nothing else of cdm needs it.

See `RuntimeConformance`, and docs/runtimes.md.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(f"cdm.testing.{each}" for each in ("base", "failing", "giving", "outliving", "stopping"))
)

from cdm.model.manifest import Manifest  # noqa: E402  # after the lines above
from cdm.testing.conformance import RuntimeConformance  # noqa: E402
from cdm.testing.deeds import Deed, script  # noqa: E402
from cdm.testing.trial import Trial, slice_processes  # noqa: E402

__all__ = ["Deed", "Manifest", "RuntimeConformance", "Trial", "script", "slice_processes"]
