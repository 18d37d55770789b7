"""The runtimes of cdm pass what it asks of every runtime."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdm.errors import SliceFailed
from cdm.model.manifest import Container
from cdm.runtimes import Surroundings
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.testing import Deed, RuntimeConformance, Trial

pytestmark = pytest.mark.quick


class TestProcess(RuntimeConformance):
    patience = 120.0

    def make_runtime(self, surroundings: Surroundings) -> ProcessRuntime:
        return ProcessRuntime(surroundings)

    async def test_the_image_of_a_container_is_refused(self, trial: Trial) -> None:
        work = trial.work(Deed.SERVE)
        image = replace(work.manifest, entry="", container=Container())
        with pytest.raises(SliceFailed, match="--runtime container") as caught:
            await trial.runtime.load(replace(work, manifest=image))
        assert caught.value.fatal
        assert trial.runtime.slices == {}
