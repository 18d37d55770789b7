"""From a manifest to what is run: the program, its arguments, its environment, its port."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from cdm.errors import SliceFailed
from cdm.runtimes import Work
from cdm.runtimes.process.given import Given
from cdm.runtimes.process.ports import chosen_port

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
"""What a slice gets of the node's environment; the rest may hold the node's credentials."""
PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""For .py and .pyz: output is not held back, and nothing is written to the artifact's folder."""
PYTHON_SUFFIXES = (".py", ".pyz")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class CommandLine(NamedTuple):
    """What to run."""

    path: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    port: int | None


def prepare(
    work: Work,
    mark: dict[str, str],
    outside: Mapping[str, str],
    taken: Collection[int],
    port: int | None = None,
    given: Given | None = None,
) -> CommandLine:
    """Work out what to run.

    Args:
        work: the slice's.
        mark: variables that identify the slice's processes; the manifest cannot override them.
        outside: the node's environment.
        taken: ports of this node's other slices.
        port: the port that the slice had before, and keeps; None: this is its first start.
        given: its secrets; None: it has none.

    Raises:
        SliceFailed: it cannot be run; fatal unless only the port is not free.
    """
    manifest = work.manifest
    port = chosen_port(manifest, taken, port)
    environment = _environment(work, port, outside) | (given.environment if given else {}) | mark
    path = _locate(work, environment.get("PATH"))
    name = work.manifest.entry or path
    if path.endswith(PYTHON_SUFFIXES):
        environment = PYTHON | environment
        arguments = [sys.executable, path]
        path = sys.executable
    else:
        arguments = [name if "/" not in name else path]
    secret = given.unfit_for_arguments if given else ()
    arguments += [expanded(argument, environment, secret) for argument in manifest.args]
    directory = work.folder / manifest.directory
    if not directory.is_dir():
        raise SliceFailed(f"directory {manifest.directory!r} does not exist", fatal=True)
    return CommandLine(path, tuple(arguments), environment, str(directory), port)


def _environment(work: Work, port: int | None, outside: Mapping[str, str]) -> dict[str, str]:
    key = work.key
    environment = {name: outside[name] for name in INHERITED if name in outside}
    environment.setdefault("PATH", os.defpath)
    environment |= {
        "CDM_NODE": str(key.node),
        "CDM_ARTIFACT": str(key.artifact),
        "CDM_ORDINAL": str(key.ordinal),
        "CDM_SLICE": str(key).removeprefix("slices/"),
    }
    if port is not None:
        environment["CDM_PORT"] = str(port)
    return environment | {name: value for name, value in work.manifest.env.items() if isinstance(value, str)}


def _locate(work: Work, search: str | None) -> str:
    entry = work.manifest.entry
    if not entry:
        files = [each for each in sorted(work.folder.iterdir()) if each.is_file()] if work.folder.is_dir() else []
        if len(files) != 1:
            raise SliceFailed(f"entry: is required where the artifact has {len(files)} files", fatal=True)
        path = files[0]
    else:
        path = work.folder / entry
        if "/" not in entry and not path.exists():
            if found := shutil.which(entry, path=search):
                return str(Path(found).absolute())
            raise SliceFailed(f"entry {entry!r} is neither in the artifact nor on PATH", fatal=True)
    shown = entry or path.name
    if not path.is_file():
        raise SliceFailed(f"entry {shown!r} does not exist", fatal=True)
    if not os.access(path, os.R_OK if path.name.endswith(PYTHON_SUFFIXES) else os.X_OK):
        raise SliceFailed(f"entry {shown!r} is not executable", fatal=True)
    return str(path)


def expanded(argument: str, environment: Mapping[str, str], secret: Collection[str]) -> str:
    """An argument with the variables that it names, but for secret ones. Raises `SliceFailed`, fatal."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in environment:
            raise SliceFailed(f"args: {argument!r} names {name}, which is not in the slice's environment", fatal=True)
        if name in secret:
            raise SliceFailed(
                f"args: {argument!r} names {name}, which is a secret, and everybody on the machine can read arguments; "
                'have the program read the variable, or a file ("as": "file")',
                fatal=True,
            )
        return environment[name]

    return _VARIABLE.sub(value, argument)
