"""Keeps the output of one slice's programs, line by line, in files of bounded size.

A line in a file is ``2026-11-24T00:45:12.123Z out text``: when it was read (UTC), which stream (``out``, ``err``, or
``cdm``: a remark of cdm's), and what was written, byte for byte. A line that is too long is kept in parts: all but its
last have a ``+`` after the stream (``out+``). Files are numbered; the newest has the highest number.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from cdm.model.limits import Logs

MAX_LINE = 16 * 1024
"""Longest line that is kept whole, in bytes; a longer one is kept in parts, which readers can put together."""
LAST_LINES = 5
"""Lines of each stream that are quoted in reasons; of each, so that much output does not hide an error message."""
LAST_LENGTH = 300
"""How much of each line is quoted, in bytes."""
LONGEST_REMARK = 4096
"""Bytes of a remark of cdm's, at most."""
MIN_BYTES = 4096
"""Smallest size at which a file is put aside, in bytes: smaller files would be too many."""
BEGAN_AGAIN = "begins again"
ENDED = "ended: "
"""Remarks between the runs of a slice: what an `OutputWriter` marks their beginnings and ends with."""
UNNOTED = "nobody noted how"
"""Of a run whose end was not written before the next one began: the machine was switched off, for example."""
_NAME = re.compile(r"(0[0-9]{7}|[1-9][0-9]{7,})\.log", re.ASCII)


class Lines(NamedTuple):
    """Lines without their line ends."""

    lines: list[bytes]
    partial: bool
    """Whether these are parts of one line that goes on after them; else each is a line, or the last part of one."""


class LineSplitter:
    """Splits a stream of bytes into lines, and long lines into parts, at the same places however the bytes come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Lines]:
        """The lines and parts that are complete now."""
        whole = self._rest + data
        *lines, rest = whole.split(b"\n")
        if len(whole) <= MAX_LINE or (len(rest) <= MAX_LINE and (not lines or max(map(len, lines)) <= MAX_LINE)):
            self._rest = rest
            return [Lines(lines, partial=False)] if lines else []
        found: list[Lines] = []
        for line in lines:
            parts, end = _in_parts(line)
            if parts:
                found.append(Lines(parts, partial=True))
            if found and not found[-1].partial:
                found[-1].lines.append(end)
            else:
                found.append(Lines([end], partial=False))
        parts, self._rest = _in_parts(rest)
        return [*found, Lines(parts, partial=True)] if parts else found

    def end(self) -> list[Lines]:
        """What came after the last line end."""
        rest, self._rest = self._rest, b""
        return [Lines([rest], partial=False)] if rest else []


def _in_parts(line: bytes) -> tuple[list[bytes], bytes]:
    """The parts of a line that is too long, and its rest, which is not."""
    parts, start = [], 0
    while len(line) - start > MAX_LINE:
        end = start + MAX_LINE
        while end > start + MAX_LINE - 4 and line[end] & 0xC0 == 0x80:  # within a character in UTF-8
            end -= 1
        parts.append(line[start:end])
        start = end
    return parts, line[start:]


def numbers(folder: str | os.PathLike[str]) -> list[int]:
    """Numbers of the files of a slice's output, oldest first. Other files in the folder are passed over."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)


def file_name(number: int) -> str:
    """The name of the file with this number."""
    return f"{number:08}.log"


