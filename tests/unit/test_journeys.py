"""Spans of what became of blueprints and slices, from a leader's notes."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from cdm.cli.node import node
from cdm.cli.node_start import tracing_to
from cdm.dispatch.messages import DeclaredPut, ValuePut
from cdm.errors import UsageError
from cdm.manager.journal import Note
from cdm.model.blueprint import Blueprint
from cdm.model.keys import BlueprintKey, StatusKey, encode_artifact
from cdm.model.slice import SliceValue
from cdm.model.status import Condition, Status
from cdm.traces.journeys import Journeys, JourneySpan
from tests.unit.support import APP, S, n, put

pytestmark = pytest.mark.quick

SLICE = f"start {APP} on n1"


class Seen:
    """What one leader sees."""

    def __init__(self) -> None:
        self._journeys = Journeys()

    def slice(self, state: S, at: float, revision: int = 1, **value: Any) -> list[JourneySpan]:
        note = Note(put(n(1), state, at=at, revision=revision, value=SliceValue(state, **value)))
        return list(self._journeys.take(note, 1000.0))

    def blueprint(self, at: float) -> None:
        assert not [*self._journeys.take(Note(DeclaredPut(BlueprintKey(APP), Blueprint(1), 7, at, by="me")), 1000.0)]

    def ready(self, at: float, revision: int = 7) -> list[JourneySpan]:
        status = Status(Condition.READY, in_force_revision=revision)
        return list(self._journeys.take(Note(ValuePut(StatusKey(encode_artifact(APP)), status, 1, at)), 1000.0))


def shape(spans: list[JourneySpan]) -> list[tuple[str, float, float]]:
    return [(span.name, span.start - 1000.0, span.end - 1000.0) for span in spans]


def test_what_is_started_later_is_no_part_of_what_was_put() -> None:
    seen = Seen()
    seen.blueprint(1.0)
    assert not seen.slice(S.LOAD, 2.0, blueprint=7)
    assert not seen.slice(S.LOADED, 3.0)
    assert shape(seen.slice(S.ACTIVE, 5.0)) == [
        (SLICE, 1.0, 5.0),
        ("put to LOAD", 1.0, 2.0),
        ("LOAD to LOADED", 2.0, 3.0),
        ("LOADED to ACTIVE", 3.0, 5.0),
    ]
    assert not seen.ready(5.5, revision=6)
    assert shape(seen.ready(6.0)) == [(f"serve {APP}", 1.0, 6.0)]
    assert not seen.ready(7.0)
    # Its node died, say.
    seen.slice(S.LOAD, 20.0, 40, blueprint=7)
    seen.slice(S.LOADED, 21.0)
    later = seen.slice(S.ACTIVE, 22.0)
    assert shape(later)[:2] == [(SLICE, 20.0, 22.0), ("LOAD to LOADED", 20.0, 21.0)]
    assert (later[0].trace, later[0].parent) == ("slices@40", "")


def test_what_fails_says_why_and_what_is_given_up_says_nothing() -> None:
    seen = Seen()
    seen.slice(S.LOAD, 1.0)
    failed = seen.slice(S.FAILED, 2.0, reason="no such artifact")
    assert [(span.name, span.failed) for span in failed] == [
        (SLICE, "no such artifact"),
        ("LOAD to FAILED", "no such artifact"),
    ]
    seen.slice(S.LOAD, 3.0)
    assert not seen.slice(S.UNLOAD, 4.0)
    assert not seen.slice(S.ACTIVE, 5.0)
    assert not seen.slice(S.ACTIVE, 6.0), "it was there before"


def test_where_traces_cannot_be_sent_to_is_said_before_the_node_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="CDM_TRACES"):
        node(traces="collector:4318")
    monkeypatch.delitem(sys.modules, "cdm.traces.sending", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UsageError, match=r"pip install 'cdm\[otel\]'"):
        tracing_to("http://127.0.0.1:4318")
