"""What the source must not say, though this Python would not mind."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import cdm

SOURCE = Path(cdm.__file__).parent


def test_nothing_is_raised_where_a_group_is_taken_apart() -> None:
    """Early releases of Python 3.11 make a group of it, which no ``except`` further out expects."""
    found = [
        f"{path.relative_to(SOURCE)}:{statement.lineno}"
        for path in SOURCE.rglob("*.py")
        for block in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        for statement in ast.walk(handler)
        if isinstance(statement, ast.Raise)
    ]
    assert not found


def test_a_class_has_a_name_of_its_own() -> None:
    """One word, one thing: what is named alike is taken for the same."""
    names = Counter(
        statement.name
        for path in SOURCE.rglob("*.py")
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]
