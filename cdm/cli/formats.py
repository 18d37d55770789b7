"""YAML, TOML and JSON as people write them: values, and in which line each stands.

YAML is read as version 1.2 says, where ``off`` and ``yes`` are text. In all of them a file may hold several documents:
YAML's own, one JSON value after another, a list of documents, or a list under the name ``blueprints``.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NoReturn

from cdm.model.problems import shortened, without_mark

LIST = "blueprints"
"""The field under which a file has a list of documents."""
MOST_VALUES = 200_000
"""Most values in one file, where aliases count as what they stand for."""
_DEEPEST = 100
_TAG = "tag:yaml.org,2002:"
_TEXTS = ("str", "timestamp", "value")
"""Kinds of scalars that are text here."""
_TOML_LINE = re.compile(r"\s*(\[\[?[A-Za-z0-9_.\"' -]+\]\]?\s*(#.*)?$|[A-Za-z0-9_.\"' -]+=)")
_TOML_AT = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)", re.DOTALL)
_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_TOML_KEY = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")
_TOML_LONG = re.compile(r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''", re.DOTALL)

Lines = Mapping[str, int]
"""The line of each field, by its path as in ``rollout.steps[0].weight``."""


class UnreadableFile(Exception):
    """Raised for text that is not what it should be; tells the line, 0 where it is not known."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(what)
        self.line = line


class Portion:
    """One document of a file.

    Args:
        value: what it says.
        find_lines: finds the lines of its fields.
        path: where it is in what `find_lines` knows.
    """

    def __init__(self, value: Any, find_lines: Callable[[], Lines], path: str = "") -> None:
        self.value = value
        self._find_lines = find_lines
        self._path = path

    @cached_property
    def lines(self) -> Lines:
        """The lines of all fields of the file's document that it is a part of."""
        return self._find_lines()

    def line_of(self, field: str) -> int:
        """The line of a field, or of what it is missing in; 0: not known."""
        path = f"{self._path}.{field}" if self._path and field else self._path or field
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0)

    def items(self) -> Iterator[Portion]:
        """The documents of a list of them; itself where it is none."""
        value, path = self.value, self._path
        if isinstance(value, dict) and value.keys() == {LIST}:
            value, path = value[LIST], f"{path}.{LIST}" if path else LIST
        if not isinstance(value, list):
            yield self
            return
        for number, each in enumerate(value):
            yield Portion(each, lambda: self.lines, f"{path}[{number}]")


def portions_of(raw: bytes, name: str) -> list[Portion]:
    """The documents of a file.

    Args:
        raw: its bytes.
        name: its name, whose ending tells how it is written; for any other it is told by what is in it.

    Raises:
        UnreadableFile: it cannot be read.
    """
    try:
        text = without_mark(raw).decode()
    except UnicodeDecodeError as error:
        raise UnreadableFile("is not UTF-8", raw.count(b"\n", 0, error.start) + 1) from None
    try:
        return [item for part in _READERS[_format(text, name)](text) for item in part.items()]
    except RecursionError:
        raise UnreadableFile("is nested too deeply") from None


def _format(text: str, name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    if ending in _READERS:
        return ending
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if _TOML_LINE.match(first):
        return "toml"
    return "json" if first.lstrip().startswith(("{", "[")) else "yaml"


# JSON


def _json(text: str) -> Iterator[Portion]:
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
    at, end = 0, len(text)
    while (at := _past_white_space(text, at)) < end:
        start = at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UnreadableFile(f"is not JSON: {error.msg}", error.lineno) from None
        except ValueError as error:
            above = text.count("\n", 0, start)
            raise UnreadableFile(str(error), _duplicates_line(text[start:], above) or above + 1) from None
        yield Portion(value, lambda start=start, at=at: _json_lines(text, start, at))  # type: ignore[misc]


def _past_white_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shortened(next(each for each in names if names.count(each) > 1))}: is given twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _json_lines(text: str, start: int, end: int) -> Lines:
    """The lines of what is known to be JSON, and so YAML, but for tabs between its parts."""
    above = text.count("\n", 0, start)
    try:
        (part,) = _yaml(text[start:end].replace("\t", " "))
    except (UnreadableFile, ValueError):
        return {"": above + 1}
    return {path: line + above for path, line in part.lines.items()}


def _duplicates_line(text: str, above: int) -> int:
    try:
        list(_yaml(text.replace("\t", " ")))
    except UnreadableFile as found:
        return found.line + above if "twice" in str(found) else 0
    return 0


# YAML


