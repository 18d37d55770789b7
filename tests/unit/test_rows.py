"""Rows of text in columns, and lines that are too long for a screen."""

from __future__ import annotations

import pytest

from cdm.cli.events import _as_text
from cdm.cli.report import ClusterReport, SliceReport
from cdm.cli.rows import PLAIN, Column, Paint, Sheet, listing, sheet, show, table, wrapped
from cdm.cli.watching import ChangedLines
from cdm.model.artifact import NodeId
from cdm.model.event import Event, EventData
from cdm.store.events import StoredEvent

pytestmark = pytest.mark.quick


def test_a_line_is_broken_between_words_and_keeps_its_colours() -> None:
    assert wrapped("  one two three", 80) == ["  one two three"]
    assert wrapped("  one two three", 9) == ["  one two", "    three"]
    assert wrapped("one two", 5, indent=1) == ["one", " two"]
    assert wrapped("abcdefghij", 4, indent=0) == ["abcd", "efgh", "ij"]
    assert wrapped("one six long-name", 11, indent=5) == ["one six", "  long-name"], "names stay whole"
    assert wrapped("one six long-name", 8, indent=3) == ["one six", "   long-", "   name"], "if that is possible"
    red = Paint(coloured=True)("  one two", "red")
    assert wrapped(red, 7) == ["\x1b[31m  one\x1b[0m", "   \x1b[31mtwo\x1b[0m"]
    red = Paint(coloured=True)("one two", "red")
    assert wrapped(red, 5) == ["\x1b[31mone\x1b[0m", "  \x1b[31mtwo\x1b[0m"]
    assert wrapped(red, 7) == [red], "colours take no room"
    assert wrapped("目目目 目", 7, indent=0) == ["目目目", "目"]
    assert wrapped("目" * 5, 4, indent=0) == ["目目", "目目", "目"]


def test_what_is_too_wide_loses_what_says_nothing_new_and_is_folded_then() -> None:
    columns = [
        Column("name", ["a:long:name:1.0", "b"], least=8),
        Column("state", ["ACTIVE", "FAILED"], ["", "red"]),
        Column("failed", ["0", "0"], right=True, dull=True),
        Column("n", ["1", "10"], right=True),
    ]
    head, rows = table(columns, Sheet(PLAIN, 100))
    assert [head, *rows[0], *rows[1]] == [
        "name             state   failed   n",
        "a:long:name:1.0  ACTIVE       0   1",
        "b                FAILED       0  10",
    ]
    head, rows = table(columns, Sheet(PLAIN, 20))
    assert [head, *rows[0], *rows[1]] == [
        "name      state    n",
        "a:long:n  ACTIVE   1",
        "ame:1.0",
        "b         FAILED  10",
    ]
    head, rows = table([Column("", ["目" * 5], least=4)], Sheet(PLAIN, 4))
    assert rows[0] == ["目目", "目目", "目"]
    assert table([Column("none", [])], Sheet(PLAIN, 9)) == ("", [])


def test_what_is_told_below_its_row_where_the_line_is_too_narrow() -> None:
    columns = [
        Column("number", ["7"], right=True),
        Column("what changed", ["instances 5 -> 4; env.LEVEL set"], below=True),
        Column("by", [""], below=True),
        Column("state", ["in force"]),
    ]
    wide = "     7  instances 5 -> 4; env.LEVEL set      in force"
    assert listing(columns, Sheet(PLAIN, 60)) == ["number  what changed                     by  state", wide]
    assert listing(columns, Sheet(PLAIN, 30)) == [
        "number  state",
        "     7  in force",
        "    what changed: instances 5",
        "      -> 4; env.LEVEL set",
    ]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Somebody looks at standard output, on a screen of 70 columns."""
    for name in ("LLMFORMAT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "70"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def told_of(name: str) -> StoredEvent:
    words = "2 of 2 instances cannot be placed: 0 of 3 nodes take it: 3 gpu is not l4; only gpu keeps node-1 out"
    data = EventData(artifact=name, source="Ready", to="Unschedulable", reason=words)
    return StoredEvent(1, 0.0, Event("1", "cdm.condition", f"status/{name}", "2026-11-28T23:40:31.770Z", data))


def test_lines_are_broken_between_words_where_somebody_looks_and_whole_elsewhere(
    looked_at: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "  one: " + "word " * 20 + "目" * 10
    show([line])
    shown = capsys.readouterr().out.splitlines()
    assert [len(each) for each in shown] == [66, 54]
    assert "\n".join(shown).replace("\n    ", " ") == line
    paint = sheet().paint
    event = _as_text(told_of("org.example.payments:reconciliation-worker:2026.11.3-rc1"), paint=paint)
    assert event.splitlines() == [
        "2026-11-28 23:40:31.770Z  condition",
        "              org.example.payments:reconciliation-worker:2026.11.3-rc1",
        "              Ready -> Unschedulable: 2 of 2 instances cannot be",
        "              placed: 0 of 3 nodes take it: 3 gpu is not l4; only gpu",
        "              keeps node-1 out",
    ]
    looked_at.setenv("COLUMNS", "150")
    first, *others = _as_text(told_of("g:a:1"), paint=paint).splitlines()
    assert "g:a:1" in first
    assert {each[:74].strip() for each in others} == {""}, "below the words"
    looked_at.delenv("FORCE_COLOR")
    show([line])
    assert capsys.readouterr().out == f"{line}\n"
    assert len(_as_text(told_of("g:a:1"), paint=paint).splitlines()) == 1


@pytest.mark.parametrize("least", [0, 10])
def test_nothing_is_cut_off_where_a_table_does_not_fit(
    least: int, looked_at: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = {"artifact": "a" * 50, "sha256": "b" * 64, "entry": "c" * 20}
    show(listing([Column(name, [cell], least=least) for name, cell in cells.items()], sheet()))
    shown = capsys.readouterr().out
    assert "\x1b[1martifact\x1b[0m" in shown
    lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert all(len(line) <= 70 for line in lines)
    heads = "".join(cells)
    assert ["".join(lines).count(letter) - heads.count(letter) for letter in "abc"] == [50, 64, 20]
    looked_at.setenv("LLMFORMAT", "1")
    show(listing([Column(name, [cell], least=least) for name, cell in cells.items()], sheet()))
    assert len(capsys.readouterr().out.splitlines()) == 2, "not for models"


def test_of_what_changes_only_what_is_new_is_told() -> None:
    def report(**states: str) -> ClusterReport:
        slices = [
            SliceReport("", NodeId(node), "g:a:1", 0, state, 1, None, reason or None, 0, 0)
            for node, told in states.items()
            for state, _, reason in [told.partition(" ")]
        ]
        return ClusterReport(leader=NodeId("m"), term=1, blueprints=[], nodes=[], slices=slices, notes=[])

    lines = ChangedLines()
    assert lines.new(report(n1="ACTIVE", n2="LOADING")) == ["leader m, term 1", "slice n2/g:a:1: LOADING"]
    assert lines.new(report(n1="ACTIVE", n2="FAILED after 3 s")) == ["slice n2/g:a:1: FAILED: after 3 s"]
    assert lines.new(report(n1="ACTIVE", n2="FAILED after 4 s")) == [], "another time is no news"
    assert lines.new(report(n1="ACTIVE")) == ["slice n2/g:a:1 is gone"]
    assert lines.new("there is no such service") == ["there is no such service"]
    assert lines.new("there is no such service") == []
