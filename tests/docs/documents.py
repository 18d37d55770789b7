"""The README, taken apart: what tests run is its own text, and what they look for and do not find there is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tests.harness.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")

_BLOCK = r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
_HEADING_OR_BLOCK = re.compile(rf"^#+ (?P<heading>[^\n]*)$|{_BLOCK}", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"[a-z][a-z0-9-]* ")


class Block(NamedTuple):
    """A fenced block."""

    section: str
    """The heading above it."""
    language: str
    text: str


def _blocks() -> Iterator[Block]:
    section = ""
    for part in _HEADING_OR_BLOCK.finditer(README):
        if part["heading"]:
            section = part["heading"]
        else:
            yield Block(section, part["language"], part["text"])


def _inline() -> Iterator[str]:
    prose = re.sub(_BLOCK, "", README, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        # What has an ellipsis tells of many commands, and is none.
        if _COMMAND.match(code) and "…" not in code:
            yield " ".join(code.split())


BLOCKS = list(_blocks())
INLINE = set(_inline())
"""The commands in running text."""


def blocks(section: str, language: str = "") -> list[str]:
    """The text of all blocks under a heading that are in a language; at least one."""
    found = [block.text for block in BLOCKS if (block.section, block.language) == (section, language)]
    assert found, f"the README has no such block under {section!r}"
    return found


def commands(section: str) -> list[str]:
    """The command lines under a heading: continued ones are joined, comments are left out."""
    text = "".join(blocks(section)).replace("\\\n", " ")
    lines = (re.sub(r"\s+# .*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def inline(command: str) -> str:
    """A command in running text; it must be there."""
    assert command in INLINE, f"the README does not show {command!r}"
    return command


def adapted(text: str, replacements: Mapping[str, str]) -> str:
    """The text, with other words where the README's cannot be taken on a test machine; they must be there."""
    for shown, used in replacements.items():
        assert shown in text, f"the README does not show {shown!r} in {text!r}"
        text = text.replace(shown, used)
    return text
