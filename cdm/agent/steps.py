"""What an agent does next about one slice: pure. The key says what is wanted, the runtime what is so.

By level, not by edge: whatever was missed, and in whatever order things come, the same key and the same condition
lead to the same step. Every report follows `cdm.model.slice.TRANSITIONS`.
"""

from __future__ import annotations

from enum import Enum, auto

from msgspec import Struct

from cdm.model.slice import SliceState, legal


class Condition(Enum):
    """What is so of a slice on its node."""

    NOTHING = auto()
    LOADED = auto()
    ACTIVE = auto()


class Report(Struct, frozen=True):
    """Write this state under the slice's key, by compare-and-set; None: delete the key."""

    state: SliceState | None


class Do(Enum):
    """Have the runtime do this."""

    LOAD = auto()
    ACTIVATE = auto()
    DEACTIVATE = auto()
    UNLOAD = auto()

    @property
    def begins(self) -> bool:
        """Whether something new comes to run by it: not without NATS, and not when something else is wanted since."""
        return self in (Do.LOAD, Do.ACTIVATE)


Step = Report | Do

_S, _C = SliceState, Condition
_STEPS: dict[SliceState | None, tuple[Step | None, Step | None, Step | None]] = {
    # key holds          nothing is so                loaded                       active
    None: (None, Do.UNLOAD, Do.UNLOAD),
    _S.LOAD: (Report(_S.LOADING), Report(_S.LOADING), Report(_S.LOADING)),
    _S.LOADING: (Do.LOAD, Report(_S.LOADED), Do.DEACTIVATE),
    # What is loaded was fetched and verified; it is fetched again when it is to be activated.
    _S.LOADED: (None, None, Do.DEACTIVATE),
    _S.ACTIVATE: (Report(_S.ACTIVATING), Report(_S.ACTIVATING), Report(_S.ACTIVATING)),
    _S.ACTIVATING: (Do.LOAD, Do.ACTIVATE, Report(_S.ACTIVE)),
    # The agent was started again: what served shall serve.
    _S.ACTIVE: (Do.LOAD, Do.ACTIVATE, None),
    _S.DEACTIVATE: (Report(_S.DEACTIVATING), Report(_S.DEACTIVATING), Report(_S.DEACTIVATING)),
    _S.DEACTIVATING: (Report(_S.LOADED), Report(_S.LOADED), Do.DEACTIVATE),
    _S.FAILED: (None, Do.UNLOAD, Do.UNLOAD),
    _S.UNLOAD: (Report(_S.UNLOADING), Report(_S.UNLOADING), Report(_S.UNLOADING)),
    _S.UNLOADING: (Report(None), Do.UNLOAD, Do.UNLOAD),
}


def next_step(state: SliceState | None, condition: Condition) -> Step | None:
    """The next step; None: all is as it is wanted, until the key or the condition changes."""
    nothing, loaded, active = _STEPS[state]
    return {_C.NOTHING: nothing, _C.LOADED: loaded, _C.ACTIVE: active}[condition]


def may_fail(state: SliceState | None) -> bool:
    """Whether FAILED may be reported while the key holds this state."""
    return state is not None and legal(state, SliceState.FAILED)
