"""Files that say whose turn it is, for a proxy that goes round them, and reads each when it comes to it.

Its configuration stays the same, whichever instances there are. An instance has as many turns as its weight is worth; a
change gives others only as many turns as it must.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cdm.cli.filling import write_whole
from cdm.manager.endpoints import Endpoint

FEWEST = 120
"""Turns that there are at least: 2, 3, 4, 5, 6, 8, 10 or 12 instances have equally many."""


def turns(found: Sequence[Endpoint], before: Sequence[str]) -> list[str]:
    """The address for each turn; none where there is no instance.

    Args:
        found: the instances.
        before: the addresses as they are now; their number grows, and never shrinks.
    """
    if not found:
        return []
    count = max(len(before), FEWEST)
    while count < 2 * len(found):
        count *= 2
    owed = Counter(dict(zip((each.authority for each in found), _shares(found, count), strict=True)))
    given: list[str] = []
    for address in [*before, *[""] * (count - len(before))]:
        keeps = owed[address] > 0
        owed[address] -= keeps
        given.append(address if keeps else "")
    # Whoever gets several gets them far from each other.
    order = sorted(((number + 0.5) / owed[address], address) for address in owed for number in range(owed[address]))
    others = iter([address for _, address in order])
    return [address or next(others) for address in given]


def _shares(found: Sequence[Endpoint], count: int) -> list[int]:
    """Of so many turns, how many each is worth, by largest remainder; of equal remainders the first."""
    total = sum(each.weight for each in found)
    exact = [count * (each.weight / total if total else 1 / len(found)) for each in found]
    whole = [int(each) for each in exact]
    most_lacking = sorted(range(len(found)), key=lambda at: whole[at] - exact[at])
    for at in most_lacking[: count - sum(whole)]:
        whole[at] += 1
    return whole


class TurnFiles:
    """A folder with a file for each turn, which are numbered from 0.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, found: Sequence[Endpoint]) -> tuple[list[Path], bool]:
        """Give all turns to these instances; returns the files, and whether any is another one. Raises `OSError`.

        Where there is no instance there is no file, and those that are there stay: nobody is to read them.
        """
        before = self._read()
        given = turns(found, before)
        changed = False
        for number, address in enumerate(given):
            if before[number : number + 1] != [address]:
                write_whole(self._path(number), f"{address}\n", lasting=False)
                changed = True
        return [self._path(number) for number in range(len(given))], changed

    def _path(self, number: int) -> Path:
        return self.folder / str(number)

    def _read(self) -> list[str]:
        found: list[str] = []
        with suppress(FileNotFoundError):
            while True:
                found.append(self._path(len(found)).read_text(encoding="utf-8", errors="replace").strip())
        return found
