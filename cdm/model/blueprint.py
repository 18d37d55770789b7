"""Desired state: how many instances of an artifact shall run."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cdm.errors import InvalidArtifact, InvalidBlueprint
from cdm.model.artifact import MAX_PART, Artifact, Service
from cdm.model.problems import UNREADABLE, cut, explain, problem_with_encoding, shortened, without_mark
from cdm.model.rollout import NO_ROLLOUT, RolloutKind, RolloutSettings
from cdm.model.rules import EACH, NO_RULES, OnViolation, Rebalance, Rules
from cdm.model.rules_typed import TypedRules, check_for_each, check_for_service, typed_rules
from cdm.model.secret import SecretRef, secrets_in

MAX_INSTANCES = 100_000
MAX_BYTES = 64 * 1024
"""Longest blueprint that is read, in bytes; people type these."""
STOP_AFTER_RANGE = (1.0, 86_400.0)
"""Least and most seconds that ``stop_after`` may be."""
LONGEST_LAST_GRACE = 10.0
"""Most seconds that a slice with ``stop_after`` is given between the stop signal and SIGKILL when it is cut off."""
LAST_MARGIN = 2.0
"""Seconds for SIGKILL to be done, and for a machine that is busy."""
MIN_HEALTHY = 10.0
"""Seconds that an instance has to be ACTIVE to count as healthy, unless its blueprint says otherwise."""
LONGEST_MIN_HEALTHY = 86_400.0
DRAIN_DELAY = 5.0
"""Seconds between an instance's leaving the endpoints and its being stopped, unless its blueprint says otherwise."""
MAX_AFTER = 100
"""Most services that a blueprint may wait for."""
_EXPECTED = 'write a number of instances or {"instances": N}'

