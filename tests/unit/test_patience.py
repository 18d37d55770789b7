"""What a command is at is shown to whoever waits at a terminal, and to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from time import monotonic, sleep

import pytest
from rich.console import Console

from cdm.cli.patience import Patience

pytestmark = pytest.mark.quick


def within(seconds: float, so: Callable[[], bool]) -> bool:
    """Wait until it is so; this is the thread that has something else to do."""
    until = monotonic() + seconds
    while not so() and monotonic() < until:
        sleep(0.01)
    return so()


def test_after_a_while_what_is_done_is_shown_and_vanishes_at_the_end() -> None:
    out = StringIO()
    with Patience("reading", 0.0, Console(file=out, force_terminal=True)) as patience:
        assert within(30.0, lambda: "reading" in out.getvalue())
        patience.say("judging")
        assert within(30.0, lambda: "judging" in out.getvalue())
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_nothing_is_shown_before_or_where_nobody_looks() -> None:
    soon, piped = StringIO(), StringIO()
    with Patience("reading", 60.0, Console(file=soon, force_terminal=True)):
        pass
    with Patience("reading", 0.0, Console(file=piped)):
        sleep(0.05)
    assert (soon.getvalue(), piped.getvalue()) == ("", "")
