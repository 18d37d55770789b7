"""The example of a runtime passes what every runtime must, as its own example of a test has it."""

from __future__ import annotations

import sys

import pytest

from tests.docs.documents import example

sys.path.append(str(example("sites.py").parent))

from test_sites import TestSites  # the example

__all__ = ["TestSites"]

pytestmark = pytest.mark.quick
