"""Whether a rollout may go on, as its checks see it: pass, fail, or hold where nothing can be said. Pure.

Of each check a `Tally` is kept. It passes once it has passed ``count`` times in a row, and fails with more failing
answers than ``failures``. Errors (no answer, or none that can be understood) never fail it: up to ``errors`` of them do
not break the row; with one more it holds, and the row begins anew. Where there is nothing to measure it holds until it
passes or fails again, unless ``no_data`` says what that is taken for; the row goes on afterwards. ``count`` passes
without a failing answer or an error in between clear both counts.

What is kept belongs to one series, such as one step of one rollout, and to one leader: a new one begins to count anew,
which only ever holds a rollout, and promotes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum, unique

from msgspec import Struct
from msgspec.structs import replace

from cdm.dispatch.messages import CheckResult
from cdm.manager.outbox import Outbox
from cdm.model.artifact import Artifact, Service
from cdm.model.check import Check, CheckOutcome, CheckRun

OVERDUE = 3
"""Intervals without any result after which a check that had passed holds."""
LEAST_OVERDUE = 30.0
"""Seconds that a result is waited for at least, beyond what its check may take."""


@unique
class Gate(StrEnum):
    """What the checks say of going on."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    HOLD = "hold"
    """Nothing can be said, or not enough yet."""


class GateVerdict(Struct, frozen=True):
    """What one check, or all of a rollout, come to."""

    gate: Gate
    reason: str = ""
    """In plain words, for people; empty for a pass."""
    until: float | None = None
    """When it ends by itself if no result comes, in seconds on the clock of the results; None: it does not."""


class Tally(Struct, frozen=True):
    """What the results of one check come to, in order."""

    row: int = 0
    """Passes that count, at most ``count``: errors that are put up with do not break the row."""
    clean: int = 0
    """Passes since anything else came, at most ``count``."""
    failures: int = 0
    errors: int = 0
    outcome: CheckOutcome | None = None
    """The newest result's; None: there is none yet. Errors do not replace that there was nothing to measure."""
    reason: str = ""
    """The newest result's, or that of the newest failure where there are too many."""
    asked: str = ""
    """Whom that result is from, where the check is made of several instances in turn."""
    at: float = 0.0
    """When the newest result was had."""

    def after(self, check: Check, result: CheckResult) -> Tally:
        """With one more result."""
        outcome = _taken_for(check, result.outcome)
        told = replace(self, outcome=outcome, reason=result.reason, at=result.at, asked=result.asked)
        match outcome:
            case CheckOutcome.PASS:
                row, clean = min(self.row + 1, check.count), min(self.clean + 1, check.count)
                if clean == check.count:
                    return replace(told, row=row, clean=clean, failures=0, errors=0)
                told = replace(told, row=row, clean=clean)
            case CheckOutcome.FAIL:
                told = replace(told, row=0, clean=0, failures=self.failures + 1)
            case CheckOutcome.ERROR:
                row = 0 if self.errors >= check.errors else self.row
                # An error tells nothing, so where there was nothing to measure it is still not known to be well.
                stays = self.outcome if self.outcome is CheckOutcome.NO_DATA else outcome
                told = replace(told, row=row, clean=0, errors=self.errors + 1, outcome=stays)
            case CheckOutcome.NO_DATA:
                pass
        if told.failures > check.failures and outcome is not CheckOutcome.FAIL:
            return replace(told, reason=self.reason, asked=self.asked)
        return told


def judge(check: Check, tally: Tally, now: float) -> GateVerdict:
    """What one check says at this time."""
    if tally.outcome is None:
        return GateVerdict(Gate.HOLD, "no result yet")
    if tally.failures > check.failures:
        times = "" if tally.failures == 1 else f" ({tally.failures} failing answers, {check.failures} tolerated)"
        return GateVerdict(Gate.FAIL, f"{tally.reason}{times}")
    if tally.outcome is CheckOutcome.NO_DATA:
        return GateVerdict(Gate.HOLD, tally.reason or "no data")
    patience = max(OVERDUE * check.interval_seconds, LEAST_OVERDUE) + check.timeout_seconds
    until = tally.at + patience
    if now >= until:
        return GateVerdict(Gate.HOLD, f"no result for more than {patience:g} s")
    if tally.row >= check.count:
        return GateVerdict(Gate.PASS, until=until)
    passes = f"{tally.row} of {check.count} passes"
    if tally.outcome is CheckOutcome.PASS or not tally.reason:
        return GateVerdict(Gate.HOLD, passes, until)
    return GateVerdict(Gate.HOLD, f"{tally.reason}; {passes}", until)


