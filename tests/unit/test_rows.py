"""Rows of text in columns, and lines that are too long for a screen."""

from __future__ import annotations

import pytest

from cdm.cli.report import ClusterReport, SliceReport
from cdm.cli.rows import PLAIN, Column, Paint, Sheet, table, wrapped
from cdm.cli.watching import ChangedLines
from cdm.model.artifact import NodeId

pytestmark = pytest.mark.quick


def test_a_line_is_broken_between_words_and_keeps_its_colours() -> None:
    assert wrapped("  one two three", 80) == ["  one two three"]
    assert wrapped("  one two three", 9) == ["  one two", "    three"]
    assert wrapped("one two", 5, indent=1) == ["one", " two"]
    assert wrapped("abcdefghij", 4, indent=0) == ["abcd", "efgh", "ij"]
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