class OutputWriter:
    """Keeps the output of one run. The files of earlier runs are continued.

    Where writing fails (a full disk), output is lost and counted, and the program is not held up.

    Args:
        folder: where the slice's files are.
        logs: how much is kept. A file may be one line longer than ``max_bytes``, which counts as at least `MIN_BYTES`.
        line: a line on standard output that is waited for.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        logs: Logs,
        line: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = os.fspath(folder)
        self._files = logs.files
        self._room = max(logs.max_bytes, MIN_BYTES)
        self._line = None if line is None else line.encode()
        self._now = now
        self._splitters = {"out": LineSplitter(), "err": LineSplitter()}
        self._number = 0
        self._file = -1
        self._size = 0
        self._torn = False
        self.lost = 0
        """Bytes that could not be written since one could."""
        self.problem = ""
        """Why not."""
        self._continues = dict.fromkeys(self._splitters, False)
        """By stream: whether the next part belongs to the same line as the last one."""
        self._last: dict[str, tuple[bytes, ...]] = dict.fromkeys(self._splitters, ())
        self.said = False
        """Whether the program wrote the line that is waited for."""
        self._begun = False

    @property
    def last(self) -> tuple[str, ...]:
        """The last lines of standard output, then those of standard error."""
        lines = (line for stream in self._last.values() for line in stream)
        return tuple(_cut(line).decode(errors="replace").rstrip() for line in lines)

    def begin(self) -> None:
        """The program runs, or does so already: where another one ran before, marks tell the two apart."""
        if not self._begun:
            self._begun = True
            if numbers(self._folder):
                if not _is_ended(self._folder):
                    self.remark(f"{ENDED}{UNNOTED}")
                self.remark(BEGAN_AGAIN)

    def go_on(self) -> None:
        """The program ran before: what it writes now needs no mark."""
        self._begun = True

    def feed(self, stream: str, data: bytes) -> None:
        """Keep what the program wrote."""
        self.begin()
        self._take(stream, self._splitters[stream].feed(data))

    def end(self, stream: str) -> None:
        """The program closed the stream."""
        self._take(stream, self._splitters[stream].end())

    def remark(self, text: str) -> None:
        """Add a remark of cdm's."""
        self._store(self._render("cdm", [text.encode()]))

    def close(self, ended: str = "") -> None:
        """Write the unfinished lines, and how the program ended, where it ever ran; and close the file."""
        for stream in self._splitters:
            self.end(stream)
        if ended and self._begun:
            self.remark(f"{ENDED}{ended}")
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def end_for_another(self, ended: str, *, ran: bool) -> None:
        """Write how a run ended whose own writer died before it could; nothing, where that was written.

        Args:
            ended: how.
            ran: whether the program is known to have run.
        """
        if not _is_ended(self._folder) if numbers(self._folder) else ran:
            self._begun = True
            self.close(ended)

    def _take(self, stream: str, found: list[Lines]) -> None:
        data = b""
        for lines, partial in found:
            begun = lines[:1] if partial else lines
            if self._continues[stream]:
                begun = begun[1:]
            self._continues[stream] = partial
            self._last[stream] = (*self._last[stream], *begun[-LAST_LINES:])[-LAST_LINES:]
            if self._line is not None and stream == "out" and not partial:
                self.said = self._line in begun or self._line + b"\r" in begun
                self._line = None if self.said else self._line
            data += self._render(f"{stream}+" if partial else stream, lines)
        if data:
            self._store(data)

    def _render(self, stream: str, lines: list[bytes]) -> bytes:
        now = self._now()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03}Z {stream} ".encode()
        return stamp + (b"\n" + stamp).join(lines) + b"\n"

    def _store(self, data: bytes) -> None:
        try:
            if self.lost:
                note = f"{self.lost} bytes of output could not be written, and are lost ({self.problem})"
                self._write(self._render("cdm", [note.encode()]))
                self.lost = 0
            self._write(data)
        except OSError as error:
            self.lost += len(data)
            self.problem = error.strerror or str(error)

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            self._open()
        if self._torn:
            data = b"\n" + data
        while data:
            room = self._room - self._size
            fits = len(data) if len(data) <= room else data.rfind(b"\n", 0, max(room, 0)) + 1
            if not fits and self._size:
                self._rotate()
                continue
            piece = data[: fits or data.find(b"\n") + 1]
            written = os.write(self._file, piece)
            self._size += written
            self._torn = data[written - 1] != 0x0A
            data = data[written:]

    def _open(self) -> None:
        os.makedirs(self._folder, exist_ok=True)
        self._number = (numbers(self._folder) or [1])[-1]
        self._file = os.open(self._path(self._number), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = os.fstat(self._file).st_size
        # A writer that was killed may have left half a line.
        self._torn = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"

    def _rotate(self) -> None:
        path = self._path(self._number + 1)
        following = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o640)
        os.close(self._file)
        self._file, self._size, self._torn = following, 0, False
        self._number += 1
        for number in numbers(self._folder):
            if number <= self._number - self._files:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(number))

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, file_name(number))


def _is_ended(folder: str) -> bool:
    """Whether the end of the last run is written: nothing comes after it."""
    try:
        with open(os.path.join(folder, file_name(numbers(folder)[-1])), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LONGEST_REMARK, 0))
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    except (OSError, IndexError):
        return False
    return last.partition(b" ")[2].startswith(f"cdm {ENDED}".encode())


def _cut(line: bytes) -> bytes:
    return line if len(line) <= LAST_LENGTH else line[:LAST_LENGTH] + "…".encode()
