"""The documents, taken apart: what tests run is their own text; what a test looks for and does not find is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.harness.paths import ROOT

_BLOCK = r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
_HEADING_OR_BLOCK = re.compile(rf"^#+ (?P<heading>[^\n]*)$|{_BLOCK}", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"[a-z][a-z0-9-]* ")


class Block(NamedTuple):
    """A fenced block."""

    section: str
    """The heading above it."""
    language: str
    text: str


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _paths() -> Iterator[str]:
    yield from ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    yield from sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


DOCUMENTS: Mapping[str, str] = {path: _text(path) for path in _paths()}
"""The text of each document, by its path in the repository."""


def _blocks(text: str) -> Iterator[Block]:
    section = ""
    for part in _HEADING_OR_BLOCK.finditer(text):
        if part["heading"]:
            section = part["heading"]
        else:
            yield Block(section, part["language"], part["text"])


def _inline(text: str) -> Iterator[str]:
    prose = re.sub(_BLOCK, "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        # An ellipsis stands for many commands.
        if _COMMAND.match(code) and "…" not in code:
            yield " ".join(code.split())


BLOCKS = [block for text in DOCUMENTS.values() for block in _blocks(text) if block.language != "text"]
"""All blocks but drawings."""
INLINE = {code for text in DOCUMENTS.values() for code in _inline(text)}
"""The commands in running text."""


def section(document: str, heading: str) -> str:
    """The text below a heading of a document, blocks left out, up to the next heading of any level."""
    text = re.sub(_BLOCK, "", DOCUMENTS[document], flags=re.DOTALL | re.MULTILINE)
    _, *parts = re.split(r"^#+ ([^\n]*)$", text, flags=re.MULTILINE)
    found = [below for name, below in zip(parts[::2], parts[1::2], strict=True) if name == heading]
    assert len(found) == 1, f"{document} has {len(found)} headings {heading!r}"
    return found[0]


def blocks(heading: str, language: str = "") -> list[str]:
    """The text of all blocks under a heading that are in a language; at least one."""
    found = [block.text for block in BLOCKS if (block.section, block.language) == (heading, language)]
    assert found, f"the documents have no such block under {heading!r}"
    return found


def commands(heading: str) -> list[str]:
    """The command lines under a heading: continued ones are joined, comments are left out."""
    text = "".join(blocks(heading)).replace("\\\n", " ")
    lines = (re.sub(r"\s+# .*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def inline(command: str) -> str:
    """A command in running text; it must be there."""
    assert command in INLINE, f"the documents do not show {command!r}"
    return command


def adapted(text: str, replacements: Mapping[str, str]) -> str:
    """The text, with other words where the documents' cannot be used on a test machine; they must be there."""
    for shown, used in replacements.items():
        assert shown in text, f"the documents do not show {shown!r} in {text!r}"
        text = text.replace(shown, used)
    return text


def example(name: str) -> Path:
    """A file in ``examples/``."""
    path = ROOT / "examples" / name
    assert path.is_file(), path
    return path
