"""Logging that costs nothing until a line is logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from cdm.log import Lasting, Ration, printable, printable_json
from cdm.output.lines import AsJson, AsText
from cdm.output.source import Shown
from cdm.output.wire import WireLine
from tests.unit.support import Heard


def test_a_ration_lets_a_burst_through_and_counts_the_rest() -> None:
    ration = Ration(20)
    assert sum(ration.take(5.0) for _ in range(50)) == 20
    assert ration.missed(5.0) == 30
    assert ration.missed(5.0) == 0


def test_what_a_ration_refused_is_told_once_in_its_time() -> None:
    ration = Ration(20)
    for _ in range(50):
        ration.take(5.0)
    assert ration.missed_at <= 5.0
    assert ration.missed(5.0) == 30
    assert ration.missed_at == float("inf")
    for _ in range(3):
        ration.take(5.0)
    assert ration.missed_at == 6.0
    assert ration.missed(5.9) == 0
    assert ration.missed(6.0) == 3


@pytest.mark.parametrize(("later", "more"), [(0.0, 0), (0.5, 10), (1.0, 20), (3600.0, 20), (-1.0, 0)])
def test_a_ration_fills_up_with_time(later: float, more: int) -> None:
    ration = Ration(20)
    while ration.take(5.0):
        pass
    assert sum(ration.take(5.0 + later) for _ in range(50)) == more


def test_what_lasts_is_told_when_it_begins_then_ever_more_seldom_and_at_its_end() -> None:
    log = Heard()
    lasting = Lasting(log, "they come", again=10.0, longest=60.0)
    lasting.over(0.0)
    assert log.lines == [], "what never was has no end"
    for half_seconds in range(2 * 240):
        lasting.goes_on(100.0 + half_seconds / 2, "waiting", who="them")
    lasting.over(340.0, who="them")
    told = [line for line in log.lines if line[0] != "debug"]
    assert told == [
        ("warning", "waiting", {"who": "them"}),
        *(("warning", "waiting", {"who": "them", "seconds": each}) for each in (10.0, 30.0, 70.0, 130.0, 190.0)),
        ("info", "they come", {"who": "them", "seconds": 240.0}),
    ]
    assert len(log.lines) == 2 * 240 + 1, "each try is there for whoever looks closely"
    lasting.over(341.0)
    assert len(log.lines) == 2 * 240 + 1, "an end is told once"
    lasting.goes_on(400.0, "waiting")
    assert log.lines[-1] == ("warning", "waiting", {}), "it begins anew"


def _program(form: str, level: str, line: str) -> list[str]:
    """The command of a process that configures its logs, and runs ``line``."""
    program = f"""
import sys
from cdm.log import Log
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
configure_logs(LogFormat("{form}"), LogLevel("{level}"), id="node-1")
log = Log("cdm.test")
{line}
print("structlog" in sys.modules)
"""
    return [sys.executable, "-c", program]


def _logged(form: str, level: str, line: str) -> tuple[str, bool]:
    """What such a process writes, and whether it imported structlog."""
    done = subprocess.run(_program(form, level, line), capture_output=True, text=True, check=True)
    return done.stderr, done.stdout.strip() == "True"


def test_what_is_below_the_threshold_costs_no_import() -> None:
    assert _logged("console", "warning", "log.info('nothing')") == ("", False)


def test_what_would_draw_traces_is_not_imported_and_can_be_afterwards() -> None:
    """rich is larger than all the rest of the library."""
    line = "log.info('told'); assert not [name for name in sys.modules if name.startswith('rich')]; import rich.console"
    told, imported = _logged("console", "info", line)
    assert imported
    assert told.count("\n") == 1


def test_another_thread_that_logs_while_logs_are_set_up_waits_for_that() -> None:
    told, _ = _logged(
        "console",
        "info",
        """
import threading, structlog
from cdm.log import _Setup
configure, others = _Setup.configure, []
def slow():
    if not others:
        others.append(threading.Thread(target=lambda: log.info("meanwhile")))
        others[0].start()
        others[0].join()
    configure()
