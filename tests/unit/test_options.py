"""What options are read as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from cyclopts import App, CoercionError

from cdm.cli.node import refuse_contradictions
from cdm.cli.options import duration
from cdm.errors import UsageError
from cdm.model.artifact import NodeId
from cdm.model.node import Role
from cdm.node.settings import NodeSettings


def some_time(time: Annotated[float, duration()], /) -> float:
    return time


def some_ttl(time: Annotated[float, duration(ttl=True)], /) -> float:
    return time


def read(text: str, command: Callable[[float], float] = some_time) -> Any:
    app = App()
    app.default(command)
    return app(["--", text], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        (" .5 ", 0.5),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("2m", 120),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1h30m", 5400),
        ("1m1ms", 60.001),
        ("1d12h30m10s5ms", 131_410.005),
        ("364d24h", 365 * 86_400),
    ],
)
def test_a_duration_is_seconds_or_has_units_the_largest_first(text: str, seconds: float) -> None:
    assert read(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            (text, "is not a duration: write seconds, or ")
            for text in ("", "soon", "-5", "1w", "1 h", "1h30", "1.5.5s")
        ),
        *((text, "is not a duration: write seconds, or ") for text in ("1m1h", "1h1h", "1ms1s", "d", "1d,2h", "infd")),
        *((text, "is too short: must be more than zero") for text in ("0", "0.0", "0s", "0d0h")),
        *((text, "is too long: must be at most 365 days") for text in ("366d", "8760h1ms", "31536001", "9" * 40 + "h")),
    ],
)
def test_what_is_not_a_duration_is_shown_as_it_was_typed(text: str, why: str) -> None:
    with pytest.raises(CoercionError) as refused:
        read(text)
    assert f"{text[:20]!r} {why}" in str(refused.value)


@pytest.mark.parametrize("text", ["0", "0.0", "0.01", "999ms"])
def test_a_ttl_is_a_second_at_least(text: str) -> None:
    assert read("1s", some_ttl) == 1
    with pytest.raises(CoercionError, match=f"'{text}' is too short: must be at least one second"):
        read(text, some_ttl)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"runtime": "external", "trust": Path("keys")}, "--trust"),
        ({"runtime": "external", "secrets": Path("here")}, "--secrets"),
        ({"role": Role.MANAGER, "trust": Path("keys")}, "--trust"),
    ],
)
def test_what_would_have_no_effect_is_refused(settings: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=rf"{option} \(CDM_\w+\) contradicts --"):
        refuse_contradictions(NodeSettings(NodeId("n1"), **settings))
    refuse_contradictions(NodeSettings(NodeId("n1"), runtime="process", trust=Path("keys"), secrets=Path("here")))
