"""What an agent does next about one slice: pure. The key says what is wanted, the runtime what is there.

By level, not by edge: whatever was missed, and in whatever order things come, the same key and the same local state
lead to the same step. Every report follows `cdm.model.slice.TRANSITIONS`.
"""

from __future__ import annotations

from enum import Enum, auto

from msgspec import Struct

from cdm.model.slice import SliceState, legal


class LocalState(Enum):
    """What the runtime has of a slice."""

    NOTHING = 0
    LOADED = 1
    RESTARTING = 2
    """It was active, its program ended, and the runtime is starting it again."""
    ACTIVE = 3


class StateReport(Struct, frozen=True):
    """Write this state under the slice's key, by compare-and-set; None: delete the key."""

    state: SliceState | None

    @property
    def begins(self) -> bool:
        """Whether it announces that something is started."""
        return self.state in (SliceState.LOADING, SliceState.ACTIVATING)


class Do(Enum):
    """Have the runtime do this."""

    LOAD = auto()
    ACTIVATE = auto()
    DEACTIVATE = auto()
    UNLOAD = auto()

    @property
    def begins(self) -> bool:
        """Whether it starts something: not without NATS, and not once the key says something else."""
        return self in (Do.LOAD, Do.ACTIVATE)


Step = StateReport | Do

_S = SliceState
_STEPS: dict[SliceState | None, tuple[Step | None, Step | None, Step | None, Step | None]] = {
    # In the order of `LocalState`: nothing is loaded, loaded, restarting, active.
    None: (None, Do.UNLOAD, Do.UNLOAD, Do.UNLOAD),
    _S.LOAD: (StateReport(_S.LOADING),) * 4,
    _S.LOADING: (Do.LOAD, StateReport(_S.LOADED), Do.DEACTIVATE, Do.DEACTIVATE),
    # What is loaded was fetched and verified; it is fetched again when it is to be activated.
    _S.LOADED: (None, None, Do.DEACTIVATE, Do.DEACTIVATE),
    _S.ACTIVATE: (StateReport(_S.ACTIVATING),) * 4,
    _S.ACTIVATING: (Do.LOAD, Do.ACTIVATE, None, StateReport(_S.ACTIVE)),
    # What does not run is not ACTIVE: the node was started again, or the runtime is starting the slice again.
    _S.ACTIVE: (StateReport(_S.ACTIVATING), StateReport(_S.ACTIVATING), StateReport(_S.ACTIVATING), None),
    _S.DEACTIVATE: (StateReport(_S.DEACTIVATING),) * 4,
    _S.DEACTIVATING: (StateReport(_S.LOADED), StateReport(_S.LOADED), Do.DEACTIVATE, Do.DEACTIVATE),
    _S.FAILED: (None, Do.UNLOAD, Do.UNLOAD, Do.UNLOAD),
    _S.UNLOAD: (StateReport(_S.UNLOADING),) * 4,
    _S.UNLOADING: (StateReport(None), Do.UNLOAD, Do.UNLOAD, Do.UNLOAD),
}


def next_step(state: SliceState | None, local: LocalState, *, lingers: bool = False) -> Step | None:
    """The next step; None: nothing is to be done until the key or the local state changes.

    Args:
        state: what the key holds; None: there is no key.
        local: what the runtime has.
        lingers: whether what is told to go is to serve for a while yet. What does not serve is stopped all the same.
    """
    if lingers and local is LocalState.ACTIVE and state in (_S.DEACTIVATING, _S.UNLOADING):
        return None
    return _STEPS[state][local.value]


def may_fail(state: SliceState | None) -> bool:
    """Whether FAILED may be reported while the key holds this state."""
    return state is not None and legal(state, SliceState.FAILED)
