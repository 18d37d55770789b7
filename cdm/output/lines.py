"""How ``cdm logs`` shows lines: for people, or for programs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import msgspec

from cdm.log import printable
from cdm.model.artifact import Artifact
from cdm.output.source import Shown
from cdm.output.wire import WireLine

_HARMFUL = re.compile(r"(\x1b\[[0-9;:]*m|\t|\r\Z)|[\x00-\x1f\x7f-\x9f]")
"""Control characters; in the group those that may pass: colours, tabs, and what many programs end lines with."""
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


Show = Callable[[list[Shown]], str]


def as_json(artifact: Artifact) -> Show:
    """One JSON object a line."""

    def show(lines: list[Shown]) -> str:
        return "".join(
            msgspec.json.encode(
                {
                    "time": line.time,
                    "node": node,
                    "artifact": str(artifact),
                    "ordinal": line.ordinal,
                    "stream": line.stream,
                    "text": line.text,
                }
                | ({"partial": True} if line.partial else {})
            ).decode()
            + "\n"
            for node, line in lines
        )

    return show


def as_text(artifact: Artifact, *, terminal: bool, coloured: bool) -> Show:
    """Each line after the name of its slice.

    Args:
        artifact: whose lines these are.
        terminal: whether they go to one: then control characters in them are escaped, except for colours.
        coloured: whether each slice's name has a colour.
    """
    labels: dict[tuple[str, int], str] = {}
    dim, plain = ("\x1b[2m", "\x1b[0m") if coloured else ("", "")

    def label(node: str, ordinal: int) -> str:
        found = labels.get((node, ordinal))
        if found is None:
            found = f"{node}/{artifact}#{ordinal} |" if ordinal else f"{node}/{artifact} |"
            if coloured:
                colour = _COLOURS[zlib.crc32(found.encode()) % len(_COLOURS)]
                found = f"\x1b[{colour}m{found}\x1b[0m"
            labels[node, ordinal] = found
        return found

    def text(line: WireLine) -> str:
        said = _HARMFUL.sub(lambda found: found[1] or printable(found[0]), line.text) if terminal else line.text
        if line.stream != "cdm":
            return said + f"{dim}[cdm: goes on]{plain}" if line.partial else said
        return f"{dim}[cdm: {said}]{plain}"

    def show(lines: list[Shown]) -> str:
        return "".join(f"{label(node, line.ordinal)} {text(line)}\n" for node, line in lines)

    return show
