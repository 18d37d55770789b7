"""The runtime whose slices are containers, with Podman instead of Docker: what passes there must pass here.

Only with ``-m podman``: it takes a minute or two.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from msgspec.structs import replace

from cdm.errors import SliceFailed
from cdm.model.manifest import Restart, RestartPolicy
from cdm.runtimes.container.engine import Engine
from cdm.runtimes.container.images import Images
from cdm.testing import Deed
from cdm.testing.deeds import FIRST_WORDS, LAST_WORDS, STATUS
from cdm.testing.trial import SERVING, Trial, ask
from tests.containers import test_container_runtime as common
from tests.harness.engine import alone, unpacked
from tests.harness.podman import NATS, PYTHON, Service, service

pytestmark = [*common.pytestmark, pytest.mark.podman]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with alone(), service(tmp_path_factory.mktemp("podman")) as made:
        yield made


@pytest.fixture(scope="module")
def client(podman: Service) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", podman.address)
        made = docker.from_env()
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def image(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's folder, with an image that has Python."""
    folder = tmp_path_factory.mktemp("artifacts") / f"python-{secrets.token_hex(4)}"
    folder.mkdir()
    unpacked(client.images.get(PYTHON), folder)
    return folder


@pytest.fixture(scope="module")
def nats(client: Any) -> str:
    """The name of an image with a NATS server."""
    return NATS


class TestPodman(common.TestContainers):
    async def test_slices_go_on_while_its_service_is_away(self, trial: Trial, podman: Service) -> None:
        """Which ends when nobody asks, and is updated, without an end of any container."""
        key, port = await trial.up(Deed.OBEY, replace(SERVING, restart=Restart(policy=RestartPolicy.NEVER)))
        await ask(port, "say before")
        podman.kill()
        await ask(port, "say between")
        podman.start()
        await ask(port, "say after")
        await ask(port, "end")
        reason, _ = (await trial.end_of(key)).more
        assert f"exit status {STATUS}" in reason
        words = [line.text async for batch in trial.runtime.read(key) for line in batch]
        assert words[:-1] == [FIRST_WORDS, "before", "between", "after", LAST_WORDS]


async def test_names_of_archives_are_not_names_here(client: Any, image: Path, tmp_path: Path) -> None:
    """Also where Podman would have another name for them; and what is no image is no use to try again."""
    cached = tmp_path / "artifacts" / f"named-{secrets.token_hex(4)}"
    shutil.copytree(image, cached)
    lists = cached / "manifest.json"
    (listed,) = json.loads(lists.read_text())
    lists.write_text(json.dumps([{**listed, "RepoTags": ["web:1", "docker.io/library/web:1"]}]))
    client.images.get(NATS).tag("docker.io/library/web", "1")

    def names() -> dict[str, str]:
        return {tag: each.id for each in client.images.list() for tag in each.tags}

    before = names()
    engine = Engine.of_machine()
    try:
        name = await Images(engine, "node").has(cached)
        assert names() == {**before, name: client.images.get(PYTHON).id}
        client.images.remove(name)
        lists.write_text(json.dumps([{**listed, "Config": "nothing.json"}]))
        with pytest.raises(SliceFailed, match="does not take the image") as caught:
            await Images(engine, "node").has(cached)
        assert caught.value.fatal
    finally:
        client.images.remove("docker.io/library/web:1")
        await engine.close()


test_an_image_is_pushed_and_run_and_goes_on = common.test_an_image_is_pushed_and_run_and_goes_on_when_the_node_is_killed
