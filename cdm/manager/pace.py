"""How often a leader goes over everything, and how long it takes: plain numbers, for whoever tells of them. Pure."""

from __future__ import annotations

from cdm.durations import Durations

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Pace:
    """The rounds of one process, in all its terms. Times are seconds on this node's clock."""

    def __init__(self) -> None:
        self.rounds = Durations(_BOUNDS)
        """The rounds that are over, each from its beginning until nothing was left to be decided."""
        self.began: float | None = None
        """When the round began that is not over; None: none is under way."""
        self.over_at: float | None = None
        """When the latest round was over; None: none was so far."""
        self.deciding = 0.0
        """Seconds spent on deciding."""

    def begin(self, now: float) -> None:
        """A round begins. One that is not over goes on as a part of it."""
        if self.began is None:
            self.began = now

    def worked(self, began: float, now: float, *, done: bool) -> None:
        """Some time was spent on deciding; ``done``: nothing is left to be decided."""
        self.deciding += now - began
        if done and self.began is not None:
            self.rounds.take(now - self.began)
            self.began, self.over_at = None, now

    def break_off(self) -> None:
        """The term is over, and with it the round."""
        self.began = None