Instances = Annotated[int, Meta(ge=0, le=MAX_INSTANCES, description=f"a whole number from 0 to {MAX_INSTANCES:,}")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", description="the name of a variable")]
Text = Annotated[
    str, Meta(pattern=r"^[^\0\ud800-\udfff]*\Z", description="a string without NUL characters or lone surrogates")
]
"""What a program can be given as a variable or an argument."""
Variable = Annotated[
    Text | SecretRef,
    Meta(description='a string without NUL characters or lone surrogates, or {"secret": "NAME"}'),
]
Seconds = Annotated[
    float,
    Meta(
        ge=STOP_AFTER_RANGE[0],
        le=STOP_AFTER_RANGE[1],
        description="seconds from {:g} to {:,.0f}".format(*STOP_AFTER_RANGE),
    ),
]
Healthy = Annotated[
    float, Meta(ge=0, le=LONGEST_MIN_HEALTHY, description=f"seconds from 0 to {LONGEST_MIN_HEALTHY:,.0f}")
]

_Service = Annotated[str, Meta(max_length=2 * MAX_PART + 1, description="a service, group:name")]
Services = Annotated[
    tuple[_Service, ...], Meta(max_length=MAX_AFTER, description=f"a list of at most {MAX_AFTER} services, group:name")
]


class Overrides(Struct, frozen=True, omit_defaults=True):
    """Where a blueprint differs from the artifact's manifest; agents copy it from the command.

    Not judged here, so that a slice's value with an unusual one stays readable; `Blueprint.parse` checks a blueprint's.
    """

    env: dict[str, str | SecretRef] = {}
    """Variables that are set beside the manifest's, or instead; those that are secrets are read on the node."""
    args: tuple[str, ...] | None = None
    """Arguments instead of the manifest's; None: the manifest's."""
    stop_after: float | None = None
    """Seconds without an accepted heartbeat after which a node stops the slice; None: it runs on.

    A slice that has it must not run twice: no replacement is started while it may still run.
    """

    @property
    def has_secrets(self) -> bool:
        """Whether a variable is a secret."""
        return bool(self.env) and bool(secrets_in(self.env))

    @property
    def gone_after(self) -> float | None:
        """Seconds after its node's last heartbeat when the slice is certain to have stopped; None: it may run on."""
        if self.stop_after is None:
            return None
        # Bounded, because a slice's value is not judged: a wild one must not hold up its replacement for ever.
        return min(self.stop_after, STOP_AFTER_RANGE[1]) + LONGEST_LAST_GRACE + LAST_MARGIN


class Blueprint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Desired state of one artifact.

    Raises:
        InvalidBlueprint: ``instances`` is outside 0 … 100,000, or what is in ``after`` is no service, or given twice.
    """

    instances: int
    overrides: Overrides | None = None
    """Typed as ``env``, ``args`` and ``stop_after`` beside ``instances``.

    They hold for instances that are loaded from now on; an instance that is restarted on its node keeps what it was
    loaded with.
    """
    min_healthy: float = MIN_HEALTHY
    """Seconds that an instance has to be ACTIVE, since its last start, to count as healthy."""
    restarted: str | None = None
    """Any text: another one replaces every instance."""
    drain_delay: float = DRAIN_DELAY
    """Seconds between an instance's leaving the endpoints and its being stopped in good order."""
    after: tuple[str, ...] = ()
    """Services, ``group:name``, that must have a healthy instance before an instance of this is activated."""
    rollout: RolloutSettings = NO_ROLLOUT
    """How a new template or version takes over."""
    rules: Rules = NO_RULES
    """Where instances go; typed as the fields of `TypedRules`."""
    each: bool = False
    """Typed as ``"instances": "each"``: one instance on every node that fits; ``instances`` is 0 then."""
    on_violation: OnViolation = OnViolation.STAY
    rebalance: Rebalance = Rebalance.OFF
    rebalanced: str | None = None
    """Any text: another one has instances moved until they are balanced, once."""

    def __post_init__(self) -> None:
        if not 0 <= self.instances <= MAX_INSTANCES:
            raise InvalidBlueprint("instances", f"must be from 0 to {MAX_INSTANCES:,}")
        if self.after:
            _check_services(self.after)

    def check_for(self, artifact: Artifact) -> None:
        """Check what depends on the artifact that this is the blueprint of.

        Raises:
            InvalidBlueprint: it waits for itself, is to replace itself, or must be near itself.
        """
        if self.after and (own := str(artifact.service)) in self.after:
            raise InvalidBlueprint(f"after[{self.after.index(own)}]", f"{own} cannot wait for itself")
        if self.rollout.source == artifact.version:
            raise InvalidBlueprint(
                "rollout.from", f"{artifact.version} is this version itself; name the one that it replaces, or none"
            )
        if self.rules.near:
            check_for_service(self.rules, artifact.service)

    @property
    def settings(self) -> dict[str, Any]:
        """All but a number of ``instances``, ``overrides`` and ``min_healthy``, as typed; defaults are left out."""
        if self.rules is NO_RULES and not self.each and self._is_plain:
            return {}
        fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        fields = {name: value for name, value in fields.items() if name not in _TOLD_APART}
        return {**({"instances": EACH} if self.each else {}), **fields, **typed_rules(self.rules)}

    @property
    def is_number(self) -> bool:
        """Whether it says no more than how many instances are wanted."""
        plain = self.overrides is None and self.rules is NO_RULES and not self.each and self.min_healthy == MIN_HEALTHY
        return plain and self._is_plain

    @property
    def typed(self) -> dict[str, Any]:
        """All fields, as typed; defaults are left out."""
        overrides: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self.overrides or Overrides()))
        healthy = {} if self.min_healthy == MIN_HEALTHY else {"min_healthy": self.min_healthy}
        return {"instances": self.asked, **self.settings, **healthy, **overrides}

    @property
    def _is_plain(self) -> bool:
        """Whether `settings` have nothing to say, but for the rules and ``each``."""
        return (
            self.restarted is None
            and not self.after
            and self.drain_delay == DRAIN_DELAY
            and self.rollout is NO_ROLLOUT
            and self.on_violation is OnViolation.STAY
            and self.rebalance is Rebalance.OFF
            and self.rebalanced is None
        )

    @classmethod
    def parse(cls, raw: bytes) -> Blueprint:
        """Read ``3`` or ``{"instances": 3}``; an object may have the fields of `Overrides` and `TypedRules`, too.

        Raises:
            InvalidBlueprint: names the field and what is wrong with it.
        """
        typed = _read(raw)
        return cls(typed) if isinstance(typed, int) else _made(typed)

    @property
    def asked(self) -> int | str:
        """What ``instances`` is typed as."""
        return EACH if self.each else self.instances

    @property
    def wants_any(self) -> bool:
        """Whether any instance is wanted, or would be if a node for it were there."""
        return self.each or self.instances > 0


