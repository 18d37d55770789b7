"""Where instances go, as people type it in a blueprint: read, checked, and written back.

The fields stand beside ``instances``. What their types alone do not rule out is found by `TypedRules.rules`, with the
place in the error: ``spread[0].weights.a``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, field

from cdm.errors import InvalidArtifact, InvalidBlueprint
from cdm.model.artifact import MAX_PART, Service
from cdm.model.condition import MAX_LABEL, LabelCondition
from cdm.model.problems import cut, shortened
from cdm.model.quantity import Cores, Memory, check_cores, memory_of, memory_text
from cdm.model.rules import (
    EACH,
    NO_RULES,
    NODE_LABEL,
    OTHERS,
    ROUND_ROBIN,
    Needs,
    Neighbour,
    OnViolation,
    Preference,
    Rebalance,
    Rules,
    Spread,
)

T = TypeVar("T")

MOST = 100
"""Most conditions, preferences, or services in one list."""
MOST_SPREADS = 10
MOST_INSTANCES = 100_000
_MOST_WEIGHT = 1_000_000

_Text = Meta(pattern=r"^[^\0\ud800-\udfff]*\Z")
_Condition = Annotated[str, _Text, Meta(description='a condition like "gpu", "!spot" or "zone in (a, b)"')]
_Label = Annotated[
    str,
    Meta(
        pattern=r"^[^\0\s\ud800-\udfff]+\Z",
        max_length=MAX_LABEL,
        description=f"the name of a label, without spaces (at most {MAX_LABEL} characters)",
    ),
]
_Domain = Annotated[str, _Text, Meta(max_length=200, description='a value of the label, or "*" for all others')]
_Weight = Annotated[float, Meta(ge=0, le=_MOST_WEIGHT, description=f"a number from 0 to {_MOST_WEIGHT:,}")]
_Service = Annotated[str, Meta(max_length=2 * MAX_PART + 1, description="a service, group:name")]
_Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z",
        description='the name of a strategy: lower-case letters, digits, ".", "-" and "_" (at most 63 characters)',
    ),
]


class TypedPreference(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"if": condition, "weight": 1-100}``."""

    condition: _Condition = field(name="if")
    weight: Annotated[int, Meta(ge=1, le=100)]


class TypedSpread(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"by": label, "weights": {"a": 2, "*": 1}, "max_skew": 1, "or": "wait"}``."""

    by: _Label
    weights: dict[_Domain, _Weight] | None = None
    max_skew: Annotated[int, Meta(ge=1, le=MOST_INSTANCES)] = 1
    otherwise: Literal["anyway", "wait"] = field(name="or", default="anyway")


class TypedNear(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"with": service, "by": label, "hard": true}``; a wish unless it says otherwise."""

    service: _Service = field(name="with")
    by: _Label = NODE_LABEL
    hard: bool = False


