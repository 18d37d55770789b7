"""Logging that costs nothing until a line is logged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cdm.log import Ration


def test_a_ration_lets_a_burst_through_and_counts_the_rest() -> None:
    ration = Ration(20)
    assert sum(ration.take(5.0) for _ in range(50)) == 20
    assert ration.missed() == 30
    assert ration.missed() == 0


@pytest.mark.parametrize(("later", "more"), [(0.0, 0), (0.5, 10), (1.0, 20), (3600.0, 20), (-1.0, 0)])
def test_a_ration_fills_up_with_time(later: float, more: int) -> None:
    ration = Ration(20)
    while ration.take(5.0):
        pass
    assert sum(ration.take(5.0 + later) for _ in range(50)) == more


def _program(form: str, level: str, line: str) -> list[str]:
    """The command of a process that configures its logs, and runs ``line``."""
    program = f"""
import sys
from cdm.log import Log
from cdm.telemetry import LogFormat, LogLevel, configure_logs
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


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(form: str) -> None:
    command = _program(form, "info", "for number in range(1000): log.info('é' * 100, number=number)")
    read, nobody = os.pipe()
    os.close(read)
    for stream in (nobody, os.open("/dev/full", os.O_WRONLY)):
        done = subprocess.run(command, stderr=stream, stdout=subprocess.PIPE, text=True, check=False)
        os.close(stream)
        assert (done.returncode, done.stdout) == (0, "True\n")
