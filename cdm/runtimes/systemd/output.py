"""What a unit's program writes: systemd appends it to two files, from which the node takes it to the slice's output.

So nothing is lost while there is no process of the node. What was taken is noted at once, and its space is freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path

from cdm.model.limits import Logs
from cdm.output.files import MAX_LINE, OutputWriter

CHUNK = 256 * 1024
FREED = 1 << 20
"""Bytes that were taken until their space is freed."""
STREAMS = ("out", "err")
_POSITION = struct.Struct("<2q")
_PUNCH = 0x03
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: who appends to the file does not notice."""

_libc = ctypes.CDLL(None, use_errno=True)


class RawOutput:
    """The two files of one run, and how much of them was taken.

    Args:
        path: what their names begin with.
        folder: of the slice's output.
        logs: how much of that is kept.
        line: a line on standard output that is waited for.
    """

    def __init__(self, path: Path, folder: Path, logs: Logs, line: str | None = None) -> None:
        self.paths = tuple(path.with_suffix(f".{stream}") for stream in STREAMS)
        self.out, self.err = self.paths
        self._noted = path.with_suffix(".taken")
        self.writer = OutputWriter(folder, logs, line)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._files = [os.open(each, flags, 0o600) for each in self.paths]
        self._note = os.open(self._noted, flags, 0o600)
        noted = os.pread(self._note, _POSITION.size, 0)
        self._taken = list(_POSITION.unpack(noted)) if len(noted) == _POSITION.size else [0, 0]
        self._freed = list(self._taken)

    @property
    def more(self) -> bool:
        """Whether something was written since."""
        return any(os.fstat(file).st_size > taken for file, taken in zip(self._files, self._taken, strict=True))

    def take(self, *, all_of_it: bool = False) -> bool:
        """Take whole lines, and a long one in pieces; returns whether there was anything. Blocks.

        Args:
            all_of_it: also a line that has no end yet.
        """
        before = list(self._taken)
        for index, stream in enumerate(STREAMS):
            data = os.pread(self._files[index], CHUNK, self._taken[index])
            if not all_of_it and len(data) <= MAX_LINE:
                data = data[: data.rfind(b"\n") + 1]
            if data:
                self.writer.feed(stream, data)
                self._taken[index] += len(data)
        if self._taken != before:
            os.pwrite(self._note, _POSITION.pack(*self._taken), 0)
        for index, taken in enumerate(self._taken):
            if taken - self._freed[index] >= FREED:
                _libc.fallocate(self._files[index], _PUNCH, ctypes.c_int64(0), ctypes.c_int64(taken))
                self._freed[index] = taken
        return self._taken != before

    def end(self, ended: str) -> None:
        """Take what is left, write how the program ended, and remove the files: nothing of it runs. Blocks."""
        while self.take(all_of_it=True):
            pass
        self.writer.close(ended)
        self.close()
        for each in (*self.paths, self._noted):
            with contextlib.suppress(FileNotFoundError):
                each.unlink()

    def close(self) -> None:
        """Leave the rest to the next process of the node."""
        for file in (*self._files, self._note):
            os.close(file)
        self._files = []
