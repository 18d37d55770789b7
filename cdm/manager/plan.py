"""What is to be done about one artifact: commands, each with its reason, and what cannot be done now."""

from __future__ import annotations

from msgspec import Struct

from cdm.model.artifact import NodeId
from cdm.model.blueprint import Overrides
from cdm.model.keys import SliceKey
from cdm.model.rules import Needs
from cdm.model.slice import SliceState, SliceValue


class Command(Struct, frozen=True, gc=False):
    """One write to a slice key. ``state`` None deletes the key."""

    key: SliceKey
    state: SliceState | None
    reason: str
    failures: int = 0
    blueprint: int = 0
    overrides: Overrides | None = None
    loaded: int = 0
    """Of an ACTIVATE: revision of the LOADED that it answers."""
    template: str | None = None
    """Digest of the template that it serves."""
    content: str | None = None
    """Digest of the content that is to run."""
    after: float | None = None
    """Of an UNLOAD: seconds for which the slice goes on serving."""
    needs: Needs | None = None
    """What the slice reserves on its node."""
    folder: str | None = None
    """Of an UNLOAD: the folder in which its node began the slice, as that told."""

    def value(self, term: int) -> SliceValue:
        """What is written; the command must not be one that deletes the key."""
        assert self.state is not None
        return SliceValue(
            self.state,
            term,
            failures=self.failures or None,
            blueprint=self.blueprint or None,
            overrides=self.overrides,
            loaded=self.loaded or None,
            template=self.template,
            content=self.content,
            after=self.after,
            needs=self.needs,
            folder=self.folder,
        )


class Plan(Struct, frozen=True):
    """What to do about one artifact now, and when to look again."""

    commands: list[Command] = []
    wake_at: float | None = None
    """When something becomes due without any further message, in seconds."""
    unplaced: int = 0
    """Instances for which no node is open."""
    why: str = ""
    """Why that is so, as rules see it."""
    held: int = 0
    """Instances that are not placed yet because nodes are waited for."""
    lingering: int = 0
    """Exclusive instances that are to stop, or whose node is lost, and that may still run."""
    moving: str = ""
    """Why an instance is being moved; empty: none is."""
    cursor: NodeId | None = None
    """The node that was served last, where any was: the next round robin goes on behind it."""
    waits_for: tuple[str, ...] = ()
    """Services for which instances wait that are LOADED."""

    @property
    def is_short(self) -> bool:
        """Whether it cannot be carried out whole."""
        return bool(self.unplaced or self.held or self.lingering or self.waits_for or self.moving)

    def joined(self, other: Plan) -> Plan:
        """What is short of two plans for parts of one artifact's slices."""
        return Plan(
            unplaced=self.unplaced + other.unplaced,
            why=self.why or other.why,
            held=self.held + other.held,
            lingering=self.lingering + other.lingering,
            moving=self.moving or other.moving,
            waits_for=(*self.waits_for, *(each for each in other.waits_for if each not in self.waits_for)),
        )


WHOLE = Plan()
"""The plan of an artifact that needs nothing."""
