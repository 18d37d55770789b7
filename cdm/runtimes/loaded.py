"""The slices that a runtime has loaded, shown as they are: an agent looks at each step of each slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from cdm.model.keys import SliceKey


class Activatable(Protocol):
    """A slice that is loaded."""

    @property
    def active(self) -> bool:
        """Whether it serves, or is started again without being asked."""


class LoadedSlices(Mapping[SliceKey, bool]):
    """By slice whether it is active; no copy, and so as up to date as what it shows.

    Args:
        slices: the runtime's own.
    """

    def __init__(self, slices: Mapping[SliceKey, Activatable]) -> None:
        self._slices = slices

    def __getitem__(self, key: SliceKey) -> bool:
        return self._slices[key].active

    def __iter__(self) -> Iterator[SliceKey]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)
