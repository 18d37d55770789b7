"""Conditions on a node's labels, as people write them: "gpu", "!spot", "zone in (a, b)", "kernel >= 6.1". Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from enum import StrEnum, unique

from msgspec import Struct

from cdm.errors import InvalidBlueprint
from cdm.model.problems import cut, shortened

MAX_CONDITION = 1_000
"""Longest condition, in characters."""
MAX_LABEL = 200
"""Longest name of a label, in characters."""

_FORMS = (
    'write "gpu", "!spot", "zone = a", "class != spot", "zone in (a, b)", "zone not in (c)" or "kernel >= 6.1", '
    "with single quotes around words that have spaces or signs in them"
)
_PLAIN = r"[^\s=!<>(),']"
_BARE = rf"(?!(?:not|in|and|or)(?!{_PLAIN})){_PLAIN}+"
"""A word that needs no quotes."""
_WORD = rf"(?:{_BARE}|'(?:[^']|'')*')"
_ALONE = rf"(!?)\s*({_WORD})"
_COMPARED = rf"({_WORD})\s*(<=|>=|!=|=|<|>)\s*({_WORD})"
_AMONG = rf"({_WORD})\s+(not\s+)?in\s*\(\s*({_WORD}(?:\s*,\s*{_WORD})*)\s*\)"
_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})*)(?:[-+~_].*)?", re.DOTALL)


@unique
class LabelOperator(StrEnum):
    """How a condition judges a label."""

    PRESENT = "present"
    ABSENT = "absent"
    IN = "in"
    NOT_IN = "not in"
    """Holds, too, where there is no such label."""
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="

    __hash__ = str.__hash__


_ORDER: dict[LabelOperator, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    LabelOperator.LESS: operator.lt,
    LabelOperator.AT_MOST: operator.le,
    LabelOperator.MORE: operator.gt,
    LabelOperator.AT_LEAST: operator.ge,
}


class LabelCondition(Struct, frozen=True, cache_hash=True):
    """A condition on the labels of a node; made with `parse`. Two that say the same in the same order are equal."""

    text: str
    """As people write it, with the usual white space: `parse` reads the same condition from it."""
    label: str
    operator: LabelOperator
    values: tuple[str, ...] = ()
    """What the label is compared with."""
    number: tuple[int, ...] = ()
    """The value as numbers, for a comparison."""

    @classmethod
    def parse(cls, text: str) -> LabelCondition:
        """Read a condition.

        Raises:
            InvalidBlueprint: it is none; says what to write. The error names no field.
        """
        if len(text) > MAX_CONDITION:
            raise InvalidBlueprint("", f"is {len(text):,} characters long; at most {MAX_CONDITION:,} are read")
        stripped = text.strip()
        if found := re.fullmatch(_ALONE, stripped):
            label, kind = _label(found[2]), LabelOperator.ABSENT if found[1] else LabelOperator.PRESENT
            return cls(f"{found[1]}{_quoted(label)}", label, kind)
        if found := re.fullmatch(_COMPARED, stripped):
            return cls._compared(_label(found[1]), found[2], _unquoted(found[3]))
        if found := re.fullmatch(_AMONG, stripped):
            label, kind = _label(found[1]), LabelOperator.NOT_IN if found[2] else LabelOperator.IN
            values = tuple(dict.fromkeys(map(_unquoted, re.findall(_WORD, found[3]))))
            return cls(f"{_quoted(label)} {kind} ({', '.join(map(_quoted, values))})", label, kind, values)
        raise InvalidBlueprint("", cut(f'"{shortened(stripped)}" {_complaint(stripped)}'))

    @classmethod
    def _compared(cls, label: str, sign: str, value: str) -> LabelCondition:
        text = f"{_quoted(label)} {sign} {_quoted(value)}"
        if sign in ("=", "!="):
            return cls(text, label, LabelOperator.IN if sign == "=" else LabelOperator.NOT_IN, (value,))
        if (number := _dotted(value)) is None:
            raise InvalidBlueprint(
                "", f'"{shortened(text)}" compares with {value[:40]!r}, which is not a dotted number such as 6.1'
            )
        return cls(text, label, LabelOperator(sign), (value,), number)

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it holds on a node with these labels."""
        value = labels.get(self.label)
        if self.operator is LabelOperator.IN:
            return value in self.values
        if self.operator is LabelOperator.NOT_IN:
            return value not in self.values
        if value is None:
            return self.operator is LabelOperator.ABSENT
        if self.operator in (LabelOperator.PRESENT, LabelOperator.ABSENT):
            return self.operator is LabelOperator.PRESENT
        number = _dotted(value)
        return number is not None and _ORDER[self.operator](number, self.number)

    def __str__(self) -> str:
        return self.text


def problem_with_label(name: str) -> str:
    """What keeps a text from being the name of a label, for people; empty: nothing."""
    if re.search(r"[\s\0\ud800-\udfff]", name):
        return f"{name[:40]!r} has a space in it, or another character that the name of a label cannot have"
    return f"{name[:40]!r}… is longer than {MAX_LABEL} characters" if len(name) > MAX_LABEL else ""


def _dotted(text: str) -> tuple[int, ...] | None:
    """The numbers of "6.1.0-25-amd64", without zeros at the end, so that 6.1 is 6.1.0; None: it does not begin so."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _quoted(word: str) -> str:
    """A word as it stands in a condition."""
    return word if re.fullmatch(_BARE, word) else "'{}'".format(word.replace("'", "''"))


def _unquoted(word: str) -> str:
    return word[1:-1].replace("''", "'") if word.startswith("'") else word


def _label(word: str) -> str:
    """The name of a label, as it stands in a condition."""
    name = _unquoted(word)
    if not name:
        raise InvalidBlueprint("", "asks for a label without a name")
    if problem := problem_with_label(name):
        raise InvalidBlueprint("", f"asks for a label whose name {problem}")
    return name


def _complaint(text: str) -> str:
    """What is wrong with a text that is no condition, and what to write."""
    if not text:
        return f"is empty; {_FORMS}"
    if re.search(r"&&|\|\||\b(?:and|or)\b", text):
        return 'says more than one thing; write each as a condition of its own, and "zone in (a, b)" for a or b'
    if "==" in text:
        return "has two signs in a row; write a single ="
    if re.match(r"not\s", text):
        return 'begins with "not"; write "!" before a label, or "zone not in (a)"'
    if re.search(r"\(\s*\)", text):
        return "has nothing in its brackets; at least one value is needed"
    if re.search(r"=[^(]*,", text):
        return 'compares with several values; write "zone in (a, b)"'
    return f"is not a condition; {_FORMS}"
