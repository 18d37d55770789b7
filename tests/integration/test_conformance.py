"""The runtimes of cdm pass what it asks of every runtime."""

from __future__ import annotations

import pytest

from cdm.runtimes import Surroundings
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.testing import RuntimeConformance

pytestmark = pytest.mark.quick


class TestProcess(RuntimeConformance):
    def make_runtime(self, surroundings: Surroundings) -> ProcessRuntime:
        return ProcessRuntime(surroundings)
