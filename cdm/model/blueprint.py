"""Desired state: how many instances of an artifact shall run."""

from __future__ import annotations

import json
import re
from collections import Counter

from msgspec import Struct

from cdm.errors import InvalidBlueprint

MAX_INSTANCES = 100_000
MAX_BYTES = 64 * 1024
"""Longest blueprint that is read, in bytes; people type these."""
STOP_AFTER_RANGE = (1.0, 86_400.0)
"""Least and most seconds that ``stop_after`` may be."""
LONGEST_LAST_GRACE = 10.0
"""Most seconds that a slice with ``stop_after`` is given between the stop signal and SIGKILL when it is cut off."""
LAST_MARGIN = 2.0
"""Seconds for SIGKILL to be done, and for a machine that is busy."""
_FIELDS = ("instances", "env", "args", "stop_after")
_WANTED = 'write a number of instances or {"instances": N}'
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Overrides(Struct, frozen=True, omit_defaults=True):
    """What a blueprint wants otherwise than the artifact's manifest has it; agents copy it from the command."""

    env: dict[str, str] = {}
    """Variables that are set beside the manifest's, or instead."""
    args: tuple[str, ...] | None = None
    """Arguments instead of the manifest's; None: those."""
    stop_after: float | None = None
    """Seconds after which a slice is stopped on a node whose heartbeats NATS does not take; None: it runs on.

    A slice that has it must not run twice: nobody takes its place while it may still run.
    """

    @property
    def gone_after(self) -> float | None:
        """Seconds after a node's last heartbeat when nothing of its slice runs any more; None: nobody knows."""
        if self.stop_after is None:
            return None
        # Values of slices are not judged as blueprints are: a wild one must not hold up its replacement for ever.
        return min(self.stop_after, STOP_AFTER_RANGE[1]) + LONGEST_LAST_GRACE + LAST_MARGIN


class Blueprint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Desired state of one artifact.

    Raises:
        InvalidBlueprint: ``instances`` is outside 0 … 100,000.
    """

    instances: int
    overrides: Overrides | None = None
    """Typed as ``env``, ``args`` and ``stop_after`` beside ``instances``.

    They hold for instances that are loaded from now on; what is started again on its node keeps what it was loaded
    with.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.instances <= MAX_INSTANCES:
            raise InvalidBlueprint(
                "instances", f"must be from 0 to {MAX_INSTANCES:,}, not {_short(str(self.instances))}"
            )

    @classmethod
    def parse(cls, raw: bytes) -> Blueprint:
        """Read ``3`` or ``{"instances": 3}``; an object may have the fields of `Overrides`, too.

        Raises:
            InvalidBlueprint: names the field and what is wrong with it.
        """
        if not raw.strip():
            raise InvalidBlueprint("", f"is empty; {_WANTED}")
        if len(raw) > MAX_BYTES:
            raise InvalidBlueprint("", f"is {len(raw):,} bytes long; at most {MAX_BYTES:,} are read")
        try:
            loose = _DECODER.decode(raw.decode())
        except RecursionError:
            raise InvalidBlueprint("", "is nested too deeply") from None
        except InvalidBlueprint:
            raise
        except ValueError as error:
            raise InvalidBlueprint("", f"is not JSON; {_WANTED} ({error})") from None
        if not isinstance(loose, dict):
            return cls(_whole_number(loose))
        for field in loose:
            if field not in _FIELDS:
                raise InvalidBlueprint(_short(field), f"is not a field of a blueprint (fields: {', '.join(_FIELDS)})")
        if "instances" not in loose:
            raise InvalidBlueprint("instances", "is required")
        return cls(_whole_number(loose["instances"]), _overrides(loose))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidBlueprint(_short(twice), "is given twice")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _whole_number(value: object) -> int:
    # bool is an int in Python, and 3.0 equals 3: neither is what somebody meant to type here.
    if type(value) is not int:
        shown = {dict: "an object", list: "a list", type(None): "null"}.get(type(value)) or json.dumps(value)
        raise InvalidBlueprint("instances", f"must be a whole number, not {_short(shown)}")
    return value


def _overrides(loose: dict[str, object]) -> Overrides | None:
    found = Overrides(_env(loose.get("env")), _args(loose.get("args")), _stop_after(loose.get("stop_after")))
    return None if found == Overrides() else found


def _env(env: object) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, dict):
        raise InvalidBlueprint("env", f'must be an object of variables, as in {{"LEVEL": "debug"}}, not {_shown(env)}')
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise InvalidBlueprint("env", f"{_short(name)!r} is no name of a variable")
        if not isinstance(value, str) or not _fit(value):
            raise InvalidBlueprint("env", f"{name} must be a text, not {_shown(value)}")
    return env


def _args(args: object) -> tuple[str, ...] | None:
    if args is None:
        return None
    if not isinstance(args, list) or not all(isinstance(each, str) and _fit(each) for each in args):
        raise InvalidBlueprint("args", f"must be a list of texts, not {_shown(args)}")
    return tuple(args)


def _stop_after(seconds: object) -> float | None:
    if seconds is None:
        return None
    least, most = STOP_AFTER_RANGE
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not least <= seconds <= most:
        raise InvalidBlueprint("stop_after", f"must be seconds from {least:g} to {most:,.0f}, not {_shown(seconds)}")
    return float(seconds)


def _fit(text: str) -> bool:
    """Whether a program can be given this: no NUL, and no half of a character."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    return _short(json.dumps(value))


def _short(text: str) -> str:
    """What was typed, fit to be shown: not long, and without the lone surrogates that JSON can express."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 40 else f"{text[:37]}…"