class _Typed(TypedRules, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A blueprint as people type it."""

    instances: Instances | Literal["each"]
    env: dict[Name, Variable] | None = None
    args: tuple[Text, ...] | None = None
    stop_after: Seconds | None = None
    min_healthy: Healthy = MIN_HEALTHY
    restarted: Text | None = None
    drain_delay: Healthy = DRAIN_DELAY
    after: Services = ()
    rollout: RolloutSettings | None = None


_TOLD_APART = frozenset({"instances", "overrides", "min_healthy", "rules", "each"})
_WRITTEN = Instances | _Typed


@cache
def _decoder() -> msgspec.json.Decoder[int | _Typed]:
    # It takes 8 ms to make, of the start of everything that knows what a blueprint is: most need none.
    return msgspec.json.Decoder(_WRITTEN)


def _read(raw: bytes) -> int | _Typed:
    """What people typed; raises `InvalidBlueprint`."""
    if len(raw) > MAX_BYTES:
        raise InvalidBlueprint("", f"is {len(raw):,} bytes long; at most {MAX_BYTES:,} are read")
    raw = without_mark(raw)
    try:
        typed = _decoder().decode(raw)
        if raw.count(b":") > 1:  # each field has its colon: with a single one, none is given twice
            _LOOSE.decode(raw.decode())
    except UNREADABLE as error:
        raise _problem(raw, error) from None
    return typed


def _made(typed: _Typed) -> Blueprint:
    if typed.stop_after is not None and typed.rollout is not None and typed.rollout.kind is RolloutKind.BLUE_GREEN:
        raise InvalidBlueprint(
            "rollout.kind",
            'cannot be "blue-green" with stop_after, which lets none run beside another; write "rolling"',
        )
    overrides = Overrides(typed.env or {}, typed.args, typed.stop_after)
    each, rules = isinstance(typed.instances, str), typed.rules()
    if each:
        check_for_each(typed, rules)
    return Blueprint(
        0 if isinstance(typed.instances, str) else typed.instances,
        None if overrides == Overrides() else overrides,
        typed.min_healthy,
        typed.restarted,
        typed.drain_delay,
        typed.after,
        typed.rollout or NO_ROLLOUT,
        rules,
        each,
        typed.on_violation,
        typed.rebalance,
        typed.rebalanced,
    )


def _check_services(services: tuple[str, ...]) -> None:
    for number, service in enumerate(services):
        try:
            Service.parse(service)
        except InvalidArtifact as error:
            raise InvalidBlueprint(f"after[{number}]", cut(str(error))) from None
        if service in services[:number]:
            raise InvalidBlueprint(f"after[{number}]", cut(f"{service} is given twice"))


def _problem(raw: bytes, error: Exception) -> InvalidBlueprint:
    """What is wrong with bytes that were refused with this error."""
    if not raw.strip():
        return InvalidBlueprint("", f"is empty; {_EXPECTED}")
    if problem := problem_with_encoding(raw):
        return InvalidBlueprint("", problem)
    value: object = None
    try:
        # Once more and slowly: json tells line and column, and finds a field that is given twice.
        value = _LOOSE.decode(raw.decode())
        if value == EACH:
            what = f"must be a whole number from 0 to {MAX_INSTANCES:,} or an object"
            return InvalidBlueprint("", f'{what}; one on each node is {{"instances": "{EACH}"}}')
        msgspec.convert(value, _WRITTEN)
    except InvalidBlueprint as found:
        return found
    except msgspec.ValidationError as found:
        field, what = explain(found, _WRITTEN, value)
        return InvalidBlueprint(field or "instances", what)
    except RecursionError:
        return InvalidBlueprint("", "is nested too deeply")
    except ValueError as found:  # of json and UTF-8
        error = found
    return InvalidBlueprint("", f"is not JSON: {error}; {_EXPECTED}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidBlueprint(shortened(twice), "is given twice")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _integer(digits: str) -> float:
    # Python refuses to read an integer of thousands of digits; as a float it is too large for any field.
    return int(digits) if len(digits) < 100 else float(digits)


_LOOSE = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_integer)
