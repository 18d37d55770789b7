"""How orders are cut into parts: what is written of each command."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cdm.leader.batching import Cutter
from cdm.manager.outbox import Order, Outbox
from cdm.manager.plan import Command
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Overrides
from cdm.model.keys import SliceKey, encode
from cdm.model.rules import Needs
from cdm.model.slice import SliceState
from cdm.store.batch import Write
from cdm.store.wire import DELETE, dump

APP = Artifact("org.example", "app", "1.0.0")

commands = st.builds(
    Command,
    st.builds(SliceKey, st.sampled_from([NodeId("n1"), NodeId("n2")]), st.just(APP), st.integers(0, 3)),
    st.sampled_from([None, SliceState.LOAD, SliceState.ACTIVATE, SliceState.UNLOAD]),
    st.just("why"),
    failures=st.integers(0, 1),
    blueprint=st.integers(0, 1),
    overrides=st.sampled_from([None, Overrides(stop_after=20.0)]),
    loaded=st.integers(0, 1),
    template=st.sampled_from([None, "t"]),
    content=st.sampled_from([None, "c"]),
    after=st.sampled_from([None, 5.0]),
    needs=st.sampled_from([None, Needs(0.5, 0)]),
)


@given(st.lists(commands, min_size=1, max_size=20))
def test_each_command_is_written_as_it_is_whatever_the_ones_beside_it_say(ordered: Sequence[Command]) -> None:
    outbox = Outbox(lambda: None, lambda: None)
    outbox.order(Order(APP, 7, ordered))
    part = Cutter(outbox).cut(7, one_order=False)

    assert part is not None
    assert part.writes == [
        Write(encode(each.key), b"", DELETE) if each.state is None else Write(encode(each.key), dump(each.value(7)))
        for each in ordered
    ]
    assert part.kinds.total() == len(ordered)
    assert all(part.kinds[state] == [each.state for each in ordered].count(state) for state in part.kinds)
