from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdm.errors import InvalidKey
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import (
    BLUEPRINTS,
    FENCE,
    LAYOUTS,
    LEASE,
    NODES,
    SLICES,
    STATUS,
    BlueprintKey,
    FenceKey,
    IntentKey,
    Key,
    LastValidKey,
    Layout,
    LeaseKey,
    NodeKey,
    RolloutKey,
    SeenKey,
    SliceKey,
    SlotKey,
    StatusKey,
    encode,
)
from cdm.model.last_valid import LastValid
from cdm.model.node import Fence, Intent, Lease, Registration, Seen, Slot
from cdm.model.record import Rollout
from cdm.model.slice import SliceValue
from cdm.model.status import Status
from tests.unit.support import APP, artifacts, n, node_ids, parts

KV_KEY = re.compile(r"[-/_=.a-zA-Z0-9]+")
ordinals = st.integers(0, 200_000)
slice_keys = st.builds(SliceKey, node_ids, artifacts, ordinals)
located: st.SearchStrategy[tuple[Layout, Key]] = st.one_of(
    st.tuples(st.just(SLICES), slice_keys),
    st.tuples(st.just(BLUEPRINTS), st.builds(BlueprintKey, artifacts)),
    st.tuples(
        st.just(NODES), st.sampled_from([NodeKey, IntentKey, SeenKey]).flatmap(lambda kind: st.builds(kind, node_ids))
    ),
    st.tuples(st.just(STATUS), st.builds(StatusKey, artifacts.map(BlueprintKey).map(encode))),
    st.tuples(st.just(SLICES), st.sampled_from([LEASE, FENCE])),
    st.tuples(st.just(SLICES), st.builds(LastValidKey, artifacts)),
)


@given(located)
@example((SLICES, SliceKey(NodeId("a.b"), Artifact("..", ".a.", "a..b"), 7)))
@example((SLICES, SliceKey(NodeId("."), Artifact(".", "..", "..."), 0)))
@example((SLICES, SliceKey(NodeId("a.intent"), APP, 1)))
@example((NODES, NodeKey(NodeId("a.intent"))))
@example((NODES, IntentKey(NodeId("intent"))))
@example((NODES, SeenKey(NodeId("seen"))))
@example((BLUEPRINTS, BlueprintKey(Artifact("=", "=2E", "==3D"))))
def test_the_codec_is_total_and_reversible(where: tuple[Layout, Key]) -> None:
    layout, key = where
    text = encode(key)
    decoded = layout.decode(text)
    assert decoded == key
    assert type(decoded) is type(key)
    assert hash(decoded) == hash(key)


@given(located)
def test_every_key_string_is_one_that_nats_takes(where: tuple[Layout, Key]) -> None:
    text = encode(where[1])
    assert KV_KEY.fullmatch(text)
    assert not text.startswith(".")
    assert not text.endswith(".")
    assert all(text.split("."))


@given(slice_keys)
def test_the_node_is_a_subject_token_of_its_own(key: SliceKey) -> None:
    token, _, rest = encode(key).partition(".")
    assert token == encode(NodeKey(key.node))
    assert rest.split("/")[:3] == encode(BlueprintKey(key.artifact)).split("/")


@given(st.lists(slice_keys, min_size=2, max_size=2, unique=True))
def test_two_keys_never_share_a_string(keys: list[SliceKey]) -> None:
    assert encode(keys[0]) != encode(keys[1])


raw = st.one_of(
    st.text(st.sampled_from("=23EFaAbcdef0/._-+n"), max_size=24),
    st.lists(
        st.sampled_from(["=2E", "=2B", "=3D", "=C3", "=A9", "=C3=A9", "=2b", "=", ".", "/", "a", "0", "01", "1", "_"]),
        max_size=14,
    ).map("".join),
    st.builds("{}.{}/{}/{}".format, parts, parts, parts, parts),
    st.text(max_size=20),
)


@given(st.sampled_from(LAYOUTS), raw)
@example(BLUEPRINTS, "a/b/c\n")
@example(NODES, "a\n")
def test_a_string_that_decodes_at_all_is_the_one_that_its_key_encodes_to(layout: Layout, text: str) -> None:
    try:
        key = layout.decode(text)
    except InvalidKey:
        return
    assert encode(key) == text


