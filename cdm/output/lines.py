"""How ``cdm logs`` shows lines: for people, or for programs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from datetime import UTC
from typing import Protocol

import msgspec

from cdm.log import HARMFUL, printable, printable_json
from cdm.output.source import Shown
from cdm.output.wire import WireLine

_HARMFUL = re.compile(rf"(\x1b\[[0-9;:]*m|\t|\r\Z)|[\x00-\x1f{HARMFUL}]")
"""Control characters; in the group those that may pass: colours, tabs, and what many programs end lines with."""
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class Show(Protocol):
    """Turns lines into what is written for them."""

    def lines(self, lines: Sequence[Shown]) -> str:
        """What is written for the lines that come next."""

    def end(self) -> str:
        """What is written at the end."""


class AsJson:
    """One JSON object a line, and for each part of a line that was too long to be kept whole."""

    def lines(self, lines: Sequence[Shown]) -> str:
        """What is written for the lines that come next."""
        return "".join(map(self._line, lines))

    def end(self) -> str:
        """Nothing."""
        return ""

    def _line(self, shown: Shown) -> str:
        line = shown.line
        fields = {
            "time": line.time,
            "node": shown.node,
            "artifact": shown.artifact,
            "ordinal": line.ordinal,
            "stream": line.stream,
            "text": line.text,
            **({"partial": True} if line.partial else {}),
        }
        return f"{printable_json(msgspec.json.encode(fields).decode())}\n"


class AsText:
    """Each line after the name of its slice; the parts of a long line are put together where nothing comes between.

    Args:
        terminal: whether they go to one: then control characters in them are escaped, except for colours.
        coloured: whether each slice's name has a colour.
        timed: whether each line begins with its time.
    """

    def __init__(self, *, terminal: bool, coloured: bool, timed: bool = False) -> None:
        self._terminal = terminal
        self._coloured = coloured
        self._timed = timed
        self._labels: dict[tuple[str, str, int], str] = {}
        self._unfinished: tuple[str, str, int, str] | None = None
        """Artifact, node, ordinal and stream of the line whose first parts are written."""

    def lines(self, lines: Sequence[Shown]) -> str:
        """What is written for the lines that come next."""
        return "".join(map(self._line, lines))

    def end(self) -> str:
        """The end of a line that goes on: more of it was not asked for, or is not written yet."""
        if self._unfinished is None:
            return ""
        self._unfinished = None
        return f"{self._remark('goes on')}\n"

    def _line(self, shown: Shown) -> str:
        artifact, node, line = shown
        origin = (artifact, node, line.ordinal, line.stream)
        time = f"{line.time.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}Z " if self._timed else ""
        begun = "" if origin == self._unfinished else f"{self.end()}{time}{self._label(artifact, node, line.ordinal)} "
        self._unfinished = origin if line.partial else None
        return f"{begun}{self._text(line)}{'' if line.partial else chr(10)}"

    def _label(self, artifact: str, node: str, ordinal: int) -> str:
        found = self._labels.get((artifact, node, ordinal))
        if found is None:
            found = f"{node}/{artifact}#{ordinal} |" if ordinal else f"{node}/{artifact} |"
            if self._coloured:
                colour = _COLOURS[zlib.crc32(found.encode()) % len(_COLOURS)]
                found = f"\x1b[{colour}m{found}\x1b[0m"
            self._labels[artifact, node, ordinal] = found
        return found

    def _text(self, line: WireLine) -> str:
        text = line.text
        if self._terminal:
            text = _HARMFUL.sub(lambda found: found[1] or printable(found[0]), text)
        return self._remark(text) if line.stream == "cdm" else text

    def _remark(self, text: str) -> str:
        return f"\x1b[2m[cdm: {text}]\x1b[0m" if self._coloured else f"[cdm: {text}]"