class TypedApart(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"from": service, "by": label, "hard": false}``; a rule unless it says otherwise."""

    service: _Service = field(name="from")
    by: _Label = NODE_LABEL
    hard: bool = True


class TypedNeeds(Struct, frozen=True, forbid_unknown_fields=True):
    """``{"cpu": 0.5, "memory": "256M"}``."""

    cpu: Cores = 0.0
    memory: Memory = 0


def _at_most(most: int, what: str) -> Meta:
    return Meta(max_length=most, description=f"a list of at most {most} {what}")


class TypedRules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of a blueprint that say where its instances go."""

    require: Annotated[tuple[_Condition, ...], _at_most(MOST, "conditions")] = ()
    prefer: Annotated[tuple[TypedPreference, ...], _at_most(MOST, "preferences")] = ()
    spread: Annotated[tuple[TypedSpread, ...], _at_most(MOST_SPREADS, "spreads")] = ()
    near: Annotated[tuple[_Service | TypedNear, ...], _at_most(MOST, "services")] = ()
    apart: Annotated[tuple[_Service | TypedApart, ...], _at_most(MOST, "services")] = ()
    needs: TypedNeeds | None = None
    max_per_node: Annotated[int, Meta(ge=1, le=MOST_INSTANCES)] | None = None
    strategy: _Name = ROUND_ROBIN
    on_violation: OnViolation = OnViolation.STAY
    rebalance: Rebalance = Rebalance.OFF
    rebalanced: Annotated[str, _Text] | None = None

    def rules(self) -> Rules:
        """What they say; `NO_RULES` itself where that is nothing.

        Raises:
            InvalidBlueprint: a condition that is none, a weight or service that cannot be, or something given twice.
        """
        rules = Rules(
            _each("require", self.require, LabelCondition.parse),
            _each("prefer", self.prefer, _preference),
            _each("spread", self.spread, _spread),
            _each("near", self.near, _near),
            _each("apart", self.apart, _apart),
            _needs(self.needs),
            self.max_per_node,
            self.strategy,
        )
        if rules == NO_RULES:
            return NO_RULES
        _once("require", (each.text for each in rules.require))
        _once("prefer", (each.condition.text for each in rules.prefer), ".if")
        _once("spread", (each.by for each in rules.spread), ".by")
        _once("near", ((each.service, each.by) for each in rules.near))
        _once("apart", ((each.service, each.by) for each in rules.apart))
        _check_neighbours(rules)
        return rules


_NOTHING_TYPED = TypedRules()


def typed_rules(rules: Rules) -> dict[str, Any]:
    """Rules as people type them; `TypedRules` reads the same from it."""
    if rules is NO_RULES:
        return {}
    typed: dict[str, Any] = {
        "require": [each.text for each in rules.require],
        "prefer": [{"if": each.condition.text, "weight": each.weight} for each in rules.prefer],
        "spread": [_typed_spread(each) for each in rules.spread],
        "near": [_typed_neighbour(each, "with", hard=False) for each in rules.near],
        "apart": [_typed_neighbour(each, "from", hard=True) for each in rules.apart],
        "needs": _typed_needs(rules.needs) if rules.needs else {},
        "max_per_node": rules.max_per_node,
        "strategy": "" if rules.strategy == ROUND_ROBIN else rules.strategy,
    }
    return {name: value for name, value in typed.items() if value}


_NOT_FOR_EACH = {
    **dict.fromkeys(("prefer", "spread", "max_per_node", "strategy"), "one runs on every node that fits"),
    "on_violation": "what does not fit any more goes at once",
    **dict.fromkeys(("rebalance", "rebalanced"), "none can be elsewhere"),
}
"""Fields that say nothing of a blueprint that wants one instance on every node that fits, and why."""


def check_for_each(typed: TypedRules, rules: Rules) -> None:
    """Check what is typed of a blueprint that wants one instance on every node that fits.

    Args:
        typed: as it is typed.
        rules: what that says.

    Raises:
        InvalidBlueprint: it says how many go where, or where they had better go, or that any are to be moved.
    """
    for name, why in _NOT_FOR_EACH.items():
        if getattr(typed, name) != getattr(_NOTHING_TYPED, name):
            raise InvalidBlueprint(name, f'says nothing where "instances" is "{EACH}": {why}; leave it out')
    for name, neighbours in (("near", rules.near), ("apart", rules.apart)):
        for number, each in enumerate(neighbours):
            if not each.hard:
                raise InvalidBlueprint(
                    f"{name}[{number}]",
                    f'is a wish, which says nothing where "instances" is "{EACH}": one runs on every node that fits; '
                    'leave it out, or write "hard": true',
                )


def check_for_service(rules: Rules, service: Service) -> None:
    """Check what depends on the service that the blueprint is of.

    Raises:
        InvalidBlueprint: it must be near itself.
    """
    for number, near in enumerate(rules.near):
        if near.hard and near.service == str(service):
            raise InvalidBlueprint(
                f"near[{number}]",
                f'{service} is this service itself, and would never start; write "hard": false',
            )


