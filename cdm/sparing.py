"""Libraries without those of their imports that nobody here needs, and that are larger than all that is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """In this block importing these modules fails, as where they are not installed, unless they are imported already.

    Args:
        names: modules that what is imported in the block can do without.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
