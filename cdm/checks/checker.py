"""Makes the checks that the manager wants made, each in a task of its own, and routes what came of them.

A check that hangs holds up itself and nothing else. Results of what is not wanted any more are not routed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from cdm import clock
from cdm.checks.answers import Answer
from cdm.checks.asking import Asker
from cdm.dispatch.messages import CheckResult, Message
from cdm.log import Log, Ration
from cdm.manager.outbox import Outbox
from cdm.model.artifact import Service
from cdm.model.check import Check, CheckOutcome, CheckRun
from cdm.wakeup import Wakeup

log = Log("cdm.checks")

LOGGED_A_SECOND = 20
"""Changes of outcomes that are logged."""


class WantedCheck(Struct, frozen=True):
    """One check as it is wanted; with any other one it begins anew."""

    service: Service
    index: int
    series: str
    check: Check


class Checker:
    """Makes checks for as long as they are in the outbox.

    Args:
        outbox: which checks are to be made.
        ready: set when these are others.
        asker: makes a check once.
        route: takes `CheckResult`.
    """

    def __init__(self, outbox: Outbox, ready: Wakeup, asker: Asker, route: Callable[[Message], None]) -> None:
        self._outbox = outbox
        self._ready = ready
        self._asker = asker
        self._route = route
        self._ration = Ration(LOGGED_A_SECOND)
        self._running: dict[WantedCheck, anyio.CancelScope] = {}

    async def run(self) -> None:
        """Make checks until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._adjust(tasks)
                await self._ready.wait()

    def _adjust(self, tasks: TaskGroup) -> None:
        """End what is not wanted any more, and begin what is new."""
        wanted = {
            WantedCheck(service, index, run.series, check)
            for service, run in self._outbox.checks.items()
            for index, check in enumerate(run.checks)
        }
        for gone in self._running.keys() - wanted:
            self._running.pop(gone).cancel()
        for new in wanted - self._running.keys():
            self._running[new] = anyio.CancelScope()
            tasks.start_soon(self._keep_checking, new, self._running[new])

    async def _keep_checking(self, wanted: WantedCheck, scope: anyio.CancelScope) -> None:
        check = wanted.check
        told: CheckOutcome | None = None
        with scope:
            for turn in count():
                began = clock.now()
                if (run := self._current(wanted)) is None:
                    break
                answer = await self._asker.ask(wanted.service, check, run, turn)
                if self._current(wanted) is None:
                    break
                if answer.outcome is not told and self._ration.take(clock.now()):
                    told = answer.outcome
                    of = {"service": str(wanted.service), "check": answer.asked or check.source.shown}
                    log.info("check", **of, outcome=str(told), reason=answer.reason)
                self._route(_result(wanted, answer))
                await anyio.sleep(max(began + check.interval_seconds - clock.now(), 0))
        if self._running.get(wanted) is scope:  # the outbox has changed, and it is looked at again
            del self._running[wanted]

    def _current(self, wanted: WantedCheck) -> CheckRun | None:
        """What the check is told, if it is still wanted."""
        run = self._outbox.checks.get(wanted.service)
        if run is None or run.series != wanted.series or run.checks[wanted.index : wanted.index + 1] != (wanted.check,):
            return None
        return run


def _result(wanted: WantedCheck, answer: Answer) -> CheckResult:
    return CheckResult(
        wanted.service,
        wanted.series,
        wanted.index,
        wanted.check,
        answer.outcome,
        answer.value,
        answer.reason,
        clock.now(),
        answer.asked,
    )
