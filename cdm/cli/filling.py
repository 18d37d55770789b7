"""A file that is made from a template with a service's endpoints, for proxies that read their configuration from files.

A line that names something of an instance, as ``server {{endpoint}};``, is written once for each; one with ``{{none}}``
only where there is none. What a node says of itself cannot mean anything more in such a file: of names, whatever is no
letter, digit, or one of ``._+-`` is written ``_``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from cdm.cli.known import nearest
from cdm.errors import UsageError
from cdm.manager.endpoints import Endpoint
from cdm.manager.pools import whole_weights
from cdm.model.artifact import Service

_PLACE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_HARMFUL = re.compile(r"[^A-Za-z0-9._+-]")
NONE = "none"
"""Marks a line that is for where there is no instance."""
OF_ALL = frozenset({"service", "count", NONE})
OF_ONE = frozenset({"address", "port", "endpoint", "weight", "node", "version", "number"})


class FileTemplate:
    """A template, as it was read.

    Args:
        path: of its file.

    Raises:
        UsageError: it cannot be read, or names what there is not.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"--template {path}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(self._lines, 1):
            for name in _PLACE.findall(line):
                if name not in OF_ALL | OF_ONE:
                    known = ", ".join(sorted(OF_ALL | OF_ONE))
                    raise UsageError(
                        f"--template {path}, line {number}: there is no {{{{{name}}}}}"
                        f"{nearest(name, OF_ALL | OF_ONE) or f'; there are {known}'}"
                    )

    def filled(self, service: Service, found: Sequence[Endpoint]) -> str:
        """The file for these endpoints."""
        of_all = {
            "service": f"{_harmless(service.group)}:{_harmless(service.name)}",
            "count": str(len(found)),
        }
        of_each = [_fields(each, number, weight) for number, (each, weight) in enumerate(_weighed(found), 1)]
        parts: list[str] = []
        for line in self._lines:
            names = set(_PLACE.findall(line))
            if NONE in names and found:
                continue
            if names & OF_ONE:
                parts.extend(_put(line, {**of_all, **fields}) for fields in of_each)
            else:
                parts.append(_put(line, {**of_all, NONE: ""}))
        return "".join(parts)


def _weighed(found: Sequence[Endpoint]) -> list[tuple[Endpoint, int]]:
    return list(zip(found, whole_weights(found), strict=True))


def _fields(each: Endpoint, number: int, weight: int) -> dict[str, str]:
    return {
        "address": each.address,
        "port": str(each.port),
        "endpoint": each.authority,
        "weight": str(weight),
        "node": _harmless(each.node),
        "version": _harmless(each.version),
        "number": str(number),
    }


def _harmless(name: str) -> str:
    return _HARMFUL.sub("_", name)


def _put(line: str, fields: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: fields.get(place[1], ""), line)


def write_whole(path: Path, text: str, *, lasting: bool = True) -> None:
    """Have the file hold this text, at once and as a whole, with the mode that it has; raises `OSError`.

    Args:
        path: of the file.
        text: what it is to hold.
        lasting: also where the machine loses its power in the next moment.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            file.write(text.encode())
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
