"""Which worker runs which test."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/security/test_attacks.py", "tests/unit/test_locale.py")
"""Files whose tests share what takes long to make: one worker runs all of them, or all on the site of three servers."""
CONTAINERS = "tests/containers/"
"""Of those who play with containers one at a time may: one worker runs all of them, and no other one waits for it."""


class OneByOne(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Each worker takes the next test when it has done its own, in the order of `tests.conftest`."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, name = nodeid.partition("::")
        if path.startswith(CONTAINERS):
            return CONTAINERS
        if path not in TOGETHER:
            return nodeid
        return f"{path} on three" if "[three" in name else path
