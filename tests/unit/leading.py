"""A leader of some nodes that serves one blueprint for tests: how it begins, how time passes for it, what it tells."""

from __future__ import annotations

from collections import Counter

from cdm.model.artifact import Artifact
from cdm.model.keys import BlueprintKey, SliceKey, encode
from cdm.model.status import Condition
from tests.unit.support import APP, S, n
from tests.unit.world import World

NAME = encode(BlueprintKey(APP))


def world(nodes: int = 3, *, lead: bool = True) -> World:
    each = World()
    for number in range(1, nodes + 1):
        each.join(n(number))
    if lead:
        each.lead()
        each.settle()
    return each


def running(instances: int = 3, nodes: int = 3) -> World:
    """A leader whose blueprint is Ready."""
    each = world(nodes)
    each.want(APP, instances)
    each.run_down()
    assert each.statuses[NAME].condition is Condition.READY
    each.decided.clear()
    each.told.clear()
    return each


def states(each: World, artifact: Artifact = APP) -> Counter[str]:
    return Counter(str(state) for state in each.states(artifact).values())


def failed_once(each: World) -> SliceKey:
    key = next(key for key, put in each.slices.items() if put.value.state is S.ACTIVE)
    each.report(key, S.FAILED)
    each.settle()
    return key


def condition(each: World) -> tuple[Condition, str]:
    return each.statuses[NAME].condition, each.statuses[NAME].reason


def woken(each: World) -> float:
    """Let time pass until the manager asks to be woken; returns how long that was."""
    due = each.manager.wake_at()
    assert due is not None
    pause = max(due - each.now, 0.0)
    each.tick(pause)
    each.settle()
    return pause


def slept(each: World, seconds: float) -> None:
    """Let so much time pass, with the manager woken whenever it asks to be."""
    end = each.now + seconds
    while (due := each.manager.wake_at()) is not None and due < end:
        woken(each)
    each.tick(end - each.now)
    each.settle()