def judge_all(checks: Sequence[Check], tallies: Sequence[Tally], now: float) -> GateVerdict:
    """What all checks say together: fail where one fails, pass where all pass, and hold otherwise."""
    verdicts = [judge(check, tally, now) for check, tally in zip(checks, tallies, strict=True)]
    untils = [each.until for each in verdicts if each.until is not None]
    until = min(untils, default=None)
    for gate in (Gate.FAIL, Gate.HOLD):
        reasons = [
            f"{_named(checks, index, tallies[index], each)}: {each.reason}"
            for index, each in enumerate(verdicts)
            if each.gate is gate
        ]
        if reasons:
            return GateVerdict(gate, "; ".join(reasons), until)
    return GateVerdict(Gate.PASS, until=until)


class Gates:
    """The checks of all rollouts under way, and what they have said to one leader.

    Args:
        outbox: says which checks are to be made; what another leader wanted is dropped.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._ask = outbox.check
        for service in list(outbox.checks):
            outbox.check(service, None)
        self._runs: dict[Service, CheckRun] = {}
        self._tallies: dict[Service, list[Tally]] = {}

    def begin(self, service: Service, run: CheckRun) -> None:
        """Have these checks made from now on; the same again changes nothing.

        What was counted is kept for each check that is what it was, at its place, in the same series.
        """
        before = self._runs.get(service)
        if before == run:
            return
        kept: dict[int, Tally] = {}
        if before is not None and before.series == run.series:
            pairs = enumerate(zip(before.checks, run.checks, strict=False))
            kept = {index: self._tallies[service][index] for index, (old, new) in pairs if old == new}
        self._runs[service] = run
        self._tallies[service] = [kept.get(index, Tally()) for index in range(len(run.checks))]
        self._ask(service, run if run.checks else None)

    def end(self, service: Service) -> None:
        """Have nothing checked any more, and forget what was said."""
        if self._runs.pop(service, None) is not None:
            del self._tallies[service]
            self._ask(service, None)

    def hear(self, result: CheckResult) -> tuple[Artifact, ...]:
        """Count a result; returns the artifacts about which something else is to be said or done now than before.

        A result that belongs to no series that is counted is passed over.
        """
        run = self._runs.get(result.service)
        if run is None or run.series != result.series or run.checks[result.index : result.index + 1] != (result.check,):
            return ()
        tallies, check = self._tallies[result.service], result.check
        before = tallies[result.index]
        after = tallies[result.index] = before.after(check, result)
        was, now = judge(check, before, result.at), judge(check, after, result.at)
        if (was.gate, was.reason) == (now.gate, now.reason):
            return ()
        return tuple(result.service.version(each) for each in dict.fromkeys((run.version, run.source)))

    def series(self, service: Service) -> str:
        """What is being judged of a service; empty: nothing is."""
        run = self._runs.get(service)
        return run.series if run is not None else ""

    def judge(self, service: Service, now: float) -> GateVerdict:
        """What the checks of a service say at this time; a service without any passes."""
        run = self._runs.get(service)
        return GateVerdict(Gate.PASS) if run is None else judge_all(run.checks, self._tallies[service], now)


def _taken_for(check: Check, outcome: CheckOutcome) -> CheckOutcome:
    if outcome is CheckOutcome.NO_DATA and check.no_data != "hold":
        return CheckOutcome(check.no_data)
    return outcome


def _named(checks: Sequence[Check], index: int, tally: Tally, verdict: GateVerdict) -> str:
    """A check by its request: the very one that the verdict tells of, where it tells of one."""
    tells = tally.asked and tally.reason and verdict.reason.startswith(tally.reason)
    shown = tally.asked if tells else checks[index].source.shown
    return shown if len(checks) == 1 else f"check {index + 1}, {shown}"