_Setup.configure = slow
log.info("first")
""",
    )
    assert [line.split()[3] for line in told.splitlines()] == ["meanwhile", "first"]


def test_every_line_names_the_node_even_when_the_first_was_logged_in_a_task() -> None:
    told, imported = _logged(
        "json",
        "info",
        """
import asyncio
async def first(): log.info("first", reason=None)
async def both():
    await asyncio.create_task(first())
    await asyncio.create_task(first())
asyncio.run(both())
log.info("last")
""",
    )
    assert imported
    assert told.count('"id": "node-1"') == 3
    assert "reason" not in told


def test_what_somebody_else_said_does_nothing_to_a_terminal() -> None:
    line = r"log.info('\x1b]0;a\x07', node='\x1b[2J', label='one\ntwo\x9b', more=['\x1b[2J'], number=1)"
    told, _ = _logged("console", "info", line)
    assert not {*told} & {"\x1b", "\x07", "\x9b"}
    assert told.count("\n") == 1
    for shown in (r"\x1b]0;a\x07", r"node=\x1b[2J", r"label=one\ntwo\x9b", "number=1"):
        assert shown in told


def test_lines_of_programs_choose_colours_on_a_terminal_and_nothing_else() -> None:
    said = "\x1b[1;31mred\x1b[0m\t\x1b[2Jone\rtwo\x1b]0;pwn\x07\r"
    lines = [Shown("g:n:1", "n1", WireLine(datetime.now(UTC), stream, 0, said)) for stream in ("out", "cdm")]
    on_terminal, piped = (AsText(terminal=terminal, coloured=False).lines(lines) for terminal in (True, False))
    shown = "\x1b[1;31mred\x1b[0m\t" + r"\x1b[2Jone\rtwo\x1b]0;pwn\x07" + "\r"
    assert on_terminal == f"n1/g:n:1 | {shown}\nn1/g:n:1 | [cdm: {shown}]\n"
    assert piped == f"n1/g:n:1 | {said}\nn1/g:n:1 | [cdm: {said}]\n"


def test_the_parts_of_a_long_line_are_put_together_unless_another_slices_line_comes_between() -> None:
    now = datetime.now(UTC)
    first, second, last = (WireLine(now, "out", 0, text, text != "c") for text in "abc")
    other = Shown("g:n:1", "n2", WireLine(now, "out", 1, "x"))
    show = AsText(terminal=False, coloured=False)
    assert show.lines([Shown("g:n:1", "n1", first), Shown("g:n:1", "n1", second)]) == "n1/g:n:1 | ab"
    assert show.lines([Shown("g:n:1", "n1", last)]) == "c\n"
    assert show.end() == ""
    between = show.lines([Shown("g:n:1", "n1", first), other, Shown("g:n:1", "n1", last)])
    assert between == "n1/g:n:1 | a[cdm: goes on]\nn2/g:n:1#1 | x\nn1/g:n:1 | c\n"
    assert show.lines([Shown("g:n:1", "n1", first)]) + show.end() == "n1/g:n:1 | a[cdm: goes on]\n"
    assert show.end() == ""
    shown = AsJson().lines([Shown("g:n:1", "n1", first), Shown("g:n:1", "n1", last)])
    parts = [json.loads(line) for line in shown.splitlines()]
    assert [(part["text"], part.get("partial")) for part in parts] == [("a", True), ("c", None)]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(form: str) -> None:
    command = _program(form, "info", "for number in range(1000): log.info('é' * 100, number=number)")
    read, nobody = os.pipe()
    os.close(read)
    for stream in (nobody, os.open("/dev/full", os.O_WRONLY)):
        done = subprocess.run(command, stderr=stream, stdout=subprocess.PIPE, text=True, check=False)
        os.close(stream)
        assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("harm", ["\x1b]0;t\x07", "\x9b2J", "a\u202eb", "\u2066", "\x7f"])
def test_what_would_do_something_to_a_terminal_is_shown(harm: str) -> None:
    assert printable(harm).isprintable()
    document = printable_json(json.dumps({"reason": harm}, ensure_ascii=False))
    assert document.isprintable()
    assert json.loads(document) == {"reason": harm}
