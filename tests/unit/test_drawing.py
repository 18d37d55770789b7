"""What commands show: plain rows where nobody looks, and drawn where somebody does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cdm.cli.screen import Table, Text, plain, wide_console

pytestmark = pytest.mark.quick


def example() -> Table:
    table = Table("node", "slices", title="nodes", right=("slices",))
    table.add_row(plain("n\x1b1", "red"), "10")
    table.add_row("東京", Text.assemble(("2", "green"), ""))
    return table


ROWS = ["", "nodes", "node     slices", "n\\x1b1       10", "東京          2"]


@pytest.mark.parametrize(
    "variables", [{}, {"COLUMNS": "20", "LLMFORMAT": "1"}, {"FORCE_COLOR": "1", "LLMFORMAT": "1"}], ids=str
)
def test_rows_are_plain_where_nobody_looks_and_for_models(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "LLMFORMAT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wide_console().shown(example()).splitlines() == ROWS
    assert wide_console().shown(Text.assemble("a ", ("b", "bold"), plain("\x07c"))) == "a b\\x07c\n"


def test_somebody_who_looks_has_colours_and_a_line_below_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LLMFORMAT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    drawn = wide_console().shown(example())
    assert "─────" in drawn
    assert "\x1b[31mn\\x1b1\x1b[0m" in drawn
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in wide_console().shown(example())


@pytest.mark.parametrize("folded", [(), ("entry",)])
def test_nothing_is_cut_off_where_a_table_does_not_fit(
    folded: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMFORMAT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    table = Table("artifact", "sha256", "entry", folded=folded)
    table.add_row("a" * 50, "b" * 64, "c" * 20)
    shown = wide_console().shown(table)
    assert all(len(line) <= 60 for line in shown.splitlines())
    # The heads have some of these letters, too.
    assert [shown.partition("─")[2].count(letter) for letter in "abc"] == [50, 64, 20]


def test_a_command_imports_what_it_needs_and_no_more() -> None:
    code = """
import sys
import cdm.cli, cdm.cli.status
from cdm.cli.screen import wide_console
wide_console().print("shown")
unwanted = ("rich", "structlog", "ruamel", "nkeys", "cdm.allocation", "cdm.runtimes", "cdm.agent", "cdm.artifacts")
print([name for name in sys.modules if name.startswith(unwanted)])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "shown\n[]\n"
