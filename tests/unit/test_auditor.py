"""The auditor finds what it is there to find: each rule is broken once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from typing import Self

import pytest

from tests.containers.auditor import Entry, History
from tests.harness.paths import ROOT

GUARDED = "Nats-Expected-Last-Subject-Sequence-Subject"
GUARD = "Nats-Expected-Last-Subject-Sequence"


class Script:
    """Writes a history: every line is a second after the one before."""

    def __init__(self) -> None:
        self.entries: defaultdict[str, list[Entry]] = defaultdict(list)
        self.time = 1000.0
        self._fence = 0

    def write(self, bucket: str, key: str, value: object, headers: dict[str, str] | None = None) -> Self:
        self.time += 1
        entries = self.entries[bucket]
        previous = max((e.sequence for e in entries if e.key == key), default=0)
        data = b"" if value is None else json.dumps(value).encode()
        headers = dict(headers or {}) | ({"KV-Operation": "DEL"} if value is None else {})
        entries.append(Entry(bucket, key, len(entries) + 1, self.time, previous, data, headers))
        return self

    def node(self, *names: str, ttl: str = "") -> Self:
        for name in names:
            self.write("nodes", name, {"ttl": 10}, {"Nats-TTL": ttl} if ttl else None)
        return self

    def step_by_step(self, term: int, node: str, *, by: str = "", guard: int = 0) -> Self:
        """A take-over without a batch: first the fence, then the lease under it."""
        self.write("slices", "_term", {"term": term, "leader": node, "incarnation": f"of {node}"})
        self._fence = len(self.entries["slices"])
        lease = {"node": by or node, "term": term, "incarnation": f"of {by or node}"}
        headers = {GUARDED: "$KV.slices._term", GUARD: str(guard or self._fence)}
        return self.write("slices", "_leader", lease, headers)

    def expire(self, name: str) -> Self:
        self.write("nodes", name, None)
        entry = self.entries["nodes"].pop()
        self.entries["nodes"].append(entry._replace(headers={"Nats-Marker-Reason": "MaxAge"}))
        return self

    def blueprint(self, value: object, artifact: str = "g/n/1") -> Self:
        return self.write("blueprints", artifact, value)

    def term(self, term: int, node: str = "n1") -> Self:
        self.write("slices", "_leader", {"node": node, "term": term, "incarnation": f"of {node}"})
        self.write("slices", "_term", {"term": term, "leader": node})
        self._fence = len(self.entries["slices"])
        return self

    def renew(self, term: int, node: str = "n1") -> Self:
        return self.write("slices", "_leader", {"node": node, "term": term, "incarnation": f"of {node}"})

    def command(self, key: str, state: str | None, term: int = 1, fence: int | None = None) -> Self:
        guard = {GUARDED: "$KV.slices._term", GUARD: str(fence or self._fence)}
        return self.write("slices", key, state and {"state": state, "term": term}, guard)

    def answer(self, key: str, *states: str | None, term: int = 1) -> Self:
        for state in states:
            self.write("slices", key, state and {"state": state, "term": term})
        return self

    def load(self, *keys: str, term: int = 1) -> Self:
        for key in keys:
            self.command(key, "LOAD", term).answer(key, "LOADING", "LOADED", term=term)
            self.command(key, "ACTIVATE", term).answer(key, "ACTIVATING", "ACTIVE", term=term)
        return self

    def unload(self, key: str) -> Self:
        return self.command(key, "UNLOAD").answer(key, "UNLOADING", None)

    @property
    def history(self) -> History:
        return History({bucket: self.entries[bucket] for bucket in ("slices", "nodes", "blueprints")})


def begun(instances: int = 2) -> Script:
    return Script().node("n1", "n2", "n3").term(1).blueprint(instances).load("n1.g/n/1", "n2.g/n/1")


def told(script: Script) -> str:
    found = script.history.violations()
    assert len(found) == 1, found
    return found[0]


def test_a_good_life_is_not_complained_of() -> None:
    script = begun().renew(1).blueprint({"instances": 3}).load("n3.g/n/1").blueprint(2).unload("n2.g/n/1")
    script.expire("n1").term(2, "n3").command("n1.g/n/1", None, 2).load("n2.g/n/1", term=2).node("n1")
    assert script.history.violations() == []
    assert script.history.end() == []
    assert [entry.key for entry in script.history.evicted()] == ["n1.g/n/1"]


def test_a_message_that_was_not_recorded() -> None:
    script = begun()
    del script.entries["slices"][-2]
    assert "was not recorded" in script.history.violations()[0]


def test_a_command_of_a_term_that_is_over() -> None:
    script = begun(3).term(2, "n2").command("n3.g/n/1", "LOAD", 1)
    assert any("after term 2 began" in each for each in script.history.violations())


def test_a_renewal_of_a_lease_that_is_over() -> None:
    assert "after term 2 began" in told(begun().term(2, "n2").renew(1))


def test_two_holders_of_one_term() -> None:
    assert "term 1 is" in told(begun().renew(1, "n2"))


def test_a_lease_without_a_fence() -> None:
    assert "without its fence" in told(begun().renew(2, "n2"))


def test_a_take_over_step_by_step() -> None:
    assert begun().step_by_step(2, "n2").renew(2, "n2").history.violations() == []
    assert begun().write("slices", "_term", {"term": 2, "leader": "n2"}).term(3, "n3").history.violations() == []
    assert "the fence of term 2" in told(begun().step_by_step(2, "n2", by="n3"))
    assert "does not guard" in told(begun().step_by_step(2, "n2", guard=2))


def test_a_registration_ends_with_its_ttl() -> None:
    script = begun()
    for node in ("n1", "n2", "n3"):
        script.node(node, ttl="10000ms")
    script.time += 5
    script.node("n1", "n2", ttl="10000ms")
    script.time += 5
    script.node("n2", "n3", ttl="10000ms")  # n3 was not heard for longer than its TTL, and is back
    assert script.history.end() == []
    script.time += 6
    script.node("n2", ttl="10000ms")
    assert script.history.end() == ["n1.g/n/1 is on a node that is gone"]
    script.command("n1.g/n/1", None).load("n3.g/n/1")
    assert script.history.violations() == []


def test_a_fence_of_somebody_else() -> None:
    script = begun().renew(2, "n2").write("slices", "_term", {"term": 2, "leader": "n3"})
    assert "the lease of term 2" in told(script)


def test_a_fence_that_stands_still() -> None:
    assert "the fence was 1 before" in told(begun().write("slices", "_term", {"term": 1, "leader": "n1"}))


def test_a_fence_that_its_own_leader_writes_anew() -> None:
    anew = {"term": 1, "leader": "n1", "incarnation": "of n1"}
    assert begun().write("slices", "_term", anew).history.violations() == []
    assert "the fence was 1 before" in told(begun().write("slices", "_term", {**anew, "incarnation": "of n2"}))


def test_a_command_of_a_term_that_has_not_begun() -> None:
    assert "under the fence of term 1" in told(begun(3).command("n3.g/n/1", "LOAD", 2))


@pytest.mark.parametrize("state", ["LOAD", None])
def test_a_write_that_an_older_fence_guards(state: str | None) -> None:
    script = begun().blueprint(3 if state else 1)
    script.time += 10
    script.term(2, "n2").command("n3.g/n/1" if state else "n2.g/n/1", state, 2, fence=2)
    assert "without the fence" in told(script)


def test_a_write_without_a_guard() -> None:
    assert "without the fence" in told(begun(3).write("slices", "n3.g/n/1", {"state": "LOAD", "term": 1}))


def test_a_batch_is_guarded_by_its_first_message() -> None:
    script = begun(4)
    guard = {GUARDED: "$KV.slices._term", GUARD: "2", "Nats-Batch-Id": "b"}
    script.write("slices", "n3.g/n/1", {"state": "LOAD", "term": 1}, guard)
    script.write("slices", "n3.g/n/1/1", {"state": "LOAD", "term": 1}, {"Nats-Batch-Id": "b"})
    assert script.history.violations() == []


def test_one_too_many() -> None:
    assert "makes 3 where 2 are wanted" in told(begun().load("n3.g/n/1"))


def test_an_instance_of_nothing() -> None:
    assert "makes 1 where 0 are wanted" in told(begun().load("n3.other/n/1"))


def test_two_loads_for_one_lost_node() -> None:
    script = begun().expire("n1").command("n1.g/n/1", None).load("n3.g/n/1", "n3.g/n/1/1")
    assert "makes 3 where 2 are wanted" in told(script)


def test_a_blueprint_that_cannot_be_read_changes_nothing() -> None:
    script = begun().blueprint("many").blueprint(True).blueprint({"instances": -1})
    script.time += 10
    assert script.command("n1.g/n/1", "UNLOAD").history.violations() != []


@pytest.mark.parametrize("state", ["UNLOAD", None])
def test_a_healthy_slice_that_is_taken_away(state: str | None) -> None:
    assert "healthy node" in told(begun().command("n1.g/n/1", state))


def test_taken_away_after_its_node_has_come_back() -> None:
    script = begun().expire("n1").node("n1")
    script.time += 10
    assert "healthy node" in told(script.command("n1.g/n/1", None))


def test_a_vandals_delete_without_a_guard_is_told() -> None:
    assert len(begun().write("slices", "n1.g/n/1", None).history.violations()) == 2


def test_drained_failed_and_stuck_ones_may_be_replaced() -> None:
    script = begun(3).write("nodes", "n1.intent", {"schedule": "drain"}).load("n3.g/n/1").unload("n1.g/n/1")
    script.command("n2.g/n/1", "DEACTIVATE").answer("n2.g/n/1", "DEACTIVATING", "FAILED").unload("n2.g/n/1")
    script.load("n2.g/n/1").command("n2.g/n/1/1", "LOAD")
    script.time += 60
    script.unload("n2.g/n/1/1")
    assert script.history.violations() == []


def test_an_end_that_is_not_exact() -> None:
    assert begun(3).history.end() == ["g/n/1 has 2 instances instead of 3"]
    assert begun().blueprint(None).history.end() == ["g/n/1 has 2 instances instead of 0"]
    assert begun().expire("n1").history.end() == ["n1.g/n/1 is on a node that is gone"]
    assert begun().answer("n1.g/n/1", "FAILED").history.end() == ["n1.g/n/1 is FAILED"]


def test_it_shares_no_code_with_what_it_judges() -> None:
    """The auditor, its recorder and what they import load no module of cdm: its faults would be judged right."""
    look = (
        "import sys, tests.containers.recorder; print(*(name for name in sys.modules if name.split('.')[0] == 'cdm'))"
    )
    found = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