@given(st.sampled_from(LAYOUTS), st.text(st.characters()))
def test_a_key_that_does_not_decode_is_an_invalid_key_and_nothing_else(layout: Layout, text: str) -> None:
    with suppress(InvalidKey):
        layout.decode(text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (SliceKey(n(1), APP), "n1.org.example/slice/1.0.0"),
        (SliceKey(n(1), APP, 2), "n1.org.example/slice/1.0.0/2"),
        (SliceKey(NodeId("node.a"), Artifact("g", "n", "1.0.0+b1"), 0), "node=2Ea.g/n/1.0.0=2Bb1"),
        (BlueprintKey(APP), "org.example/slice/1.0.0"),
        (BlueprintKey(Artifact("é", "n", "=")), "=C3=A9/n/=3D"),
        (BlueprintKey(Artifact("a..b", ".n", "v.")), "a.=2Eb/=2En/v=2E"),
        (NodeKey(NodeId("node-1")), "node-1"),
        (IntentKey(NodeId("node-1")), "node-1.intent"),
        (SeenKey(NodeId("node-1")), "node-1.seen"),
        (LEASE, "_leader"),
        (FENCE, "_term"),
    ],
)
def test_key_strings_are_as_the_protocol_writes_them(key: Key, text: str) -> None:
    assert encode(key) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "/",
        "n1",
        "n1.",
        "n1.g",
        "n1.g/n",
        "n1.g/n/v/",
        "n1.g/n/v/0",
        "n1.g/n/v/00",
        "n1.g/n/v/01",
        "n1.g/n/v/-1",
        "n1.g/n/v/+1",
        "n1.g/n/v/1x",
        "n1.g/n/v/1.",
        "n1.g/n/v/²",
        "n1.g/n/v/٣",
        "n1.g/n/v/1/1",
        "n1.g/n/v/1000000",
        "n1.g//v",
        "n1./n/v",
        ".g/n/v",
        "_leader.g/n/v",
        "_term.x",
        "_leaders",
        "=5Fleader.g/n/v",
        "n=31.g/n/v",
        "n1.g=2En/n/v",
        "n1.g/n/v=2b",
        "n1.g/n/v=2",
        "n1.g/n/v=",
        "n1.g/n/v=FF",
        "n1.g/n/v=C3",
        "n1.g/n/v=C0=AE",
        "n1.g/n/v=ED=A0=80",
        "n1.g/n/v=2F",
        "n1.g/n/v=3A",
        "n1.g/n/v=20",
        "n1.g/n/v=00",
        "n1..g/n/v",
        "n1.g/n/.v",
        "n1.g/n/v.",
    ],
)
def test_slice_keys_that_are_not_ours_are_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        SLICES.decode(text)


@pytest.mark.parametrize("text", ["", "a.b", ".intent", "a.intent.intent", "_x", "a=2eb", "=2E=2", "a.intents", "a/b"])
def test_node_keys_that_are_not_ours_are_refused(text: str) -> None:
    with pytest.raises(InvalidKey):
        NODES.decode(text)


def test_the_leadership_records_share_the_bucket_of_slices() -> None:
    assert SLICES.decode("_leader") == LeaseKey()
    assert SLICES.decode("_term") == FenceKey()


def test_each_kind_of_key_names_its_values_type() -> None:
    kinds = {kind: kind.value_type for layout in LAYOUTS for kind in layout.kinds}
    assert kinds == {
        BlueprintKey: Blueprint,
        SliceKey: SliceValue,
        RolloutKey: Rollout,
        LastValidKey: LastValid,
        LeaseKey: Lease,
        FenceKey: Fence,
        NodeKey: Registration,
        IntentKey: Intent,
        SeenKey: Seen,
        SlotKey: Slot,
        StatusKey: Status,
    }


@given(st.text())
def test_a_status_has_exactly_the_key_of_its_blueprint(name: str) -> None:
    assert STATUS.decode(name) == StatusKey(name)
    assert encode(StatusKey(name)) == name


def test_slices_are_shown_with_colons_and_ordinals() -> None:
    assert str(SliceKey(NodeId("node-1"), APP)) == "slices/node-1/org.example:slice:1.0.0"
    assert str(SliceKey(NodeId("node-1"), APP, 1)) == "slices/node-1/org.example:slice:1.0.0#1"


def test_a_key_of_no_bucket_cannot_be_encoded() -> None:
    with pytest.raises(TypeError):
        encode(Key())


def test_the_longest_slice_key_fits_into_one_line_of_a_nats_client() -> None:
    # nats-server refuses protocol lines above 4 KiB by default (max_control_line).
    widest = "\N{GRINNING FACE}" * 64
    key = SliceKey(NodeId(widest), Artifact(widest, widest, widest), 99_999)
    assert len(f"$KV.slices.{encode(key)}") < 4096 - 200
