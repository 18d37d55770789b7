"""Whether a program is started again, on invented times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdm.model.manifest import Restart, RestartPolicy
from cdm.runtimes.process.restart import Again, GiveUp, decide

restarts = st.builds(
    Restart,
    policy=st.just(RestartPolicy.ALWAYS),
    attempts=st.integers(0, 30),
    backoff=st.floats(0.001, 10),
    longest=st.floats(0.001, 60),
    stable=st.floats(1, 100),
)


def delays(restart: Restart, *uptimes: float) -> list[float]:
    """Play a life: how long it is waited after each run."""
    before, found = None, []
    for uptime in uptimes:
        verdict = decide(restart, before, uptime, clean=False)
        if isinstance(verdict, GiveUp):
            break
        before = verdict
        found.append(verdict.delay)
    return found


def test_backoff_doubles_up_to_the_longest_and_ends() -> None:
    restart = Restart(attempts=5, backoff=1, longest=5)
    assert delays(restart, *[0.0] * 10) == [1, 2, 4, 5, 5]


def test_a_stable_run_begins_anew() -> None:
    restart = Restart(attempts=2, backoff=1, stable=60)
    assert delays(restart, 0, 0, 59) == [1, 2]
    assert delays(restart, 0, 0, 60, 0, 0) == [1, 2, 0, 1]
    assert delays(restart, 60, 60, 60, 60) == [0, 0, 0, 0]


def test_one_that_was_stable_is_started_again_at_once_and_then_as_any() -> None:
    assert delays(Restart(attempts=5, backoff=0.5, stable=60), 61, 0, 0, 0, 0) == [0, 0.5, 1, 2, 4]


def test_policies() -> None:
    def verdict(policy: RestartPolicy, clean: bool) -> type:
        return type(decide(Restart(policy=policy), None, 0, clean=clean))

    assert verdict(RestartPolicy.ALWAYS, True) is Again
    assert verdict(RestartPolicy.ALWAYS, False) is Again
    assert verdict(RestartPolicy.ON_FAILURE, True) is GiveUp
    assert verdict(RestartPolicy.ON_FAILURE, False) is Again
    assert verdict(RestartPolicy.NEVER, True) is GiveUp
    assert verdict(RestartPolicy.NEVER, False) is GiveUp


def test_no_attempts_at_all() -> None:
    assert decide(Restart(attempts=0), None, 0, clean=False) == GiveUp(
        "not started again on this node (restart.attempts 0)"
    )
    assert isinstance(decide(Restart(attempts=0), None, 1e9, clean=False), GiveUp)


def test_very_many_attempts() -> None:
    assert decide(Restart(attempts=1_000_000), Again(30, 999_999), 0, clean=False) == Again(30, 1_000_000)


@given(restarts, st.lists(st.floats(0, 0.999), max_size=50))
def test_never_longer_than_asked_and_never_more_often(restart: Restart, uptimes: list[float]) -> None:
    found = delays(restart, *uptimes)
    assert len(found) == min(restart.attempts, len(uptimes))
    assert all(0 < delay <= restart.longest for delay in found)
    assert found == sorted(found)
