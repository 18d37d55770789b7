"""How an atomic batch looks on the wire."""

from __future__ import annotations

import pytest

from cdm.store.batch import HEADERS, LONGEST_KEY, MAX_BATCH, Write, prepared

SUBJECTS = "$KV.slices."


@pytest.mark.parametrize("count", [0, MAX_BATCH + 1])
def test_a_batch_holds_one_message_at_least_and_no_more_than_the_server_accepts(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 1,000 messages"):
        prepared([Write("a", b"1")] * count, SUBJECTS, 1_000_000)


def test_all_messages_but_the_last_are_encoded_and_the_last_commits_them() -> None:
    batch = prepared(
        [Write("a", b"1", {"Own": "x"}), Write("b", b""), Write("c", b"3", {"Own": "y"})], SUBJECTS, 1_000_000
    )
    identity = batch.last.headers["Nats-Batch-Id"]
    first, second = (
        f"NATS/1.0\r\n{own}Nats-Batch-Id: {identity}\r\nNats-Batch-Sequence: {position}\r\n\r\n"
        for position, own in ((1, "Own: x\r\n"), (2, ""))
    )
    assert batch.frames.decode() == (
        f"HPUB $KV.slices.a {len(first)} {len(first) + 1}\r\n{first}1\r\n"
        f"HPUB $KV.slices.b {len(second)} {len(second)}\r\n{second}\r\n"
    )
    assert batch.last == Write(
        "c",
        b"3",
        {"Own": "y", "Nats-Batch-Id": identity, "Nats-Batch-Sequence": "3", "Nats-Batch-Commit": "1"},
    )
    assert not batch.problem


def test_one_message_is_no_batch() -> None:
    """The server has room for few batches at a time, and for messages always."""
    batch = prepared([Write("a", b"1", {"Own": "x"})], SUBJECTS, 1_000_000)
    assert not batch.frames
    assert batch.last == Write("a", b"1", {"Own": "x"})


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (Write("x" * LONGEST_KEY, b"x" * (10_000 - HEADERS)), ""),
        (Write("x" * (LONGEST_KEY + 1), b""), f"is {LONGEST_KEY + 1:,} bytes long"),
        (Write("\u00e4" * LONGEST_KEY, b""), f"is {2 * LONGEST_KEY:,} bytes long"),
        (Write("x", b"x" * (10_001 - HEADERS)), "the value of 'x' is 10,001 bytes long, more than the 10,000"),
    ],
)
def test_what_the_server_would_end_the_connection_for_is_a_problem(write: Write, problem: str) -> None:
    for batch in ([write], [write, Write("a", b"")], [Write("a", b""), write]):
        found = prepared(batch, SUBJECTS, 10_000).problem
        assert problem in found
        assert bool(found) is bool(problem)
