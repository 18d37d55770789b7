"""An earlier version of cdm, built from this repository's history: what runs beside this one while it is upgraded."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.harness.paths import ROOT


def library(commit: str, cache: Path) -> Path:
    """A folder from which ``cdm`` of a commit can be imported; skips where there is no such commit.

    Args:
        commit: which one.
        cache: the folder in which it is kept; others may look for the same there at the same time.
    """
    found = cache / f"cdm-{commit}"
    with (cache / f"{found.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_dir():
            _build(commit, found)
    return found


def _build(commit: str, found: Path) -> None:
    with tempfile.TemporaryDirectory(dir=found.parent) as folder:
        archive, source, wheels, unpacked = (Path(folder, name) for name in ("archive", "source", "wheels", "unpacked"))
        try:
            _run("git", "-C", str(ROOT), "archive", "--format=zip", "--output", str(archive), commit)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip(f"commit {commit} is not there: this is no clone of the repository, or not all of its history")
        _unzip(archive, source)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        try:
            _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source))
        except subprocess.CalledProcessError:
            source.rename(found)  # no package index is there to take setuptools from: the sources run as well
            return
        (wheel,) = wheels.iterdir()
        _unzip(wheel, unpacked)
        unpacked.rename(found)


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