def _each(name: str, typed: Iterable[Any], read: Callable[[Any], T]) -> tuple[T, ...]:
    """All items of a list; an error says which."""
    found = []
    for number, item in enumerate(typed):
        try:
            found.append(read(item))
        except InvalidBlueprint as error:
            inner = f".{error.field}" if error.field else ""
            raise InvalidBlueprint(f"{name}[{number}]{inner}", error.problem) from None
    return tuple(found)


def _once(name: str, items: Iterable[object], inner: str = "") -> None:
    seen: dict[object, int] = {}
    for number, item in enumerate(items):
        if item in seen:
            raise InvalidBlueprint(f"{name}[{number}]{inner}", f"says the same as {name}[{seen[item]}]{inner}")
        seen[item] = number


def _preference(typed: TypedPreference) -> Preference:
    try:
        return Preference(LabelCondition.parse(typed.condition), typed.weight)
    except InvalidBlueprint as error:
        raise InvalidBlueprint("if", error.problem) from None


def _spread(typed: TypedSpread) -> Spread:
    weights = typed.weights or {}
    if weights and not any(weights.values()):
        raise InvalidBlueprint("weights", f'are all 0, so there is no place at all; write "{OTHERS}": 1 for all others')
    if typed.weights == {}:
        raise InvalidBlueprint("weights", "is empty; leave it out where all values have the same share")
    return Spread(typed.by, weights, typed.max_skew, typed.otherwise == "anyway")


def _near(typed: str | TypedNear) -> Neighbour:
    return _neighbour(TypedNear(typed), "") if isinstance(typed, str) else _neighbour(typed, "with")


def _apart(typed: str | TypedApart) -> Neighbour:
    return _neighbour(TypedApart(typed), "") if isinstance(typed, str) else _neighbour(typed, "from")


def _neighbour(typed: TypedNear | TypedApart, name: str) -> Neighbour:
    try:
        Service.parse(typed.service)
    except InvalidArtifact as error:
        raise InvalidBlueprint(name, cut(str(error))) from None
    return Neighbour(typed.service, typed.by, typed.hard)


def _needs(typed: TypedNeeds | None) -> Needs | None:
    if typed is None:
        return None
    check_cores("needs.cpu", typed.cpu)
    try:
        memory = memory_of(typed.memory)
    except InvalidBlueprint as error:
        raise InvalidBlueprint("needs.memory", error.problem) from None
    needs = Needs(float(typed.cpu), memory)
    return needs if needs != Needs() else None


def _check_neighbours(rules: Rules) -> None:
    """Refuse what must be near a service and apart from it at once."""
    for number, apart in enumerate(rules.apart):
        if apart.hard and apart in rules.near:
            raise InvalidBlueprint(
                f"apart[{number}]",
                f"{shortened(apart.service)} must be near by {shortened(apart.by)}, too, "
                f"as near[{rules.near.index(apart)}] says",
            )


def _typed_spread(spread: Spread) -> dict[str, Any]:
    typed: dict[str, Any] = {"by": spread.by}
    if spread.weights:
        typed["weights"] = spread.weights
    if spread.max_skew != 1:
        typed["max_skew"] = spread.max_skew
    return typed if spread.anyway else {**typed, "or": "wait"}


def _typed_neighbour(neighbour: Neighbour, name: str, *, hard: bool) -> str | dict[str, Any]:
    typed: dict[str, Any] = {name: neighbour.service}
    if neighbour.by != NODE_LABEL:
        typed["by"] = neighbour.by
    if neighbour.hard is not hard:
        typed["hard"] = neighbour.hard
    return typed if len(typed) > 1 else neighbour.service


def _typed_needs(needs: Needs) -> dict[str, Any]:
    typed = {"cpu": needs.cpu, "memory": memory_text(needs.memory)}
    return {name: value for name, value in typed.items() if value}
