"""What slices write: kept in files, read again, and sent to whoever asks over NATS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:  # a keeper, which needs what is written alone, does without all values of the cluster
    from cdm.model.artifact import Artifact
    from cdm.model.keys import SliceKey


class OutputLine(NamedTuple):
    """One line that a slice wrote."""

    time: datetime
    """When it was read from the program, UTC."""
    stream: str
    """``out``, ``err``, or ``cdm``: a remark of cdm's."""
    text: str
    partial: bool = False
    """Whether the line goes on in the next one of this stream: it was too long to be kept whole."""


@runtime_checkable
class Logging(Protocol):
    """Implemented by a runtime that keeps its slices' output; `cdm logs` shows it."""

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        """This node's slices of the artifact that have output, or may soon have; some may not be loaded any more."""

    def read(
        self, key: SliceKey, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Sequence[OutputLine]]:
        """A slice's output, oldest line first, in batches of bounded size; it must not block the event loop.

        ``lines``: only the last so many of what is there now. ``since``: nothing older. ``follow``: go on for ever.
        """