def _yaml(text: str) -> Iterator[Portion]:
    from ruamel.yaml import YAML  # noqa: PLC0415  # slow to import
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415

    try:
        constructor, _ = YAML(typ="safe", pure=True).get_constructor_parser(text)
        while constructor.composer.check_node():
            node = constructor.composer.get_node()
            lines: dict[str, int] = {"": node.start_mark.line + 1}
            value = _Yaml(constructor, lines).value(node, "", 0)
            if value is not None:  # an empty document
                yield Portion(value, lambda lines=lines: lines)  # type: ignore[misc]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise UnreadableFile(f"is not YAML: {what}", mark.line + 1 if mark else 0) from None
    except YAMLError as error:
        at = getattr(error, "position", None)
        line = text.count("\n", 0, at) + 1 if isinstance(at, int) else 0
        raise UnreadableFile(f"is not YAML: {str(error).splitlines()[0]}", line) from None
    except (LookupError, AttributeError, TypeError) as error:  # of the library: for %YAML 1.1, for example
        raise UnreadableFile(f"is not YAML that can be read: {error}") from None


class _Yaml:
    """Makes values of nodes, and notes their lines."""

    def __init__(self, constructor: Any, lines: dict[str, int]) -> None:
        self._constructor = constructor
        self.lines = lines
        self._left = MOST_VALUES

    def value(self, node: Any, path: str, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise UnreadableFile("has too many values, or is nested too deeply", node.start_mark.line + 1)
        if isinstance(node.value, str):
            return self._scalar(node)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "seq":
            return [self._item(each, f"{path}[{number}]", depth) for number, each in enumerate(node.value)]
        if kind == "map":
            return self._mapping(node, path, depth)
        raise _unknown_kind(node)

    def _item(self, node: Any, path: str, depth: int) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.value(node, path, depth + 1)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if str(key.tag) == f"{_TAG}merge":
                merged |= self._merged(value, path, depth, line)
                continue
            if not isinstance(key.value, str):
                raise UnreadableFile("is not YAML that can be read: a name must be text", line)
            name = key.value
            if name in fields:
                raise UnreadableFile(f"{shortened(name)}: is given twice", line)
            inner = f"{path}.{name}" if path else name
            self.lines[inner] = line
            fields[name] = self.value(value, inner, depth + 1)
        return {**merged, **fields}

    def _merged(self, node: Any, path: str, depth: int, line: int) -> dict[str, Any]:
        """The fields that ``<<`` names; of several mappings the first that has one."""
        several = node.value if str(node.tag) == f"{_TAG}seq" else [node]
        fields: dict[str, Any] = {}
        for each in several:
            if str(each.tag) != f"{_TAG}map":
                raise UnreadableFile("is not YAML that can be read: << must name mappings", line)
            fields = {**self._mapping(each, path, depth + 1), **fields}
        return fields

    def _scalar(self, node: Any) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        line = node.start_mark.line + 1
        if kind in _TEXTS:
            return node.value
        if kind == "null":
            return None
        made = {"bool": "construct_yaml_bool", "int": "construct_yaml_int", "float": "construct_yaml_float"}.get(kind)
        if made is None:
            raise _unknown_kind(node)
        try:
            value = getattr(self._constructor, made)(node)
        except ValueError:
            return node.value
        if isinstance(value, float) and not math.isfinite(value):
            raise UnreadableFile(f"{shortened(node.value)} is not a number", line)
        return value


def _unknown_kind(node: Any) -> UnreadableFile:
    return UnreadableFile(
        f"is not YAML that can be read: there is no kind of value {node.tag}", node.start_mark.line + 1
    )


# TOML


def _toml(text: str) -> Iterator[Portion]:
    try:
        value = tomllib.loads(text, parse_float=_finite)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_AT.fullmatch(str(error))
        line = int(found["line"] or text.count("\n") + 1) if found else 0
        raise UnreadableFile(f"is not TOML: {found['what'] if found else error}", line) from None
    except ValueError as error:
        raise UnreadableFile(str(error)) from None
    if value:
        yield Portion(value, lambda: _toml_lines(text))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number")
    return number


def _toml_lines(text: str) -> Lines:
    """The lines of tables and of names before ``=``; what stands inside a value has the line where that begins."""
    text = _TOML_LONG.sub(lambda found: "\n" * found[0].count("\n"), text)
    lines, counts, table = {"": 1}, dict[str, int](), ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_HEADER.match(line):
            name = _toml_name(header[2])
            # The last item of each list that it is in.
            for known in sorted(counts, key=len):
                if name.startswith(f"{known}."):
                    name = f"{known}[{counts[known] - 1}]{name[len(known) :]}"
            if header[1] == "[[":
                counts[name] = counts.get(name, 0) + 1
                name = f"{name}[{counts[name] - 1}]"
            table = name
            lines.setdefault(table, number)
        elif key := _TOML_KEY.match(line):
            name = _toml_name(key[1])
            lines.setdefault(f"{table}.{name}" if table else name, number)
    return lines


def _toml_name(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))


_READERS: dict[str, Callable[[str], Iterator[Portion]]] = {"yaml": _yaml, "yml": _yaml, "json": _json, "toml": _toml}
