"""A dead node's registration and keys are taken back, and nothing that another process of that id wrote meanwhile."""

from __future__ import annotations

import pytest

from cdm.model.artifact import NodeId
from cdm.model.keys import NODES, SLICES
from cdm.node import farewell
from cdm.store.bucket import Bucket
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.store import connected
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

OLD, NEW = "n1.org.example/one/1.0.0", "n1.org.example/two/1.0.0"


async def test_keys_that_another_process_wrote_meanwhile_are_its_own(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It registers elsewhere between the two steps: once its key is gone, others would take its slice for stopped."""
    async with raw(server) as user, connected(server) as connection:
        for layout in (NODES, SLICES):
            await Bucket(connection, layout).ensure(create=True)
        await user.put("nodes", "n1", {"incarnation": "dead"})
        for key in (OLD, NEW):
            await user.put("slices", key, {"state": "ACTIVE"})
        deregister = farewell._deregister

        async def overtaken(*args: object) -> bool:
            done = await deregister(*args)  # type: ignore[arg-type]
            await user.put("nodes", "n1", {"incarnation": "alive"})
            await user.put("slices", NEW, {"state": "ACTIVATING"})
            return done

        monkeypatch.setattr(farewell, "_deregister", overtaken)
        taken = await farewell.take_back(connection, NodeId("n1"), ["dead"])
        assert taken == farewell.TakenBack(registration=True, keys=1)
        assert await user.slices() == {NEW: "ACTIVATING"}
        assert [each.value["incarnation"] for each in (await user.registrations()).values()] == ["alive"]
