"""Libraries without those of their imports that nobody here needs, and that are larger than all that is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident


class _Hiding:
    """Finds in one thread that there are no such modules, and says nothing to others, which import what they need."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._thread = get_ident()

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        """What Python asks each finder."""
        if name in self._names and get_ident() == self._thread:
            raise ModuleNotFoundError(f"no module named {name!r} is to be imported here", name=name)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """In this block importing these modules fails, as where they are not installed, unless they are imported already.

    In other threads it does not fail meanwhile.

    Args:
        names: modules that what is imported in the block can do without.
    """
    hiding = _Hiding(names)
    # Lists of its own: another thread may be going through the one that there is, and would miss the one after it.
    sys.meta_path = [hiding, *sys.meta_path]
    try:
        yield
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not hiding]
