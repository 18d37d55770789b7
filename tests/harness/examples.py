"""How many examples Hypothesis tries."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> int:
    """As many as this test needs in a whole run, where others need a hundred; fewer in the profile ``quick``."""
    return -(-count * settings().max_examples // 100)
