"""Reads blueprints from files: all of them are checked before anything is done with any."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from cdm.cli.formats import Portion, UnreadableFile, portions_of
from cdm.cli.known import nearest
from cdm.errors import InvalidArtifact, InvalidBlueprint, UsageError
from cdm.log import printable
from cdm.model.artifact import Artifact
from cdm.model.blueprint import Blueprint
from cdm.model.edit import Fields, encoded

ARTIFACT = "artifact"
"""The field of a document that says whose blueprint it is."""
ENDINGS = (".yaml", ".yml", ".json", ".toml")
"""What is read in a folder."""
STANDARD_INPUT = Path("-")
MOST_BYTES = 16 * 1024 * 1024
"""Largest file that is read."""
MOST_SHOWN = 50
"""Most flaws that are shown."""
_FIELDS = re.compile(r" \(fields: (.*)\)", re.DOTALL)
"""How an error lists the fields that there are."""
_REQUIRED = "is required: whose blueprint it is, GROUP:NAME:VERSION"


class Document(Struct, frozen=True):
    """One blueprint, as a file has it."""

    artifact: Artifact
    fields: Fields
    place: str
    """The file and the line, as in ``web.yaml:3``."""


class Flaw(Struct, frozen=True):
    """What is wrong with a file."""

    place: str
    field: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.field}: {self.what}" if self.field else f"{self.place}: {self.what}"


def read_all(paths: Sequence[Path]) -> list[Document]:
    """The documents of all files and folders; what is wrong is shown, line by line.

    Raises:
        UsageError: there is none, or anything is wrong with one of them.
    """
    found: list[Document] = []
    flaws: list[Flaw] = []
    for each in _of_files(paths):
        if isinstance(each, Document):
            found.append(each)
        else:
            flaws.append(each)
    flaws += _given_twice(found)
    if flaws:
        for flaw in flaws[:MOST_SHOWN]:
            sys.stderr.write(f"{printable(str(flaw))}\n")
        more = f"; {len(flaws) - MOST_SHOWN} more are not shown" if len(flaws) > MOST_SHOWN else ""
        mistakes = "1 mistake" if len(flaws) == 1 else f"{len(flaws)} mistakes"
        raise UsageError(f"{mistakes}, so nothing was done{more}")
    if not found:
        raise UsageError(f"there is no blueprint in {', '.join(map(_shown, paths))}")
    return found


def _given_twice(documents: Iterable[Document]) -> Iterator[Flaw]:
    first: dict[Artifact, Document] = {}
    for each in documents:
        if each.artifact in first:
            yield Flaw(each.place, ARTIFACT, f"{each.artifact} is given twice, first in {first[each.artifact].place}")
        first.setdefault(each.artifact, each)


def _of_files(paths: Iterable[Path]) -> Iterator[Document | Flaw]:
    """What is in all files; each is read once, also where its folder is named, too."""
    files: dict[Path, Path] = {}
    for path in paths:
        inside = [path]
        if path != STANDARD_INPUT and path.is_dir():
            inside = [each for each in sorted(path.rglob("*")) if _is_meant(each, path)]
            if not inside:
                yield Flaw(_shown(path), "", f"there is no file in this folder that ends with {', '.join(ENDINGS)}")
        for each in inside:
            files.setdefault(each if each == STANDARD_INPUT else each.resolve(), each)
    for file in files.values():
        yield from _of_file(file)


def _of_file(path: Path) -> Iterator[Document | Flaw]:
    name = _shown(path)
    try:
        raw = sys.stdin.buffer.read(MOST_BYTES + 1) if path == STANDARD_INPUT else _bytes(path)
        if len(raw) > MOST_BYTES:
            yield Flaw(name, "", f"is larger than {MOST_BYTES:,} bytes")
            return
        parts = portions_of(raw, path.name)
    except OSError as error:
        yield Flaw(name, "", f"cannot be read: {error.strerror}")
    except UnreadableFile as error:
        yield Flaw(f"{name}:{error.line}" if error.line else name, "", str(error))
    else:
        for part in parts:
            yield from _checked(part, name)


def _is_meant(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in ENDINGS and not hidden and path.is_file()


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _shown(path: Path) -> str:
    return "standard input" if path == STANDARD_INPUT else str(path)


def _checked(part: Portion, name: str) -> Iterator[Document | Flaw]:
    def place(field: str = "") -> str:
        line = part.line_of(field)
        return f"{name}:{line}" if line else name

    if not isinstance(part.value, dict):
        yield Flaw(place(), "", 'is no blueprint: write fields, as in "artifact: GROUP:NAME:VERSION"')
        return
    fields, artifact = dict(part.value), None
    if ARTIFACT in fields:
        typed = fields.pop(ARTIFACT)
        try:
            artifact = Artifact.parse(typed if isinstance(typed, str) else json.dumps(typed))
        except InvalidArtifact as error:
            yield Flaw(place(ARTIFACT), ARTIFACT, str(error).removeprefix("artifact "))
    else:
        meant = next((each for each in fields if nearest(each, (ARTIFACT,))), "")
        what = f"there is no such field (did you mean {ARTIFACT}?)" if meant else _REQUIRED
        yield Flaw(place(meant), meant or ARTIFACT, what)
        fields.pop(meant, None)
    while True:
        try:
            checked = checked_fields(fields, artifact)
        except InvalidBlueprint as error:
            yield Flaw(place(error.field), error.field, told(fields, error))
            # What else is wrong shows once that field is gone.
            top, artifact = re.split(r"[.\[]", error.field)[0], None
            if top == "instances":
                fields = {**fields, top: 1}
            elif top in fields:
                del fields[top]
            else:
                return
        else:
            if artifact is not None:
                yield Document(artifact, checked, place())
            return


def checked_fields(fields: Fields, artifact: Artifact | None) -> Fields:
    """The fields of a blueprint, without those that say nothing.

    Args:
        fields: as typed.
        artifact: whose; None: not known.

    Raises:
        InvalidBlueprint: they are refused.
    """
    blueprint = Blueprint.parse(encoded(fields))
    if artifact is not None:
        blueprint.check_for(artifact)
    return {name: value for name, value in fields.items() if value is not None}


def told(fields: Fields, error: InvalidBlueprint) -> str:
    """What is wrong, with the name that may have been meant, or what to do about a number where text is wanted."""
    if known := _FIELDS.search(error.problem):
        close = nearest(re.split(r"[.\]]", error.field)[-1], known[1].split(", "))
        return error.problem.replace(known[0], close) if close else error.problem
    value = _value_at(fields, error.field)
    wants_text = error.problem.startswith(("must be a string", "must be a version"))
    if wants_text and isinstance(value, (int, float)):
        return f'{error.problem}; write it in quotes: "{json.dumps(value)}"'
    return error.problem


def _value_at(fields: Fields, path: str) -> Any:
    value: Any = fields
    for step in path.replace("[", ".[").split("."):
        if isinstance(value, list) and step.startswith("["):
            value = value[int(step[1:-1])]
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value
