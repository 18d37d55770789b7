"""Everything at once: what holds of every plan, whatever is wanted and however nodes and slices stand."""

from __future__ import annotations

from collections import Counter

from hypothesis import given

from cdm.allocation.evenly import Ranking
from cdm.dispatch.messages import ValuePut
from cdm.manager.cluster import Desired
from cdm.manager.group import SlicePut
from cdm.manager.reconciliation import reconcile
from cdm.manager.standing import LiveNode
from cdm.manager.wanted import wanted_of
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.slice import SliceValue, legal
from tests.unit.reconciling import NOW, POLICY, fleet, plan, situations, with_failures
from tests.unit.support import APP, S


@given(situations())
def test_every_plan_is_legal_exact_and_final(
    situation: tuple[
        Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None
    ],
) -> None:
    desired, puts, nodes, unloading, more, cursor = situation
    found = plan(desired, *puts, nodes=nodes, failed_unloading=unloading, cursor=cursor, more=more)
    states = {each.key: each.value.state for each in puts}
    at = {each.key: each for each in puts}
    instances = desired.blueprint.instances if desired and desired.blueprint else 0

    # Each key is written once, and legally.
    assert len({command.key for command in found.commands}) == len(found.commands)
    for command in found.commands:
        state = states.get(command.key)
        if command.state is not None:
            assert legal(state, command.state), (state, command)
        else:
            assert command.key.node not in nodes or state in (S.UNLOAD, S.UNLOADING)
        assert command.reason
    assert all(command.key.artifact == APP for command in found.commands)

    # Nothing new where nothing new is taken, or where there is no room.
    loads = [command for command in found.commands if command.state is S.LOAD]
    for node, many in Counter(command.key.node for command in loads if command.key not in states).items():
        place = nodes[node]
        assert place.open
        held = more.get(node, 0) + sum(key.node == node for key in states)
        assert place.capacity is None or held + many <= place.capacity
    assert all(nodes[command.key.node].open for command in loads)

    # The smallest change: exactly the difference.
    def overdue(each: SlicePut) -> bool:
        deadline = POLICY.deadline(each)
        return deadline is not None and deadline <= NOW and nodes[each.key.node].registered

    kept = [
        key
        for key, state in states.items()
        if state.live and key.node in nodes and not nodes[key.node].draining and not overdue(at[key])
    ]
    awaited = [key for key in kept if not nodes[key.node].registered]
    kept = [key for key in kept if key not in awaited]
    unloaded = {command.key for command in found.commands if command.state is S.UNLOAD}
    assert len([key for key in kept if key in unloaded]) == max(len(kept) - instances, 0)
    assert not unloaded.intersection(awaited)
    if len(kept) + len(awaited) >= instances:
        assert loads == []
        assert found.unplaced == 0
    else:
        waiting = [
            key
            for key, state in states.items()
            if state is S.FAILED
            and key.node in nodes
            and key not in unloading
            and key not in {command.key for command in found.commands}
        ]
        missing = instances - len(kept) - len(awaited)
        assert len(loads) + found.unplaced <= missing
        assert missing <= len(loads) + found.unplaced + len(waiting)
        if found.unplaced == 0:
            assert missing == len(loads) + len(waiting)

    # The smallest change: what is removed is not yet active as long as there is such a one.
    if any(states[key] is S.ACTIVE for key in kept if key in unloaded):
        assert all(key in unloaded for key in kept if states[key] is not S.ACTIVE)

    # A plan never leaves less serving than there was, as long as no more are wanted than that.
    serving = [key for key, state in states.items() if state is S.ACTIVE and key.node in nodes]
    still = [key for key in serving if key not in unloaded]
    assert len(still) >= min(len(serving), instances)

    # Reconciling what needs no change writes nothing: once it is carried out, nothing is left to do.
    cluster = with_failures(puts, unloading)
    for command in found.commands:
        if command.state is None:
            cluster.remove_slice(command.key)
        else:
            value = SliceValue(command.state, failures=command.failures or None, blueprint=command.blueprint or None)
            cluster.put_slice(ValuePut(command.key, value, 2, NOW))
    again = reconcile(
        APP,
        wanted_of(desired),
        cluster.group(APP),
        fleet(cluster, nodes, more),
        NOW,
        POLICY,
        found.cursor,
    )
    if any(command.state is None and command.key.node in nodes for command in found.commands):
        # A deleted key made room, which what could not be placed before may use now.
        assert len(again.commands) <= found.unplaced
        assert {command.state for command in again.commands} <= {S.LOAD}
    else:
        assert list(again.commands) == []


@given(situations())
def test_the_ranking_changes_the_cost_of_a_plan_and_nothing_else(
    situation: tuple[
        Desired | None, list[SlicePut], dict[NodeId, LiveNode], set[SliceKey], dict[NodeId, int], NodeId | None
    ],
) -> None:
    desired, puts, nodes, unloading, more, cursor = situation
    cluster = with_failures(puts, unloading)

    ranking = Ranking()
    unranked, given = fleet(cluster, nodes, more), fleet(cluster, nodes, more, ranking=ranking)
    for node, live in nodes.items():
        if live.open and (live.capacity is None or unranked.total(node) < live.capacity):
            ranking.put(node, unranked.total(node))
    group = cluster.group(APP)
    plain = reconcile(APP, wanted_of(desired), group, unranked, NOW, POLICY, cursor)
    ranked = reconcile(APP, wanted_of(desired), group, given, NOW, POLICY, cursor)
    assert ranked == plain
