"""The runtime `systemd` passes the tests that every runtime passes."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from cdm.model.keys import SliceKey
from cdm.runtimes import Runtime, Surroundings, Work
from cdm.runtimes.systemd import made
from cdm.testing import Deed, Manifest, RuntimeConformance, script


class TestSystemd(RuntimeConformance):
    """Slices as units."""

    patience = 120.0

    def make_runtime(self, surroundings: Surroundings) -> Runtime:
        """What the entry point does."""
        return made(surroundings)

    def work(self, folder: Path, deed: Deed, key: SliceKey, manifest: Manifest) -> Work:
        """A script that the machine's own Python runs: the one that runs the tests may be where no slice may go."""
        work = script(folder, deed, key, manifest)
        program = work.folder / "run"
        program.write_text("#!/bin/sh\nexec /usr/bin/python3 main.py $1\n")
        program.chmod(0o755)
        return work if deed is Deed.FAIL else replace(work, manifest=replace(work.manifest, entry="run"))
