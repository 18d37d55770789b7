"""More instances by exchange: where several hard rules limit each other, one after the other may leave some unplaced.

An instance that a rule keeps from one node may go there once another new instance has gone elsewhere. What is searched
for is a chain of such exchanges that ends on a free place: an augmenting path, as in the intersection of two partition
matroids (Schrijver, Combinatorial Optimization, chapter 41), which finds the most that two rules allow. With three and
more, no fast way is known that always does; then it finds what such chains reach.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdm.allocation.neighbours import Neighbours
from cdm.allocation.shares import Balance
from cdm.allocation.site import Site

LOOKS = 5_000
"""How many looks at nodes one decision may take: what is still unplaced then waits."""


class Exchange:
    """Exchanges new instances of one decision; all arguments are changed by that.

    Args:
        sites: the nodes on which instances may be, the best first.
        room: how many more each takes.
        given: how many each was given.
        balances: of every spread.
        neighbours: of the service.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        room: list[int],
        given: list[int],
        balances: Sequence[Balance],
        neighbours: Neighbours,
    ) -> None:
        self._sites, self._room, self._given = sites, room, given
        self._balances, self._neighbours = balances, neighbours
        self._looks = LOOKS
        self._tried: set[int] = set()

    @property
    def may_help(self) -> bool:
        """Whether there are several rules that an exchange can satisfy where taking turns cannot."""
        own = [side for side in self._neighbours.hard if side.own]
        waiting = sum(not balance.spread.anyway for balance in self._balances)
        # Those that are to be near each other depend on the very first of them.
        return waiting + len(own) > 1 and not any(side.near for side in own)

    def one_more(self) -> bool:
        """Place one more. Returns whether that could be done; else everything is as before."""
        self._tried = set()
        return self._place()

    def _place(self) -> bool:
        takers = [i for i, room in enumerate(self._room) if room and i not in self._tried]
        self._looks -= len(takers)
        for i in takers:
            if self._fits(i):
                self._add(i)
                return True
        for i in takers:
            if i in self._tried:
                continue
            for j in [j for j, given in enumerate(self._given) if given and j != i]:
                if self._looks <= 0:
                    return False
                self._looks -= 1
                self._remove(j)
                if self._fits(i):
                    self._tried.add(i)
                    self._add(i)
                    if self._place():
                        return True
                    self._remove(i)
                self._add(j)
        return False

    def _fits(self, i: int) -> bool:
        site = self._sites[i]
        waits = any(balance.next(site.labels.get(balance.spread.by)) is None for balance in self._balances)
        return not waits and self._neighbours.allow(site)

    def _add(self, i: int) -> None:
        site = self._sites[i]
        self._room[i] -= 1
        self._given[i] += 1
        for balance in self._balances:
            balance.add(site.labels.get(balance.spread.by))
        self._neighbours.placed(site)

    def _remove(self, i: int) -> None:
        site = self._sites[i]
        self._room[i] += 1
        self._given[i] -= 1
        for balance in self._balances:
            balance.remove(site.labels.get(balance.spread.by))
        self._neighbours.left(site)
