"""``cdm export``: what the cluster is to run, as one file that ``cdm apply`` takes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec import Struct

from cdm.cli.connected import run_connected
from cdm.cli.documents import ARTIFACT
from cdm.cli.editing import looked_at_all
from cdm.cli.formats import LIST
from cdm.cli.log_setup import remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, Json
from cdm.cli.screen import print_json
from cdm.cli.service import VersionLook
from cdm.model import edit
from cdm.store.connection import Connection

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 :._/-]*")
_NO_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""What some readers of YAML take for something else than text."""


class Exported(Struct, frozen=True):
    """One blueprint that is written out."""

    fields: edit.Fields
    owner: str


def export(
    connection: ConnectionOptions = HERE,
    *,
    owner: str | None = None,
    everything: Annotated[bool, FLAG, Parameter(name="--all")] = False,
    json: Json = False,
) -> int:
    """Write what the cluster is to run as one file.

    Parameters
    ----------
    owner
        Only the blueprints that this owner looks after.
    everything
        Also versions that were replaced or taken back.
    """
    run = partial(_read, owner=owner, everything=everything)
    found, left_out = run_connected(connection, "cdm export", run)
    if json:
        print_json({LIST: [each.fields for each in found]})
    else:
        sys.stdout.write(written_as_yaml(found))
    for each in left_out:
        remark(f"note: {each}")
    return 0


async def _read(connection: Connection, owner: str | None, *, everything: bool) -> tuple[list[Exported], list[str]]:
    looks = await looked_at_all(connection)
    notes: list[str] = []
    versions = (version for look in looks.values() for version in look.versions.values())
    mine = (each for each in versions if each.raw is not None and owner in (None, each.owner))
    return list(_exported(mine, notes, everything=everything)), notes


def _exported(versions: Iterable[VersionLook], notes: list[str], *, everything: bool) -> Iterator[Exported]:
    for version in versions:
        raw = _text(version, notes)
        if version.replaced_by_another and not everything:
            how = "was taken back" if version.reverted else "was replaced"
            notes.append(f"{version.artifact} {how}, and is left out (--all: it is not)")
        elif raw is not None:
            yield Exported({ARTIFACT: str(version.artifact), **edit.fields_of(raw)}, version.owner)


def _text(version: VersionLook, notes: list[str]) -> bytes | None:
    """The blueprint that is in force; None: none is."""
    valid = version.valid.payload if version.valid is not None else None
    if valid is None and version.blueprint is not None:  # its revision is not kept any more
        valid = edit.encoded(version.blueprint.typed)
    if version.raw != valid:
        what = "the one before it is written out" if valid is not None else "it is left out"
        notes.append(f"the newest blueprint of {version.artifact} is refused; {what}")
    side = version.serves_instead if version.reverted else None
    if valid is None or side is None or side.digest != side.template.digest:
        return valid
    notes.append(f"the newest settings of {version.artifact} were taken back; those that serve are written out")
    return edit.with_settings(valid, side.template)


def written_as_yaml(found: Sequence[Exported]) -> str:
    """The documents as YAML, each with its owner above it."""
    from ruamel.yaml import YAML  # noqa: PLC0415  # not needed for --json

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(str, _represented)
    text = io.StringIO()
    blueprints = "1 blueprint" if len(found) == 1 else f"{len(found)} blueprints"
    text.write(f"# {blueprints}; `cdm apply -f` takes this file\n")
    for each in found:
        text.write(f"---{f' # owner: {each.owner}' if each.owner else ''}\n")
        yaml.dump(each.fields, text)
    return text.getvalue()


def _represented(representer: Any, text: str) -> Any:
    """In double quotes, unless it is text to all readers without them."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')
