"""What a command is at is shown to whoever waits at a terminal, and to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from time import monotonic, sleep

import pytest

from cdm.cli.patience import Patience

pytestmark = pytest.mark.quick


class Terminal(StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


def within(seconds: float, so: Callable[[], bool]) -> bool:
    """Wait until it is so; this is the thread that has something else to do."""
    until = monotonic() + seconds
    while not so() and monotonic() < until:
        sleep(0.01)
    return so()


def test_after_a_while_what_is_done_is_shown_and_vanishes_at_the_end() -> None:
    out = Terminal()
    with Patience("reading", 0.0, out) as patience:
        assert within(30.0, lambda: "reading" in out.getvalue())
        patience.say("judging")
        assert within(30.0, lambda: "judging" in out.getvalue())
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_nothing_is_shown_before_or_where_nobody_looks() -> None:
    soon, piped = Terminal(), StringIO()
    with Patience("reading", 60.0, soon):
        pass
    with Patience("reading", 0.0, piped):
        sleep(0.05)
    assert (soon.getvalue(), piped.getvalue()) == ("", "")
