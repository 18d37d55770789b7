"""Where instances may go, and where they should: the rules of a blueprint, as they are used. Pure.

The order in which they count: hard rules (`Rules.require`, hard neighbours, needs, the most on a node, and a spread
that waits), then spread, preferences, strategy, fewest slices, round robin. Compared in this order, never averaged.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated

from msgspec import Meta, Struct

from cdm.model.condition import LabelCondition, LabelOperator
from cdm.model.quantity import MOST_CPU, MOST_MEMORY

EACH = "each"
"""Typed as ``instances``: one on every node that fits."""
ROUND_ROBIN = "round-robin"
"""The strategy where a blueprint names none."""
NODE_LABEL = "node"
"""The label that every node has: its id."""
SECRETS_LABEL = "cdm.secrets"
"""The label, as conditions see it, of nodes that give slices secrets; whatever a node says of it itself."""
TRUST_LABEL = "cdm.trust"
"""The label, as conditions see it, of nodes that run only what is signed (``--trust``); likewise."""
OTHERS = "*"
"""In the weights of a spread: every value that is not named."""


@unique
class OnViolation(StrEnum):
    """What follows when a hard rule does not hold any more where an instance runs."""

    STAY = "stay"
    """It is told, and the instance stays."""
    MOVE = "move"
    """The instance is moved, as a rollout would."""


@unique
class Rebalance(StrEnum):
    """When healthy instances are moved without need, so that the rules are kept better."""

    OFF = "off"
    """Only when an operator asks for it."""
    ON_JOIN = "on-join"
    """Once a node that joined has been up for a minute."""


class Preference(Struct, frozen=True, omit_defaults=True):
    """Of the nodes that fit, those with the highest sum of weights come first."""

    condition: LabelCondition
    weight: int
    """From 1 to 100."""


class Spread(Struct, frozen=True, omit_defaults=True):
    """How instances are shared out over the values of a label, its domains."""

    by: str
    """The label."""
    weights: dict[str, float] = {}
    """Shares by value; `OTHERS` stands for every value that is not named. Empty: every domain has the same share."""
    max_skew: int = 1
    """A domain has less than so many instances more, or fewer, than its share: with 1, exactly its share."""
    anyway: bool = True
    """Whether an instance that no node takes within the skew is placed all the same, or waits."""

    def weight(self, domain: str | None) -> float:
        """The weight of a domain; None: that of the nodes without the label."""
        if not self.weights:
            return 1.0
        others = self.weights.get(OTHERS, 0.0)
        return others if domain is None or domain == OTHERS else self.weights.get(domain, others)


class Neighbour(Struct, frozen=True, omit_defaults=True):
    """A service that instances are to be near to, or apart from."""

    service: str
    """``group:name``."""
    by: str = NODE_LABEL
    """The label of which both have the same value when they are near."""
    hard: bool = False
    """Whether it is a rule; else it is a wish."""


class Needs(Struct, frozen=True, omit_defaults=True, gc=False):
    """What one instance reserves on its node."""

    cpu: Annotated[float, Meta(ge=0, le=MOST_CPU)] = 0.0
    """Cores, in thousandths; sum them up with `cdm.model.quantity.millicores`."""
    memory: Annotated[int, Meta(ge=0, le=MOST_MEMORY)] = 0
    """Bytes."""


class Rules(Struct, frozen=True, omit_defaults=True):
    """All that a blueprint says of where its instances go."""

    require: tuple[LabelCondition, ...] = ()
    """All of them must hold."""
    prefer: tuple[Preference, ...] = ()
    spread: tuple[Spread, ...] = ()
    """Compared in this order."""
    near: tuple[Neighbour, ...] = ()
    apart: tuple[Neighbour, ...] = ()
    needs: Needs | None = None
    max_per_node: int | None = None
    """Most instances on one node; None: no limit."""
    strategy: str = ROUND_ROBIN
    """Name of the strategy that orders nodes which are equal so far."""


GIVES_SECRETS = LabelCondition(SECRETS_LABEL, SECRETS_LABEL, LabelOperator.PRESENT)
"""What is required of nodes where instances are to be given secrets."""
NO_RULES = Rules()
"""The rules of a blueprint that says nothing of them; always this object, so that `is` tells."""
