"""The schemas of what ``cdm status --json`` prints, and of events, made of the types and what is said of their fields.

``python -m tests.docs.schema > docs/status.schema.json`` and ``python -m tests.docs.schema event >
docs/event.schema.json`` write them.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from itertools import pairwise
from typing import Any

import msgspec

from cdm.cli import emptying, report
from cdm.manager import left
from cdm.model import event, status

SCHEMAS = {"status": report.ClusterReport, "event": event.Event}
"""By the name of its file the type of the document."""
_TYPES = {name: each for module in (report, emptying, left, status, event) for name, each in vars(module).items()}


def schema(name: str) -> str:
    """The text of the file."""
    found = msgspec.json.schema(SCHEMAS[name])
    for name, each in found["$defs"].items():
        for field, told in _fields(_TYPES[name]).items():
            encoded = {one.name: one.encode_name for one in msgspec.structs.fields(_TYPES[name])}[field]
            each["properties"][encoded]["description"] = told
    return json.dumps(found, indent=2) + "\n"


def _fields(of: type[Any]) -> dict[str, str]:
    """What is said of the fields of a type."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(body, ast.ClassDef)
    return {
        each.target.id: " ".join(following.value.value.replace("`", "").split())
        for each, following in pairwise(body.body)
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }


if __name__ == "__main__":
    print(schema((*sys.argv[1:], "status")[0]), end="")
