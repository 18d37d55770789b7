"""The runs of a slice in its output, which marks tell apart: see `cdm.output.files`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence

from cdm.output import OutputLine
from cdm.output.files import BEGAN_AGAIN, ENDED
from cdm.output.wire import MAX_LINES


def begins(line: OutputLine) -> bool:
    """Whether another run of the slice begins here."""
    return line.stream == "cdm" and line.text == BEGAN_AGAIN


def ends(line: OutputLine) -> bool:
    """Whether a run of the slice ended here."""
    return line.stream == "cdm" and line.text.startswith(ENDED)


async def previous_run(
    batches: AsyncIterator[Sequence[OutputLine]], lines: int | None
) -> AsyncIterator[Sequence[OutputLine]]:
    """Of a slice's output the run that ended last, with its mark; nothing, where none has ended.

    Args:
        batches: the output.
        lines: only so many of its last lines; None: as many as are kept in memory.
    """
    most = MAX_LINES if lines is None else lines
    run: deque[OutputLine] = deque(maxlen=most)
    ended: deque[OutputLine] = deque()
    over = False
    async for batch in batches:
        for line in batch:
            if begins(line):
                if run and not over:  # its end was not written: the machine was switched off, for example
                    ended = run
                run, over = deque(maxlen=most), False
            elif over:  # remarks about what was lost, for example
                continue
            if ends(line):
                ended, over = deque((*run, line)), True
            else:
                run.append(line)
    if ended:
        yield list(ended)
