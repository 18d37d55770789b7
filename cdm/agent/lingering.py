"""How much longer a slice serves that is told to go. Pure: time comes with the messages."""

from __future__ import annotations

from cdm.model.slice import SliceState, SliceValue

LONGEST = 86_400.0
"""Most seconds that a slice goes on serving, whatever it is told."""
GOING = frozenset({SliceState.DEACTIVATE, SliceState.DEACTIVATING, SliceState.UNLOAD, SliceState.UNLOADING})
"""States of a slice that is told to stop."""
COMMANDS_TO_GO = frozenset({SliceState.DEACTIVATE, SliceState.UNLOAD})
"""Those that the node has not answered yet."""
_NEVER = float("-inf")


class Lingering:
    """Until when one slice goes on serving.

    Its time counts from the first order to go: a later one shortens it, and never makes it longer. What an earlier
    process of this node had told of the time that is left holds for this one, too.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        """When it was first told to go, in seconds on `cdm.clock`; None: it is not."""
        self._until = _NEVER

    def learn(self, value: SliceValue, at: float) -> None:
        """The key holds this.

        Args:
            value: what it holds.
            at: when that was stored, in seconds on `cdm.clock`.
        """
        if value.state not in GOING:
            self._since, self._until = None, _NEVER
            return
        told = value.after or 0.0
        after = min(told, LONGEST) if told > 0 else 0.0
        if self._since is None:
            self._since, self._until = at, at + after
        elif value.state in COMMANDS_TO_GO:
            self._until = min(self._until, self._since + after)

    def left(self, now: float) -> float:
        """Seconds that it goes on serving; 0: it is to stop, or is not told to go."""
        return max(self._until - now, 0.0)
