"""One instance on one node: its states, and the table of legal transitions.

`TRANSITIONS` is the protocol's table, row by row; nothing else in cdm decides which transitions are legal.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from cdm.model.blueprint import Overrides
from cdm.model.rules import Needs

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A counter; above this bound JSON numbers are not exact in most languages."""
Term = Annotated[int, Meta(ge=0, le=2**52)]
"""Number of a leadership. No count gets this far: a larger one was written by hand, and would leave no room for the
next."""


@unique
class SliceState(StrEnum):
    """What a slice key holds: a command of the leader or a state reported by the node."""

    LOAD = "LOAD"
    LOADING = "LOADING"
    LOADED = "LOADED"
    ACTIVATE = "ACTIVATE"
    ACTIVATING = "ACTIVATING"
    ACTIVE = "ACTIVE"
    DEACTIVATE = "DEACTIVATE"
    DEACTIVATING = "DEACTIVATING"
    FAILED = "FAILED"
    UNLOAD = "UNLOAD"
    UNLOADING = "UNLOADING"

    # Enum's own hash is Python code, and dictionaries with states as keys are on the hot path.
    __hash__ = str.__hash__

    @property
    def live(self) -> bool:
        """Whether a slice in this state counts towards ``instances``."""
        return self not in _NOT_LIVE

    @property
    def kind(self) -> Kind:
        """Whether this is a command, a state in transition, or one at rest."""
        return TRANSITIONS[self].kind


@unique
class Kind(StrEnum):
    """The kind of a state, which decides its deadline."""

    COMMAND = "command"
    TRANSITION = "in transition"
    REST = "at rest"


@unique
class Writer(StrEnum):
    """Who may write a state."""

    LEADER = "leader"
    NODE = "node"


class Row(NamedTuple):
    """One row of the transition table."""

    kind: Kind
    writer: Writer
    next: frozenset[SliceState | None]
    """States that may follow; None stands for the deleted key."""


def _row(kind: Kind, writer: Writer, *following: SliceState | None) -> Row:
    return Row(kind, writer, frozenset(following))


_S = SliceState
TRANSITIONS: dict[SliceState, Row] = {
    _S.LOAD: _row(Kind.COMMAND, Writer.LEADER, _S.LOADING, _S.UNLOAD),
    _S.LOADING: _row(Kind.TRANSITION, Writer.NODE, _S.LOADED, _S.FAILED, _S.UNLOAD),
    _S.LOADED: _row(Kind.REST, Writer.NODE, _S.ACTIVATE, _S.UNLOAD),
    _S.ACTIVATE: _row(Kind.COMMAND, Writer.LEADER, _S.ACTIVATING, _S.UNLOAD),
    _S.ACTIVATING: _row(Kind.TRANSITION, Writer.NODE, _S.ACTIVE, _S.FAILED, _S.UNLOAD),
    _S.ACTIVE: _row(Kind.REST, Writer.NODE, _S.DEACTIVATE, _S.UNLOAD, _S.FAILED, _S.ACTIVATING),
    _S.DEACTIVATE: _row(Kind.COMMAND, Writer.LEADER, _S.DEACTIVATING, _S.UNLOAD),
    _S.DEACTIVATING: _row(Kind.TRANSITION, Writer.NODE, _S.LOADED, _S.FAILED, _S.UNLOAD),
    _S.FAILED: _row(Kind.REST, Writer.NODE, _S.UNLOAD, _S.LOAD),
    _S.UNLOAD: _row(Kind.COMMAND, Writer.LEADER, _S.UNLOADING),
    _S.UNLOADING: _row(Kind.TRANSITION, Writer.NODE, None, _S.FAILED, _S.UNLOAD),
}
_NOT_LIVE = frozenset({_S.FAILED, _S.UNLOAD, _S.UNLOADING})


def legal(current: SliceState | None, following: SliceState | None) -> bool:
    """Whether a slice may go from one state to the next; None is a key that does not exist."""
    if current is None:
        return following is SliceState.LOAD
    return following in TRANSITIONS[current].next


class SliceValue(Struct, frozen=True, omit_defaults=True, gc=False):
    """The value under a slice key. Fields that a reader does not know are ignored."""

    state: SliceState
    term: Count = 0
    """Term of the leader whose command this is, or to whose command it is the answer."""
    reason: str | None = None
    """Why it FAILED; how the program of an ACTIVATING slice ended; or a warning about one that is LOADED or ACTIVE."""
    fatal: bool = False
    """Whether it FAILED in a way that trying again soon cannot mend."""
    failures: Count | None = None
    """How often this instance failed before, on any node; agents copy it from the command. None: not given."""
    blueprint: Count | None = None
    """Revision of the blueprint that the command serves; agents copy it from the command."""
    port: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    """TCP port that the slice listens on, if its manifest asks for one."""
    overrides: Overrides | None = None
    """Where the blueprint differs from the manifest; agents copy it from the command."""
    restarts: Count | None = None
    """Starts of its program since it was loaded, less one. None: not given."""
    stable: float | None = None
    """Seconds that its program has to be up, after it ended, to count as stable (`restart.stable` of the manifest)."""
    loaded: Count | None = None
    """Of an ACTIVATE: revision of the LOADED that it answers. None: not given, by an older leader."""
    deadline: float | None = None
    """Seconds from this message that a state in transition may take. None: what is usual."""
    template: str | None = None
    """Digest of the template (`cdm.model.template`) that the command serves; agents copy it from the command."""
    content: str | None = None
    """Digest of the artifact's content that is to run (SHA-256, hex); agents copy it from the command. None: whatever
    is stored under the artifact's name."""
    after: float | None = None
    """Of an UNLOAD or DEACTIVATE: seconds for which the slice goes on serving before it is stopped, counted from the
    first such command. Whoever routes takes it out at once. Of an UNLOADING or DEACTIVATING: what was left of them."""
    address: str | None = None
    """Where an ACTIVE slice is reached, with its port."""
    needs: Needs | None = None
    """What it reserves on its node; agents copy it from the command."""
    lapsed: bool = False
    """Whether it FAILED because its agent stopped it on purpose, or did not start it: NATS heard nothing of the node
    for ``stop_after``. Then its program did not end by itself."""
    folder: str | None = None
    """Of one with ``stop_after`` that may run: which folder its node had that began it. UNLOAD and DEACTIVATE copy it.
    None: an earlier version wrote it, or an agent that is not ours."""
