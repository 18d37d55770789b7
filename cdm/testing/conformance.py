"""The tests that every runtime passes: what the agent relies on, whatever slices are."""

from __future__ import annotations

from cdm.testing.failing import FailingTests
from cdm.testing.giving import GivingTests
from cdm.testing.outliving import OutlivingTests
from cdm.testing.stopping import StoppingTests


class RuntimeConformance(StoppingTests, GivingTests, FailingTests, OutlivingTests):
    """Tests of a runtime. Inherit in a class whose name pytest collects, and say how the runtime is made.

    A runtime that runs programs of the artifact's folder, as processes of this machine that have the variables that
    `process` gives its slices, needs `make_runtime` alone. For others override `work` and `running`.
    """
