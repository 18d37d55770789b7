"""What is written down of a slice's output, and read again."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.limits import Logs
from cdm.output.files import LAST_LENGTH, MAX_LINE, MIN_BYTES, LineSplitter, OutputWriter, file_name, numbers
from cdm.output.lines import AsJson, AsText
from cdm.output.reading import batches, folder_name, parse, prune, tail
from cdm.output.runs import previous_run
from cdm.output.source import Shown
from cdm.output.wire import WireLine
from cdm.runtimes import OutputLine
from tests.harness.waiting import bounded, eventually
from tests.unit.support import artifacts, node_ids

pytestmark = pytest.mark.anyio

AT = datetime(2026, 11, 24, 1, 2, 3, 456_000, tzinfo=UTC)


def a_writer(folder: Path, logs: Logs | None = None, line: str | None = None) -> OutputWriter:
    return OutputWriter(folder, logs or Logs(), line, now=AT.timestamp)


async def everything(folder: Path, lines: int | None = None, since: datetime | None = None) -> list[OutputLine]:
    return [line async for line in tail(folder, lines=lines, since=since)]


pieces = st.lists(
    st.binary(max_size=40)
    | st.sampled_from(
        [b"\n", b"\n\n", b"x" * MAX_LINE, b"y" * (MAX_LINE + 1), "é€😀".encode() * 3000, b"\x80" * 2 * MAX_LINE]
    )
)


def split(data: list[bytes]) -> list[tuple[bytes, bool]]:
    """Each line and part, and whether it is a part that is not the last."""
    splitter = LineSplitter()
    found = [each for piece in data for each in splitter.feed(piece)] + splitter.end()
    return [(line, lines.partial) for lines in found for line in lines.lines]


@given(pieces)
def test_nothing_is_lost_and_no_line_is_too_long(data: list[bytes]) -> None:
    found = split(data)
    assert all(len(line) <= MAX_LINE for line, _ in found)
    whole = b"".join(line if partial else line + b"\n" for line, partial in found)
    given = b"".join(data)
    assert whole == given if given.endswith(b"\n") or not given else whole == given + b"\n"


@given(pieces, st.integers(1, 2 * MAX_LINE))
def test_lines_and_parts_are_the_same_however_they_come(data: list[bytes], size: int) -> None:
    whole = b"".join(data)
    size = max(size, len(whole) // 50, 1)
    assert split([whole[at : at + size] for at in range(0, len(whole), size)]) == split(data) == split([whole])


def test_what_fits_is_whole_and_characters_are_not_torn() -> None:
    assert split([b"x" * MAX_LINE + b"\n"]) == [(b"x" * MAX_LINE, False)]
    text = "😀" * MAX_LINE
    assert "".join(line.decode() for line, _ in split([b"x", text.encode()])) == "x" + text


@given(st.binary(max_size=3 * MAX_LINE), st.integers(1, 999))
def test_a_long_line_costs_no_memory(data: bytes, times: int) -> None:
    splitter = LineSplitter()
    for _ in range(min(times, 20)):
        splitter.feed(data.replace(b"\n", b""))
    assert sum(len(lines.lines[0]) for lines in splitter.end()) <= MAX_LINE


async def test_a_long_line_is_kept_in_parts_that_say_so(tmp_path: Path) -> None:
    writer = a_writer(tmp_path, line="READY=1")
    text = "ä" * MAX_LINE  # twice as many bytes
    writer.feed("out", f"before\n{text}READY=1".encode())
    writer.feed("err", b"oops\n")
    writer.feed("out", b"\nafter\n")
    assert not writer.said
    writer.close()
    lines = await everything(tmp_path)
    assert [line.text for line in lines if not line.partial] == ["before", "oops", "READY=1", "after"]
    assert {line.stream for line in lines} == {"out", "err"}
    found = "".join(line.text if line.partial else line.text + "\n" for line in lines if line.stream == "out")
    assert found == f"before\n{text}READY=1\nafter\n"
    assert writer.last == ("before", f"{text[: LAST_LENGTH // 2]}…", "after", "oops")


def test_parts_are_shown_as_such() -> None:
    shown = [
        Shown("g:n:1", "n1", WireLine(AT, "out", 0, "beginning", partial=True)),
        Shown("g:n:1", "n1", WireLine(AT, "out", 0, "end")),
    ]
    (whole,) = AsText(terminal=True, coloured=False).lines(shown).splitlines()
    assert whole.endswith("| beginningend")
    told = [json.loads(line) for line in AsJson().lines(shown).splitlines()]
    assert [line.get("partial", False) for line in told] == [True, False]
    old = msgspec.json.decode(msgspec.json.encode((AT, "out", 0, "a line of an older node")), type=WireLine)
    assert not old.partial


async def test_written_and_read(tmp_path: Path) -> None:
    writer = a_writer(tmp_path)
    writer.feed("out", b"one\ntw")
    writer.feed("err", b"\xff\x00 oops\r\n")
    writer.feed("out", b"o\n\nrest")
    writer.close()
    assert [(line.stream, line.text) for line in await everything(tmp_path)] == [
        ("out", "one"),
        ("err", "\ufffd\x00 oops"),
        ("out", "two"),
        ("out", ""),
        ("out", "rest"),
    ]
    assert {line.time for line in await everything(tmp_path)} == {AT}
    assert [line.text for line in await everything(tmp_path, lines=2)] == ["", "rest"]
    assert await everything(tmp_path, lines=0) == []
    assert len(await everything(tmp_path, since=AT)) == 5
    assert await everything(tmp_path, since=AT.replace(second=4)) == []
    assert writer.last == ("one", "two", "", "rest", "\ufffd\x00 oops")


def test_a_long_last_line_is_cut_and_says_so(tmp_path: Path) -> None:
    writer = a_writer(tmp_path)
    writer.feed("out", b"%b\n%b\n" % (b"x" * LAST_LENGTH, b"y" * (LAST_LENGTH + 1)))
    assert writer.last == ("x" * LAST_LENGTH, "y" * LAST_LENGTH + "…")
    writer.close()


@pytest.mark.parametrize("size", [1, 4096, 6000])
@pytest.mark.parametrize("files", [1, 2, 5])
async def test_size_is_bounded_and_the_newest_stays(tmp_path: Path, size: int, files: int) -> None:
    writer = a_writer(tmp_path, Logs(max_bytes=size, files=files))
    longest = 0
    for number in range(300):
        lines = b"".join(b"%d %s\n" % (number, b"x" * (each % 50)) for each in range(number % 7 + 1))
        longest = max(longest, 32 + 60)
        writer.feed("out", lines)
        kept = numbers(tmp_path)
        assert len(kept) <= files
        assert all((tmp_path / file_name(each)).stat().st_size <= max(size, MIN_BYTES) + longest for each in kept)
    writer.close()
    texts = [line.text for line in await everything(tmp_path)]
    assert texts[-1].startswith("299 ")
    found = [int(text.split()[0]) for text in texts]
    assert found == sorted(found)
    total = sum((tmp_path / file_name(each)).stat().st_size for each in numbers(tmp_path))
    assert total >= (files - 1) * (size - 100)


def test_the_smallest_files_cost_no_rotation_for_each_line(tmp_path: Path) -> None:
    writer = a_writer(tmp_path, Logs(max_bytes=1, files=3))
    writer.feed("out", b"\n" * 1000)
    writer.close()
    assert numbers(tmp_path)[-1] <= 1000 * 30 / (MIN_BYTES - 30) + 1


async def test_files_of_others_are_none_of_its_own(tmp_path: Path) -> None:
    for name in (
        "2026-11-25.log",
        "1.log",
        "000000001.log",
        "\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.log",
        "9.log.log",
    ):
        (tmp_path / name).write_text("mine")
    assert numbers(tmp_path) == []
    writer = a_writer(tmp_path)
    writer.feed("out", b"one\n")
    writer.close()
    assert numbers(tmp_path) == [1]
    assert [line.text for line in await everything(tmp_path)] == ["one"]
    assert numbers(tmp_path / "nothing") == []
    assert file_name(123_456_789) == "123456789.log"
    (tmp_path / file_name(123_456_789)).touch()
    assert numbers(tmp_path) == [1, 123_456_789]


async def test_goes_on_where_a_killed_writer_stopped(tmp_path: Path) -> None:
    first = a_writer(tmp_path)
    first.feed("out", b"one\n")
    with (tmp_path / file_name(1)).open("ab") as file:
        file.write(b"2026-11-24T00:00:00.000Z out tor")
    second = a_writer(tmp_path)
    second.feed("out", b"two\n")
    second.close()
    first.close()
    assert [line.text for line in await everything(tmp_path)] == [
        "one",
        "tor",
        "ended: nobody noted how",
        "begins again",
        "two",
    ]


async def test_a_full_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = a_writer(tmp_path)
    writer.feed("out", b"one\n")

    def none(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", none)
        writer.feed("out", b"lost\n")
        writer.feed("err", b"lost too\n")
    writer.feed("out", b"two\n")
    writer.close()
    lines = await everything(tmp_path)
    assert [line.text for line in lines if line.stream != "cdm"] == ["one", "two"]
    assert [line.text for line in lines if line.stream == "cdm"] == [
        "72 bytes of output could not be written, and are lost (No space left on device)"
    ]


async def test_half_a_line_on_a_full_disk_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = a_writer(tmp_path)
    writer.feed("out", b"one\n")
    write, calls = os.write, [0]

    def half(descriptor: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        writer.feed("out", b"lost\n")
    writer.feed("out", b"two\n")
    writer.close()
    assert [line.text for line in await everything(tmp_path) if line.stream == "out"] == ["one", "two"]


async def test_follow_through_rotation(tmp_path: Path) -> None:
    writer = a_writer(tmp_path, Logs(max_bytes=2000, files=3))
    found: list[str] = []
    writer.feed("out", b"-1\n")

    def caught_up(number: int) -> bool:
        return len(found) > number

    async def read() -> None:
        async for line in tail(tmp_path, lines=1, follow=True):
            found.append(line.text)
            if line.text == "499":
                return

    with bounded(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await eventually(lambda: found, what="it follows")
            for number in range(500):
                writer.feed("out", b"%d\n" % number)
                if number % 40 == 0:  # else it could be rotated away unread
                    await eventually(partial(caught_up, number))
    assert found == [str(number) for number in range(-1, 500)]
    writer.close()


@pytest.mark.parametrize("lines", [None, 1])
async def test_what_is_there_has_an_end_though_a_program_writes_faster_than_it_is_read(
    tmp_path: Path, lines: int | None
) -> None:
    writer = a_writer(tmp_path, Logs(max_bytes=1_000_000, files=3))
    writer.feed("out", b"before\n")
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            writer.feed("out", b"after\n" * 2000)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, flood)
        try:
            with bounded():
                found = await everything(tmp_path, lines)
        finally:
            ended.set()
    assert found
    writer.close()


def test_the_line_that_is_waited_for(tmp_path: Path) -> None:
    writer = a_writer(tmp_path, line="READY=1")
    writer.feed("err", b"READY=1\n")
    writer.feed("out", b"READY=1 \nREAD")
    assert not writer.said
    writer.feed("out", b"Y=1")
    assert not writer.said
    writer.close()


def test_the_line_with_a_carriage_return(tmp_path: Path) -> None:
    writer = a_writer(tmp_path, line="READY=1")
    writer.feed("out", b"READY=1\r\n")
    assert writer.said
    writer.close()


def test_what_is_no_line() -> None:
    assert parse(b"") is None
    assert parse(b"nonsense out text") is None
    assert parse(b"2026-11-24T01:02:03.456Z out a b") == OutputLine(AT, "out", "a b")


@given(node_ids, artifacts, st.integers(0, 999_999), node_ids, artifacts)
def test_folder_names_are_safe_and_different(
    node: NodeId, artifact: Artifact, ordinal: int, other: NodeId, another: Artifact
) -> None:
    name = folder_name(SliceKey(node, artifact, ordinal))
    assert "/" not in name
    assert name.isascii()
    assert 0 < len(name) <= 200
    assert not name.startswith(".")
    assert name != folder_name(SliceKey(node, artifact, ordinal + 1))
    if (node, artifact) != (other, another):
        assert name != folder_name(SliceKey(other, another, ordinal))


def test_pruning_keeps_what_is_loaded_and_the_newest(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"s{number}").mkdir()
        (tmp_path / f"s{number}" / "00000001.log").touch()
        os.utime(tmp_path / f"s{number}" / "00000001.log", (number, number))
        os.utime(tmp_path / f"s{number}", (9 - number, 9 - number))  # that of a folder only tells of its newest file
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "empty", (0, 0))
    prune(tmp_path, {"s0"}, 2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s0", "s4", "s5"]
    prune(tmp_path / "nothing", set(), 2)


async def test_the_run_that_ended_last_is_told_from_the_others(tmp_path: Path) -> None:
    async def previous(lines: int | None = None) -> list[str]:
        return [line.text async for batch in previous_run(batches(tmp_path), lines) for line in batch]

    first = a_writer(tmp_path)
    first.feed("out", b"one\ntwo\nthree")
    assert await previous() == []
    first.close("exit status 1")
    assert await previous() == ["one", "two", "three", "ended: exit status 1"]
    second = a_writer(tmp_path)
    second.feed("err", b"four\n")
    assert await previous(2) == ["two", "three", "ended: exit status 1"]
    # Its end was never written: the machine was switched off.
    third = a_writer(tmp_path)
    third.begin()
    third.feed("out", b"five\n")
    assert await previous() == ["begins again", "four", "ended: nobody noted how"]
    third.close()
    # Nor was that of this one, and somebody else tells it, once.
    for _ in range(2):
        a_writer(tmp_path).end_for_another("its keeper died", ran=True)
        assert await previous() == ["begins again", "five", "ended: its keeper died"]
    # What never ran leaves no mark.
    a_writer(tmp_path).close("exit status 127")
    assert (await everything(tmp_path))[-1].text == "ended: its keeper died"


@pytest.mark.parametrize("ran", [True, False])
async def test_the_end_of_a_run_that_wrote_nothing_is_told_by_another(tmp_path: Path, ran: bool) -> None:
    """Where it ran, which there being no file does not tell."""
    a_writer(tmp_path).end_for_another("its keeper died", ran=ran)
    assert [line.text for line in await everything(tmp_path)] == ["ended: its keeper died"] * ran
