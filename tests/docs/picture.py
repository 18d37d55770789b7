"""Draws docs/demo.svg, a picture of what ``cdm demo`` prints: ``python -m tests.docs.picture``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.harness.paths import ROOT
from tests.harness.processes import environment

PICTURE = ROOT / "docs" / "demo.svg"
WIDTH = 96


def demo() -> str:
    """What the demo prints where nobody watches it live."""
    command = [sys.executable, "-m", "cdm", "demo"]
    told = {**environment(), "COLUMNS": str(WIDTH)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=told).stdout


def draw(output: str) -> str:
    """The output as a picture, with colours, and without fonts from elsewhere."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        console.print("[bold]$ cdm demo")
        for line in map(str.rstrip, output.splitlines()):
            mark, _, rest = line.partition(" ")
            text = Text.assemble((mark, "bold green"), " ", (rest, "bold")) if mark == "✓" else Text(line)
            console.print(text)
    svg = console.export_svg(title="cdm demo", theme=MONOKAI, unique_id="demo")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(draw(demo()), encoding="utf-8")
