"""The example of a runtime passes what every runtime must, as its own example of a test has it."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap

import pytest
from msgspec import Struct

from cdm.model.manifest import Manifest
from cdm.runtimes import Runtime, Surroundings, Work
from tests.docs.documents import example
from tests.harness.paths import ROOT

sys.path.append(str(example("sites.py").parent))

from test_sites import TestSites  # the example

__all__ = ["TestSites"]

pytestmark = pytest.mark.quick

TEXT = (ROOT / "docs" / "runtimes.md").read_text()


@pytest.mark.parametrize("kind", [Work, Surroundings, Manifest])
def test_every_field_that_a_runtime_is_given_is_described(kind: type[Struct]) -> None:
    """In the document, and, but for those whose name says it all, in the code."""
    assert [field for field in kind.__struct_fields__ if f"`{field}`" not in TEXT] == []
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(made, ast.ClassDef)
    bare = [
        ast.unparse(each.target)
        for each, following in zip(made.body, [*made.body[1:], ast.Pass()], strict=True)
        if isinstance(each, ast.AnnAssign) and not isinstance(following, ast.Expr)
    ]
    assert bare == []


def test_every_method_of_a_runtime_is_named() -> None:
    methods = {name for name in vars(Runtime) if not name.startswith("_")} - {"outlives", "lapses", "logs"}
    assert sorted(name for name in methods if f"`{name}" not in TEXT and f"def {name}(" not in TEXT) == []


@pytest.mark.anyio
async def test_what_does_not_serve_is_told_in_words() -> None:
    with pytest.raises(AssertionError, match=r"it is active again, and nothing accepts connections on its port 1$"):
        await TestSites()._serves(1, "it is active again")
