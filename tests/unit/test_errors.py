"""The tree of errors in the module's docstring is the tree of classes."""

from __future__ import annotations

import inspect
import re

import pytest

from cdm import errors
from cdm.errors import CdmError, InvalidBlueprint, RequestRefused, SliceFailed, StoreError, afresh


def test_the_docstring_shows_every_class_below_its_bases() -> None:
    shown: list[tuple[str, ...]] = []
    above: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.partition("::\n")[2].splitlines():
        if not line.strip():
            continue
        found = re.fullmatch(r"    ((?:[│├└ ][ ─]{3})*)(\w+)(?: \((\w+)\))?", line)
        assert found, line
        depth = len(found[1]) // 4
        above[depth:] = [found[2]]
        bases = [above[depth - 1] if depth else "Exception", *([found[3]] if found[3] else [])]
        shown.append((found[2], *bases))
    defined = [
        (name, *(base.__name__ for base in kind.__bases__))
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, CdmError)
    ]
    assert sorted(shown) == sorted(defined)
    assert len(shown) == len(set(shown))


def test_every_class_says_when_it_is_raised() -> None:
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, CdmError):
            told = kind.__dict__.get("__doc__") or ""
            assert told.startswith(("Raised ", "Base of ")), name


@pytest.mark.parametrize(
    "error",
    [
        StoreError("nobody answers"),
        RequestRefused("no", 10071),
        InvalidBlueprint("instances", "is negative"),
        SliceFailed("ended", fatal=True),
    ],
)
def test_an_error_that_is_kept_is_raised_afresh(error: CdmError) -> None:
    """Each time; it says the same, and does not gather what all who raise it were about."""
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            raise afresh(error)
        assert caught.value is not error
        assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))
    assert error.__traceback__ is None
