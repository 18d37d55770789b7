"""Reads the output of slices; `cdm.output.files` says how it is stored. Any process may read while another writes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio

from cdm.errors import InvalidKey
from cdm.model.artifact import Artifact
from cdm.model.keys import SLICES, SliceKey, encode
from cdm.output import OutputLine
from cdm.output.files import file_name, numbers

CHUNK = 256 * 1024
POLL = 0.1
"""Seconds between two looks for more."""
LOST = "lines were lost: they were deleted before they could be read"
MAX_NAME = 200
"""Longest name of a folder, in bytes; file systems allow 255."""


def folder_name(key: SliceKey) -> str:
    """A slice's name as one part of a path: its key, shortened where it is too long."""
    name = encode(key).replace("/", "=2F")  # no part of an artifact can hold a slash of its own
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 41]}={hashlib.sha256(name.encode()).hexdigest()[:40]}"


def keys(parent: Path, artifact: Artifact) -> list[SliceKey]:
    """The slices of an artifact that have output here, except those whose names had to be shortened."""
    found = []
    with contextlib.suppress(OSError):
        for each in os.listdir(parent):  # noqa: PTH208  # only names are needed
            with contextlib.suppress(InvalidKey):
                key = SLICES.decode(each.replace("=2F", "/"))
                if isinstance(key, SliceKey) and key.artifact == artifact:
                    found.append(key)
    return found


def parse(line: bytes) -> OutputLine | None:
    """Read a line of a file; None: it is incomplete."""
    match line.split(b" ", 2):
        case [time, stream, text]:
            with contextlib.suppress(ValueError):
                name = stream.removesuffix(b"+")
                shown = text.removesuffix(b"\r").decode(errors="replace")
                return OutputLine(datetime.fromisoformat(time.decode()), name.decode(), shown, name != stream)
    return None


async def tail(
    folder: Path, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
) -> AsyncIterator[OutputLine]:
    """The same as `batches`, line by line."""
    async for batch in batches(folder, lines=lines, since=since, follow=follow):
        for line in batch:
            yield line


async def batches(
    folder: Path, *, lines: int | None = None, since: datetime | None = None, follow: bool = False
) -> AsyncIterator[Sequence[OutputLine]]:
    """A slice's output, oldest line first.

    Files that are put aside meanwhile are read to their end. A remark tells where one was deleted before it was read.

    Args:
        folder: where the slice's output is.
        lines: only the last so many of what is there now; None: all.
        since: nothing older than this time, which has a time zone.
        follow: go on with new output, for ever.
    """
    reader = _Reader(folder)
    kept: deque[OutputLine] = deque(maxlen=lines)
    end = await asyncio.to_thread(_end, folder)  # a program may write faster than it is read
    while not reader.reached(end) and (batch := await asyncio.to_thread(reader.read)):
        fresh = [line for line in batch if since is None or line.time >= since]
        if lines is not None:
            kept.extend(fresh)
        elif fresh:
            yield fresh
    if kept:
        yield list(kept)
    kept.clear()
    while follow:
        batch = await asyncio.to_thread(reader.read)
        fresh = [line for line in batch if since is None or line.time >= since]
        if fresh:
            yield fresh
        if not batch:
            await anyio.sleep(POLL)


def _end(folder: Path) -> tuple[int, int]:
    """Where the output ends now: the newest file's number, and its size in bytes."""
    with contextlib.suppress(IndexError, OSError):
        number = numbers(folder)[-1]
        return number, (folder / file_name(number)).stat().st_size
    return 0, 0


class _Reader:
    """A position in a slice's output."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number: int | None = None
        """Of the present file; None: there was none yet."""
        self._offset = 0
        self._missing = False
        """Whether the present file was deleted before its end was reached."""

    def reached(self, end: tuple[int, int]) -> bool:
        """Whether all that was written before this end was read, or is gone."""
        return self._number is not None and (self._number, self._offset) >= end

    def read(self) -> list[OutputLine]:
        """The next lines; empty: there are none yet."""
        while True:
            present = numbers(self._folder)
            if self._number is not None and present and present[-1] < self._number:
                self._number = None  # all files were deleted, and begun anew
            following = [each for each in present if self._number is None or each > self._number]
            if self._number is not None:
                found = self._read()
                if found:
                    return found
                if found is not None:  # only incomplete lines
                    continue
            if not following:
                return []
            # `following` was listed before the end was reached: nothing is added to a file that has a successor.
            missing = self._number is not None and (self._missing or following[0] != self._number + 1)
            self._number, self._offset, self._missing = following[0], 0, False
            if missing:
                return [OutputLine(datetime.now(UTC), "cdm", LOST)]

    def _read(self) -> list[OutputLine] | None:
        """Lines of the present file; None: it is at its end."""
        assert self._number is not None
        try:
            with (self._folder / file_name(self._number)).open("rb") as file:
                file.seek(self._offset)
                data = file.read(CHUNK)
        except FileNotFoundError:
            self._missing = True
            return None
        end = data.rfind(b"\n") + 1
        if not end:
            return None
        self._offset += end
        return [line for each in data[: end - 1].split(b"\n") if (line := parse(each)) is not None]


def prune(parent: Path, loaded: Collection[str], kept: int) -> None:
    """Delete the output of slices that are no longer loaded, except for the ``kept`` that wrote last."""
    with contextlib.suppress(OSError):
        folders = [Path(each) for each in os.scandir(parent) if each.name not in loaded]
        for each in sorted(folders, key=_written, reverse=True)[kept:]:
            shutil.rmtree(each, ignore_errors=True)


def _written(folder: Path) -> float:
    """When a slice wrote last. The folder's own time tells only when its newest file was begun."""
    return max(((folder / file_name(number)).stat().st_mtime for number in numbers(folder)[-1:]), default=0.0)
