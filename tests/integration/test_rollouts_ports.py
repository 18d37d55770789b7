"""A program with a fixed port on a real cluster of one node: handed over, and never started beside another."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdm.model.artifact import Artifact
from cdm.model.manifest import Http, Manifest, Readiness
from tests.harness.probing import WEB_SLICE
from tests.harness.releases import site
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.waiting import eventually
from tests.integration.test_rollouts import condition

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def test_a_fixed_port_is_handed_over_and_blue_green_says_what_it_lacks(
    server: NatsServer, tmp_path: Path
) -> None:
    async with site(server, tmp_path, agents=("a1",)) as place:
        place.wanted = 1
        manifest = Manifest(port=free_port(), readiness=Readiness(check=Http(), interval=0.1, timeout=20), stop_grace=5)
        for version in ("1", "2"):
            source = place.folder / "web_slice.py"
            source.write_text(f"{WEB_SLICE.read_text()}# {version}\n")
            await place.ground.push_file(Artifact("g", "web", version), source, manifest)
        await place.put("1")
        await place.serves("1")
        await place.put("2", rollout={"from": "1"})
        await place.serves("2", 60)
        lacks = f"port {manifest.port} is held by old instances on a1, and blue-green needs a node without one"
        began = await place.put("1", rollout={"from": "2", "kind": "blue-green"})

        async def told() -> bool:
            status = await place.status("1")
            return status.get("observed_revision") == began and lacks in str(status.get("reason"))

        await eventually(told, 20, "what blue-green lacks is told", pause=0.1)
        await place.put("1", rollout={"from": "2", "kind": "blue-green", "abort": True})
        await place.reaches("reverted")
        await condition(place, "2", "Ready")
        await place.serves("2")
