"""Files in which long runs of zeros take no room, as in the sparse files that they may have been."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)


class SparseFile(io.FileIO):
    """A new file; blocks of zeros that are written to it become holes, where the file system has such.

    Args:
        path: where.
        mode: ``xb`` where there must be none yet, ``wb`` where one may be replaced.
    """

    def __init__(self, path: Path, mode: Literal["xb", "wb"] = "xb") -> None:
        super().__init__(path, mode)
        self._ends_with_hole = False

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all that is ever written here
        """Write all of it, at the end."""
        start = 0
        for at in range(0, len(data) - _BLOCK + 1, _BLOCK):
            if data[at] == 0 and data[at : at + _BLOCK] == _ZEROS:
                self._write(data[start:at])
                self.seek(_BLOCK, io.SEEK_CUR)
                self._ends_with_hole = True
                start = at + _BLOCK
        self._write(data[start:] if start else data)
        return len(data)

    def _write(self, data: bytes) -> None:
        while data:
            self._ends_with_hole = False
            data = data[super().write(data) :]

    def close(self) -> None:
        """Close; a hole at the end becomes part of the file."""
        try:
            if not self.closed and self._ends_with_hole:
                self.truncate()
        finally:
            super().close()
