"""An earlier version of cdm, built from this repository's history: what runs beside this one while it is upgraded."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.paths import ROOT


def library(commit: str, cache: Path) -> Path:
    """A folder from which ``cdm`` of a commit can be imported; skips where there is no such commit.

    Args:
        commit: which one.
        cache: a folder in which others may look for the same at the same time.
    """
    found = cache / f"cdm-{commit}"
    if found.is_dir():
        return found
    made = cache / f"cdm-{commit}-{secrets.token_hex(4)}"
    for name in ("source", "wheel", "library"):
        (made / name).mkdir(parents=True)
    archive = made / "source.tar"
    try:
        _run("git", "-C", str(ROOT), "archive", "-o", str(archive), commit)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"commit {commit} is not there: {getattr(error, 'stderr', None) or error}")
    _run("tar", "-x", "-f", str(archive), "-C", str(made / "source"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(made / "wheel"), str(made / "source"))
    (wheel,) = (made / "wheel").iterdir()
    _run(sys.executable, "-m", "zipfile", "-e", str(wheel), str(made / "library"))
    try:
        (made / "library").rename(found)
    except OSError:
        assert found.is_dir(), "somebody else made it meanwhile"
    return found


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
