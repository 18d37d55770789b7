"""What is told where a leader cannot place as a blueprint says: full nodes, strategies that fail, older managers."""

from __future__ import annotations

import pytest

from cdm.allocation.installed import Checked
from cdm.allocation.site import Site
from cdm.allocation.strategy import SHIPPED, Rank
from cdm.model.artifact import Artifact
from cdm.model.node import FEATURES, GIVES_SECRETS, PLACEMENT, SECRETS, Registration, Schedule
from cdm.model.status import Condition
from tests.unit.placement_world import live, status, typed, world
from tests.unit.support import APP, n

pytestmark = pytest.mark.quick


# What is told


def test_without_rules_it_is_told_what_keeps_each_node_out() -> None:
    it = world(n1=Registration(capacity=2), n2=Registration(capacity=1), n3=Registration(), n4=Registration())
    it.intend(n(3), Schedule.DRAIN)
    it.intend(n(4), Schedule.CORDON)
    it.apply(APP, typed(5))
    it.run_down()
    assert live(it) == {"n1": 2, "n2": 1}
    assert status(it).reason == (
        "2 of 5 instances cannot be placed: 0 of 4 nodes take it: 2 full (2 of 2 slices and the like), 1 cordoned, "
        "1 draining"
    )


def test_a_strategy_that_is_not_there_is_told_and_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    it = world()
    it.apply(APP, typed(1, strategy="mine"))
    it.run_down()
    assert status(it).condition is Condition.READY
    assert status(it).reason == (
        "there is no strategy 'mine' (installed: cheapest, least-loaded, pack, round-robin); round-robin instead"
    )
    monkeypatch.setitem(SHIPPED, "broken", Checked("broken", Broken()))
    it.apply(APP, typed(2, strategy="broken", min_healthy=10))
    it.run_down()
    told = "strategy 'broken' failed, and it was round-robin instead: LookupError: no such thing"
    assert status(it).condition is Condition.PROGRESSING
    assert status(it).reason.endswith(f"; {told}")
    it.apply(APP, typed(2, strategy="broken"))
    it.run_down()
    assert (status(it).condition, status(it).reason) == (Condition.READY, told)


class Broken:
    """A strategy that never works."""

    name = "broken"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        raise LookupError("no such thing")


# Versions side by side


def test_rules_wait_until_every_manager_knows_them() -> None:
    old = tuple(feature for feature in FEATURES if feature != PLACEMENT)
    it = world(
        n1=Registration(version="0.9", features=FEATURES),
        n2=Registration(version="0.8", features=old, labels={"gpu": "yes"}),
    )
    it.apply(APP, typed(1, require=["gpu"]))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.PROGRESSING
    assert told.reason == (
        "waiting for manager n2: its cdm 0.8 does not know where instances are to go; upgrade managers first"
    )
    it.join(n(2), Registration(version="0.9", features=FEATURES, labels={"gpu": "yes"}))
    it.run_down()
    assert live(it) == {"n2": 1}
    assert status(it).condition is Condition.READY


def test_secrets_wait_until_every_manager_knows_them_and_go_where_they_are_given() -> None:
    old = tuple(feature for feature in FEATURES if feature != SECRETS)
    giving = (*FEATURES, GIVES_SECRETS)
    it = world(
        n1=Registration(version="0.9", features=FEATURES, labels={"cdm.secrets": "yes"}),
        n2=Registration(version="0.8", features=old, runtime="process"),
    )
    env = {"PASSWORD": {"secret": "db-password"}}
    it.apply(APP, typed(3, env=env))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.PROGRESSING
    assert told.reason == "waiting for manager n2: its cdm 0.8 does not know secrets; upgrade managers first"
    it.join(n(2), Registration(version="0.9", features=FEATURES))
    it.run_down()
    assert live(it) == {}
    told = status(it)
    assert told.condition is Condition.UNSCHEDULABLE
    assert "0 of 2 nodes take it: 2 giving no secrets" in told.reason
    it.join(n(2), Registration(version="0.9", features=giving))
    it.run_down()
    assert live(it) == {"n2": 3}
    assert status(it).condition is Condition.READY
    it.apply(APP, typed(4))  # without it, anywhere
    it.run_down()
    it.tick(60.0)
    it.run_down()
    assert set(live(it)) == {"n1", "n2"}
