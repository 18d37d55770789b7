"""How long the last node of all takes to tell that nothing runs any more. Pure."""

from __future__ import annotations

from msgspec import Struct

PATIENCE = 3.0
"""Seconds without any progress after which it is left untold: until the node leads, and from each term's beginning."""
LIMIT = 12.0
"""Seconds that it takes at most, also where terms end before they have told it."""


class LastWord(Struct):
    """What is left of the time for it.

    A node that stops may have to win a term first, as it led no more in favour of others, and may lose it again where
    its process hardly runs. What that took is not to be missing once it does lead.
    """

    began: float
    """Seconds on `cdm.clock`."""
    term: int | None = None
    """The term that it led last; None: none since it began."""
    led_since: float = 0.0

    @property
    def until(self) -> float:
        """When it is given up."""
        progress = self.began if self.term is None else self.led_since
        return min(progress + PATIENCE, self.began + LIMIT)

    def leads(self, term: int, now: float) -> None:
        """The node leads in this term, and knows all that there is to know."""
        if term != self.term:
            self.term, self.led_since = term, now
