"""The runtime whose slices are containers, with a real engine: what every runtime must do, and what it alone does."""

from __future__ import annotations

import io
import json
import secrets
import shlex
import shutil
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import docker
import docker.errors
import pytest
from msgspec.structs import replace

from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Container, Manifest, Readiness, Restart, Tcp
from cdm.model.secret import SecretForm, SecretRef
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.abandoned import Abandoned
from cdm.runtimes.container import end_containers
from cdm.runtimes.container.engine import Engine
from cdm.runtimes.container.images import Images
from cdm.runtimes.container.runtime import ContainerRuntime
from cdm.testing import Deed, RuntimeConformance, Trial
from cdm.testing.deeds import SCRIPT
from cdm.testing.trial import SERVING
from tests.docs.documents import adapted, blocks
from tests.harness.engine import alone, images, unpacked
from tests.harness.processes import command_line, node_processes
from tests.harness.servers import FORGIVEN, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import raw

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.usefixtures("sockets_forgiven"),
    FORGIVEN,
]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with alone():
        images()
        made = docker.from_env()
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def image(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An artifact's folder, with an image that has Python: that of cdm, which then only runs what it is told to."""
    folder = tmp_path_factory.mktemp("artifacts") / f"python-{secrets.token_hex(4)}"
    folder.mkdir()
    plain = f"FROM {images().cdm}\nENTRYPOINT []\nHEALTHCHECK NONE\n"
    made, _ = client.images.build(fileobj=io.BytesIO(plain.encode()), tag=f"cdm-test/{folder.name}", rm=True)
    unpacked(made, folder)
    yield folder
    shutil.rmtree(folder)
    ours = [name for each in client.images.list() for name in each.tags if name.endswith(f":{folder.name}")]
    for name in (*ours, f"cdm-test/{folder.name}"):
        client.images.remove(name)


@pytest.fixture(scope="module")
def nats(client: Any) -> str:
    """The name of an image with a NATS server."""
    return images().nats


def labelled(client: Any, label: str) -> list[Any]:
    """The containers that have it."""
    while True:
        try:
            return client.containers.list(all=True, ignore_removed=True, filters={"label": label})  # type: ignore[no-any-return]
        except docker.errors.APIError as error:
            if "no such container" not in str(error):  # as Podman, not Docker, tells of one that is just removed
                raise


class TestContainers(RuntimeConformance):
    patience = 120.0
    cuts = 3

    @pytest.fixture(autouse=True)
    def ground(self, client: Any, image: Path) -> None:
        self.client, self.image = client, image

    def make_runtime(self, surroundings: Surroundings) -> ContainerRuntime:
        return ContainerRuntime(surroundings)

    def work(self, folder: Path, deed: Deed, key: SliceKey, manifest: Manifest) -> Work:
        program = ("/nothing",) if deed is Deed.FAIL else ("python3", "-c", SCRIPT, deed)
        env = {**manifest.env, "CDM_HOST": "0.0.0.0"}
        return Work(key, self.image, replace(manifest, args=program, env=env, container=Container()))

    async def running(self, node: NodeId) -> Collection[str]:
        def look() -> list[str]:
            return [each.id for each in labelled(self.client, f"cdm.node={node}")]

        return await anyio.to_thread.run_sync(look)

    async def test_it_ends_where_the_node_is_not_heard_of(self, trial: Trial) -> None:
        """Nobody could see to that: the agent keeps what asks for it off these nodes."""
        assert not trial.runtime.lapses

    async def test_what_is_left_of_a_node_is_ended(self, trial: Trial, folder: Path) -> None:
        assert await end_containers(trial.node, folder / "other") == Abandoned()
        _, port = await self._left_behind(trial, Deed.SERVE)
        assert await end_containers(trial.node, folder / "runtime") == Abandoned(1)
        await self._stopped(trial, port)
        assert await end_containers(trial.node, folder / "runtime") == Abandoned()
        token = (folder / "runtime" / "token").read_text()
        assert not self.client.images.list(f"cdm.local/{token}"), "an image is left"

    async def test_a_node_that_leaves_leaves_no_image(self, trial: Trial, folder: Path) -> None:
        """One that only ends does, for the next process of the node; and what other nodes have is theirs."""
        work, _ = await self._left_behind(trial, Deed.SERVE)
        token = (folder / "runtime" / "token").read_text()
        assert self.client.images.list(f"cdm.local/{token}")
        await self._next_process(trial, work)
        engine = Engine.of_machine()
        try:
            other = Images(engine, f"{token}-other")
            name = await other.has(work.folder)
            trial.runtime.end_with_node()
            await trial.runtime.close()
            assert not self.client.images.list(f"cdm.local/{token}")
            assert self.client.images.get(name)
            await other.leave()
            assert not self.client.images.list(f"cdm.local/{token}-other")
        finally:
            await engine.close()

    async def test_what_somebody_removes_is_started_again(self, trial: Trial) -> None:
        key, port = await trial.up(Deed.SERVE, replace(SERVING, restart=Restart(backoff=0.05)))
        (name,) = await self.running(trial.node)
        await anyio.to_thread.run_sync(lambda: self.client.containers.get(name).remove(force=True))
        await trial.eventually(lambda: trial.told[1:], "it is ready again")
        assert [each.what for each in trial.told] == ["restarting", "restarted"]
        assert trial.told[1].more == (port,)
        assert trial.runtime.slices == {key: True}

    async def test_what_it_cannot_run_is_refused(self, trial: Trial) -> None:
        """Whatever it is: the reason says what to do."""
        work = trial.work(Deed.SERVE)
        secret = {"KEY": SecretRef("key", SecretForm.FILE)}
        checked = replace(work.manifest, readiness=Readiness(check=Tcp(port=80)))
        for wrong, reason in (
            (replace(work, manifest=replace(work.manifest, container=None)), "--runtime process"),
            (replace(work, secrets=secret), "variables alone"),
            (replace(work, manifest=checked), "own port"),
        ):
            with pytest.raises(SliceFailed, match=reason) as caught:
                await trial.runtime.load(wrong)
            assert caught.value.fatal
        assert trial.runtime.slices == {}


HEADING = "Slices as containers"
ADAPTED = {
    '"--listen", "0.0.0.0:${CDM_PORT}"': '"--port", "${CDM_PORT}", "--name", "${CDM_SLICE}"',
    'kind = "http", path = "/ready"': 'kind = "tcp"',
}
"""Of the documents' manifest: what there is to be run here is a NATS server."""


def greeting(port: int) -> str:
    """The name that a NATS server tells who connects."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return str(json.loads(connection.recv(4096).removeprefix(b"INFO ").splitlines()[0])["server_name"])
    except (OSError, IndexError):
        return ""


async def test_an_image_is_pushed_and_run_and_goes_on_when_the_node_is_killed(
    client: Any, nats: str, server: NatsServer, tmp_path: Path
) -> None:
    """Without a registry; and in the end nothing is left: no container, and no image."""
    (shown,) = blocks(HEADING, "toml")
    (tmp_path / "web.toml").write_text(adapted(shown, ADAPTED))
    shown_push, node = (shlex.split(line)[1:] for line in "".join(blocks(HEADING)).splitlines())
    words = {"web:1.0.0": nats, "web.toml": str(tmp_path / "web.toml")}
    push = [words.get(each, each) for each in shown_push]
    at = ("--server", server.url)
    assert (await command_line("init", *at)).returncode == 0
    pushed = await command_line(*push, *at)
    assert pushed.returncode == 0, pushed.stderr
    again = await command_line(*push, *at)
    assert b"unchanged" in again.stdout, again.stderr
    for wrong in (("--image", "nobody/has:this"), ("web.toml", "--image", "web"), ()):
        refused = await command_line("artifact", "push", "g:other:1", *wrong, *at)
        assert refused.returncode == 2, refused.stderr
    options = (*node[1:], "--folder", str(tmp_path / "n1"))

    def containers() -> list[Any]:
        token = (tmp_path / "n1" / "runtime" / "token").read_text()
        return labelled(client, f"cdm.runtime={token}")

    try:
        ports = await _killed_and_gone_on_with(server, tmp_path, options, containers)
    finally:
        for each in containers():
            each.remove(force=True)
    assert {greeting(port) for port in ports.values()} == {""}
    (content,) = [path for path in (tmp_path / "n1" / "artifacts").iterdir() if path.is_dir()]
    engine = Engine.of_machine()
    try:
        token = (tmp_path / "n1" / "runtime" / "token").read_text()
        name = f"cdm.local/{token}:{content.name}"
        assert client.images.get(name), "the next process of the node is to find it"
        client.images.get(name).tag("cdm.local/artifact", content.name)  # as earlier versions named it
        left = await command_line("node", "leave", "--id", "n1", "--folder", str(tmp_path / "n1"), *at)
        assert left.returncode == 0, left.stderr
        assert not client.images.list(name)
        assert not client.images.list(f"cdm.local/artifact:{content.name}")
        cache, other = Images(engine, token), Images(engine, f"{token}-other")
        assert await cache.has(content) == name
        await cache.prune([])
        assert client.images.get(name), "it goes with the artifact, and not before"
        others = await other.has(content)
        content.rename(tmp_path / content.name)
        await cache.prune([])
        assert not client.images.list(name)
        assert client.images.get(others), "it is another node's"
        assert client.images.get(nats), "what it is called otherwise stays"
        (tmp_path / content.name / "manifest.json").unlink()
        assert await cache.has(tmp_path / content.name), "what another node has is not sent again"
        await other.leave()
        assert client.images.get(name), "it is still there for this one"
        await cache.leave()
        with pytest.raises(SliceFailed, match="no container image") as caught:
            await cache.has(tmp_path / content.name)
        assert caught.value.fatal
    finally:
        await engine.close()


async def _killed_and_gone_on_with(
    server: NatsServer, folder: Path, options: Sequence[str], containers: Callable[[], list[Any]]
) -> dict[str, int]:
    """Three slices outlive their node's process, but one whose container is killed meanwhile; returns their ports."""
    at = ("--server", server.url)
    with node_processes(server, folder, node_ttl=60) as nodes:
        async with raw(server) as user:

            async def active(count: int) -> dict[str, int]:
                nodes.unharmed()
                found = {key: json.loads(each.data) for key, each in (await user.contents("slices")).items()}
                ports = {key: each["port"] for key, each in found.items() if each.get("state") == "ACTIVE"}
                return ports if len(ports) == count else {}

            first = nodes.start("n1", *options)
            await user.put("blueprints", "org.example/web/1.0.0", 3)
            ports = await eventually(lambda: active(3), 60, "three are active")
            names = {f"n1/org.example:web:1.0.0{mark}" for mark in ("", "#1", "#2")}
            assert {greeting(port) for port in ports.values()} == names
            facts = containers()[0].attrs["HostConfig"]
            assert (facts["Memory"], facts["PidsLimit"], facts["NanoCpus"]) == (268_435_456, 100, 500_000_000)
            before = {each.id for each in containers()}
            first.kill()
            assert {each.id for each in containers()} == before
            containers()[0].kill()
            second = nodes.start("n1", *options)
            await eventually(lambda: second.log.count("goes on since") == 3, 60, "it goes on with them")
            await eventually(lambda: {greeting(port) for port in ports.values()} == names, 30, "all serve")
            assert await eventually(lambda: active(3), 30, "all are active") == ports
            assert len({each.id for each in containers()} & before) == 2

            async def all_told() -> bool:
                told = await command_line("logs", "org.example:web:1.0.0", *at)
                return told.returncode == 0 and told.stdout.count(b"Server is ready") == 4

            await eventually(all_told, what="the node answers in time, with all four starts")
            await user.delete("blueprints", "org.example/web/1.0.0")
            await eventually(lambda: not containers(), 30, "no container is left")
            second.send(signal.SIGTERM)
            assert await second.ends(30) == 0
    return ports


@pytest.mark.parametrize("alive", [True, False], ids=["its process runs", "its process is dead"])
async def test_a_node_that_leaves_takes_its_containers_along(
    client: Any, nats: str, server: NatsServer, tmp_path: Path, alive: bool
) -> None:
    """For good, although its containers outlive its process otherwise."""
    at, folder = ("--server", server.url), tmp_path / "n1"
    assert (await command_line("init", *at)).returncode == 0
    (tmp_path / "web.toml").write_text('container = {}\nargs = ["--name", "${CDM_SLICE}"]\n')
    manifest = ("--manifest", str(tmp_path / "web.toml"))
    pushed = await command_line("artifact", "push", "g:web:1", "--image", nats, *manifest, *at)
    assert pushed.returncode == 0, pushed.stderr

    def containers() -> list[Any]:
        return labelled(client, f"cdm.runtime={(folder / 'runtime' / 'token').read_text()}")

    with node_processes(server, tmp_path, node_ttl=60) as nodes:
        try:
            async with raw(server) as user:
                options = ("--runtime", "container", "--on-stop", "keep", "--folder", str(folder))
                process = nodes.start("n1", *options)
                await user.put("blueprints", "g/web/1", 2)

                async def active() -> bool:
                    nodes.unharmed()
                    return list((await user.slices()).values()) == ["ACTIVE"] * 2

                await eventually(active, 60, "both are active")
                assert len(containers()) == 2
                if not alive:
                    process.kill()
                    assert len(containers()) == 2
                leave = ("node", "leave", "--id", "n1", "--folder", str(folder), *at)
                left = await command_line(*leave, within=120)
                assert left.returncode == 0, left.stderr
                assert not containers()
                if alive:
                    assert left.stdout == b"n1 has left\n"
                    assert await process.ends(30) == 0
                    assert not await user.slices()
                    assert not await user.registrations()
                else:
                    assert b"n1: no process of it runs here; 2 of its slices did, and are stopped" in left.stdout
                again = await command_line(*leave)
                assert again.returncode == 1
                assert b"no process of node n1 runs here, and no slice of it" in again.stderr
        finally:
            for each in containers():
                each.remove(force=True)
