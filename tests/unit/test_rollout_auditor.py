"""The auditor of rollouts finds what it is there to find: each rule is broken once, and a good life is left alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.containers.rollout_auditor import Bounds, Rollouts
from tests.harness.paths import ROOT
from tests.unit.test_auditor import GUARD, GUARDED, Script

A: dict[str, Any] = {"version": "1", "digest": "a"}
B: dict[str, Any] = {"version": "1", "digest": "b"}
C: dict[str, Any] = {"version": "2", "digest": "c"}
RECORD = "_rollout.g/n"
BOUNDS = Bounds("g/n", wanted=3, min_healthy=5)


class Story(Script):
    """A history with rollouts in it. A slice is named by its node here: ``1`` is ``n1.g/n/1``."""

    def key(self, name: str, template: dict[str, Any]) -> str:
        """``n1``, or ``n1/1`` for the second one there."""
        node, _, ordinal = name.partition("/")
        return f"{node}.g/n/{template['version']}" + (f"/{ordinal}" if ordinal else "")

    def together(self, *writes: tuple[str, dict[str, Any] | None], fence: int | None = None) -> Story:
        """One atomic batch."""
        batch = f"b{len(self.entries['slices'])}"
        guard = {GUARDED: "$KV.slices._term", GUARD: str(fence or self._fence)}
        for number, (key, value) in enumerate(writes):
            self.write("slices", key, value, {"Nats-Batch-Id": batch, **({} if number else guard)})
            self.time -= 1
        self.time += 1
        return self

    def record(self, phase: str, old: object = A, new: object = B, term: int = 1, **fields: Any) -> tuple[str, Any]:
        return RECORD, {"phase": phase, "from": old, "to": new, "term": term, "step": 0, **fields}

    def order(self, name: str, state: str, template: dict[str, Any], term: int = 1) -> tuple[str, Any]:
        return self.key(name, template), {"state": state, "term": term, "template": template["digest"]}

    def say(self, phase: str, *orders: tuple[str, Any], **fields: Any) -> Story:
        """A record, and the commands that it leads."""
        return self.together(self.record(phase, **fields), *orders)

    def serve(self, name: str, template: dict[str, Any]) -> Story:
        """An agent goes on with what is LOAD."""
        key = self.key(name, template)
        fields = {"term": 1, "template": template["digest"]}
        for state in ("LOADING", "LOADED"):
            self.write("slices", key, {"state": state, **fields})
        self.together(self.order(name, "ACTIVATE", template))
        for state in ("ACTIVATING", "ACTIVE"):
            self.write("slices", key, {"state": state, **fields})
        return self

    def start(self, name: str, template: dict[str, Any]) -> Story:
        return self.together(self.order(name, "LOAD", template)).serve(name, template)

    def end(self, name: str, template: dict[str, Any]) -> Story:
        key = self.key(name, template)
        self.together(self.order(name, "UNLOAD", template))
        return self.gone(key)

    def gone(self, key: str) -> Story:
        self.write("slices", key, {"state": "UNLOADING", "term": 1})
        self.write("slices", key, None)
        return self

    def tell(self, name: str, template: dict[str, Any], state: str, **fields: Any) -> Story:
        """An agent tells of it."""
        self.write("slices", self.key(name, template), {"state": state, "term": 1, **fields})
        return self

    def wait(self, seconds: float = 10) -> Story:
        self.time += seconds
        return self

    def judged(self, **bounds: Any) -> list[str]:
        return Rollouts(self.entries["slices"], self.entries["nodes"], BOUNDS._replace(**bounds)).violations()


def begun(template: dict[str, Any] = A) -> Story:
    """Three healthy ones."""
    story = Story()
    story.node("n1", "n2", "n3").term(1)
    for name in ("n1", "n2", "n3"):
        story.start(name, template)
    return story.wait()


def told(story: Story, **bounds: Any) -> str:
    found = story.judged(**bounds)
    assert len(found) == 1, found
    return found[0]


def rolled() -> Story:
    """All but the last word of a rolling rollout, in good order."""
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait().end("n1", A)
    story.start("n2/1", B).wait().end("n2", A)
    return story.start("n3/1", B).wait().end("n3", A)


def test_a_good_rolling_is_not_complained_of() -> None:
    story = rolled().say("complete")
    assert story.judged() == []
    judge = Rollouts(story.entries["slices"], story.entries["nodes"], BOUNDS)
    assert [leg.phase for leg in judge.legs] == ["rolling", "complete"]
    assert judge.most() == 4
    assert judge.commands() == 6 * 2 + 3 + 2


def test_a_good_canary_with_a_pause_and_a_revert_is_not_complained_of() -> None:
    story = begun()
    story.say("rolling", story.order("n1", "LOAD", C), new=C).serve("n1", C).wait()
    story.end("n1", A).say("paused", new=C, step=1)
    story.tell("n1", C, "ACTIVATING", restarts=1).say("reverting", story.order("n1/1", "LOAD", A), new=C, step=1)
    story.serve("n1/1", A).end("n1", C).wait().say("reverted", new=C, reason="it ended")
    assert story.judged(canary=(33, None)) == []
    judge = Rollouts(story.entries["slices"], story.entries["nodes"], BOUNDS)
    failed = judge.first_failure("2")
    assert failed is not None
    assert judge.reached("reverting") == failed + 1
    assert judge.healthy_again("1", failed) is not None


def test_a_good_blue_green_and_the_way_back_are_not_complained_of() -> None:
    story = begun()
    story.say("rolling", *(story.order(f"n{n}", "LOAD", C) for n in (1, 2, 3)), new=C)
    for name in ("n1", "n2", "n3"):
        story.serve(name, C)
    story.wait().say("switched", new=C).wait().say("reverting", new=C)
    for name in ("n1", "n2", "n3"):
        story.end(name, C)
    assert story.say("reverted", new=C).judged(max_surge=3) == []


def test_going_on_to_a_third_and_back_to_the_first_are_not_complained_of() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B)
    story.say("rolling", (story.key("n1/1", B), {"state": "UNLOAD", "term": 1}), new=C).gone(story.key("n1/1", B))
    story.start("n1", C).wait().say("reverting", new=C).end("n1", C).say("reverted", new=C)
    assert story.judged() == []


def test_another_leader_goes_on() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).term(2, "n2")
    story.say("rolling", term=2)
    assert story.judged() == []


def test_one_more_than_the_surge() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).start("n2/1", B)
    assert "makes 5 live ones where 3 + 1 may be" in told(story)


def test_one_that_failed_is_tried_again_beside_its_replacement() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).tell("n1/1", B, "FAILED")
    story.start("n2/1", B).together(story.order("n1/1", "LOAD", B))
    assert "makes 5 live ones" in told(story)


def test_what_is_on_a_node_that_is_gone_does_not_count_for_the_surge() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).expire("n3")
    story.wait().together(story.order("n2/1", "LOAD", A))
    assert story.judged() == []


def test_orders_of_one_batch_are_judged_together() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait()
    story.together(story.order("n2/1", "LOAD", B), story.order("n1", "UNLOAD", A))
    assert story.judged() == []


@pytest.mark.parametrize("state", ["UNLOAD", "DEACTIVATE", None])
def test_a_healthy_one_is_taken_before_the_new_one_is(state: str | None) -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B)
    key, value = story.order("n1", state or "", A)
    story.together((key, value if state else None))
    assert "leaves 2 healthy ones where 3 are to stay" in told(story)
    assert story.judged(max_unavailable=1) == []


def test_a_restart_makes_the_new_one_begin_anew() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait()
    story.tell("n1/1", B, "ACTIVE", restarts=1).wait(2).end("n1", A)
    assert "leaves 2 healthy ones" in told(story)


@pytest.mark.parametrize("over", [False, True])
def test_what_is_on_a_node_that_was_not_heard_for_its_ttl_is_lost_and_not_taken(over: bool) -> None:
    """Such a registration ends without a trace: nothing is stored of its end."""
    story = begun().node("n1", "n2", "n3", ttl="10000ms").wait(2).node("n2", "n3", ttl="10000ms")
    story.wait(4 if over else 1).together((story.key("n1", A), None))
    if over:
        assert story.judged() == []
    else:
        assert "leaves 2 healthy ones where 3 are to stay" in told(story)


def test_a_new_one_on_a_node_that_is_gone_is_not_healthy() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).expire("n1").wait().end("n2", A)
    assert "leaves 1 healthy ones" in told(story)


def test_two_are_taken_for_one() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait()
    story.together(story.order("n1", "UNLOAD", A), story.order("n2", "UNLOAD", A))
    assert "leaves 2 healthy ones" in told(story)


def test_a_leader_may_not_know_yet_what_has_just_failed() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait().tell("n1/1", B, "FAILED")
    story.end("n1", A)
    assert story.judged() == []
    late = begun()
    late.say("rolling", late.order("n1/1", "LOAD", B)).serve("n1/1", B).wait().tell("n1/1", B, "FAILED")
    assert "leaves 2 healthy ones" in told(late.wait(2).end("n1", A))


def test_what_never_was_healthy_may_go() -> None:
    story = begun().tell("n1", A, "FAILED").end("n1", A)
    story.start("n1", A).together(story.order("n1", "UNLOAD", A))
    assert story.judged() == []


def test_what_is_on_a_node_that_is_gone_may_go() -> None:
    story = begun()
    story.expire("n1").wait().together((story.key("n1", A), None), story.order("n2/1", "LOAD", A))
    assert story.judged() == []


def test_a_record_that_comes_after_its_commands() -> None:
    story = begun()
    assert "comes after a command" in told(story.together(story.order("n1/1", "LOAD", B), story.record("rolling")))


def test_another_template_without_a_record() -> None:
    assert "no record of it" in told(begun().start("n1/1", B))
    assert "no record of it" in told(begun().start("n1", C))


def test_another_template_than_the_records() -> None:
    story = begun()
    assert "names neither" in told(story.say("rolling", story.order("n1", "LOAD", C)))


def test_one_without_a_digest_is_like_every_other_of_its_version() -> None:
    story = begun()
    story.together((story.key("n1/1", B), {"state": "LOAD", "term": 1}))
    assert story.judged() == []


def test_what_an_agent_drops_is_remembered() -> None:
    story = begun().tell("n1", A, "ACTIVE")
    story.together(story.order("n1/1", "LOAD", B))
    assert "no record of it" in told(story)


def test_a_new_one_is_started_on_the_way_back() -> None:
    story = begun()
    story.say("rolling").say("reverting", story.order("n1/1", "LOAD", B))
    assert "while the rollout is reverting" in told(story)


def test_an_old_one_is_started_after_the_rollout() -> None:
    story = rolled().say("complete")
    assert "starts an old one after the rollout" in told(story.start("n1", A))


def test_more_new_ones_than_the_canarys_step_says() -> None:
    story = begun()
    story.say("rolling", story.order("n1", "LOAD", C), new=C).serve("n1", C).wait().end("n1", A)
    story.start("n2", C)
    assert "makes 2 new ones where 33 % of 3 may be" in told(story, canary=(33, None))
    assert story.judged() == story.judged(canary=(67, None)) == []
    story = begun()
    story.say("rolling", new=C).say("rolling", story.order("n1", "LOAD", C), new=C, step=2).serve("n1", C).wait()
    assert story.end("n1", A).start("n2", C).judged(canary=(33, None)) == []


@pytest.mark.parametrize("phase", ["complete", "switched"])
def test_complete_before_all_are_healthy(phase: str) -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).serve("n1/1", B).wait().say(phase)
    assert f"{phase} with 1 healthy ones where 3 are wanted" in told(story)


def test_reverted_before_it_is() -> None:
    story = begun()
    story.say("rolling", story.order("n1/1", "LOAD", B)).say("reverted")
    assert "there are new ones" in told(story)
    story = begun().end("n1", A)
    assert any("reverted with 2 healthy ones" in each for each in story.say("rolling").say("reverted").judged())


@pytest.mark.parametrize(
    ("phases", "complaint"),
    [
        (["rolling", "reverting", "rolling"], "no way on from reverting"),
        (["rolling", "reverting", "reverted", "reverting"], "no way on from reverted"),
        (["rolling", "reverting", "complete"], "no way on from reverting"),
        (["rolling", "failed", "rolling"], "no way on from failed"),
        (["switched", "reverted"], "no way on from switched"),
        (["reverting"], "begins a rollout as reverting"),
    ],
)
def test_a_way_that_no_rollout_goes(phases: list[str], complaint: str) -> None:
    story = begun()
    for phase in phases:
        story.say(phase)
    assert any(complaint in each for each in story.judged())


def test_out_of_complete_there_is_only_the_way_back() -> None:
    assert rolled().say("complete").say("reverting").judged() == []
    assert "no way on from complete" in told(rolled().say("complete").say("rolling"))


def test_a_step_back() -> None:
    story = begun()
    story.say("rolling").say("rolling", step=2).say("paused", step=1)
    assert "goes back from step 2" in told(story)


def test_a_beginning_in_the_middle() -> None:
    assert "begins a rollout with step 1" in told(begun().say("rolling", step=1))


def test_what_was_reverted_is_tried_again() -> None:
    story = begun()
    for phase in ("rolling", "reverting", "reverted"):
        story.say(phase)
    assert story.say("rolling", new=C).judged() == []
    story = begun()
    for phase in ("rolling", "reverting", "reverted", "rolling"):
        story.say(phase)
    assert "no way on from reverted" in told(story)


def test_a_third_would_go_back_to_the_second() -> None:
    story = begun()
    story.say("rolling").say("rolling", old=B, new=C)
    assert "not to 1 a" in told(story)


def test_after_a_complete_one_the_next_would_go_back_to_the_first() -> None:
    assert "not to 1 b" in told(rolled().say("complete").say("rolling", old=A, new=C))
    assert rolled().say("complete").say("rolling", old=B, new=C).judged() == []


def test_no_record_at_all() -> None:
    story = begun()
    assert "is no record of a rollout" in told(story.together((RECORD, {"phase": "rolling"})))
    assert "is no record of a rollout" in told(begun().say("sideways"))


def test_a_record_of_a_term_that_is_over() -> None:
    story = begun()
    story.say("rolling").term(2, "n2").say("rolling", term=2).say("rolling", term=1)
    assert "the record was of term 2 before" in told(story)


def test_a_record_of_a_term_that_has_not_begun() -> None:
    assert "under the fence of term 1" in told(begun().say("rolling", term=2))


def test_a_record_without_the_fence() -> None:
    story = begun()
    story.term(2, "n2").together(story.record("rolling"), fence=2)
    assert "without the fence" in told(story)
    story = begun()
    story.write("slices", *story.record("rolling"))
    assert "without the fence" in told(story)


def test_only_its_own_time_is_judged() -> None:
    story = begun()
    story.together(story.order("n1/1", "LOAD", A), story.order("n2/1", "LOAD", A))
    assert "5 live ones" in told(story)
    assert story.judged(since=story.time + 1) == []
    assert story.judged(until=story.time - 1) == []


def test_it_shares_no_code_with_what_it_judges() -> None:
    look = (
        "import sys, tests.containers.rollout_auditor;"
        " print(*(name for name in sys.modules if name.split('.')[0] == 'cdm'))"
    )
    found = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
