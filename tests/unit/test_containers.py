"""What a container engine is asked for, and how its answers are read. With an engine: `tests.containers`."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import struct
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from cdm.errors import InvalidManifest, SliceFailed, UsageError
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.limits import Limits
from cdm.model.manifest import Container, Manifest
from cdm.runtimes import Surroundings, Work
from cdm.runtimes.abandoned import is_noted
from cdm.runtimes.container import containers
from cdm.runtimes.container.configuration import Asked, configuration, unenforced
from cdm.runtimes.container.engine import Engine, EngineFailed, _refusal, engine_address
from cdm.runtimes.container.images import Images, _nameless, _pieces
from cdm.runtimes.container.run import ContainerRun, _frames, _milliseconds
from cdm.runtimes.container.runtime import ContainerRuntime
from cdm.runtimes.container.sockets import SocketBackend
from cdm.runtimes.keeper.protocol import Exited
from cdm.runtimes.process.background import Background
from cdm.runtimes.process.handle import RunHandle
from cdm.runtimes.process.notes import RunNote
from tests.harness.waiting import bounded

KEY = SliceKey(NodeId("n1"), Artifact("g", "web", "1.0.0"), 2)
PORTED = Manifest(port="auto", container=Container(port=80, cpu=0.5))
ASKED = Asked("cdm.local/token:abc", "cdm-token-1", "token", 31000, {"PASSWORD": "secret"})

STAMP = b"2026-11-29T04:23:20.123456789Z "
DAMAGED = b"Error grabbing logs: invalid character '\\x00' looking for beginning of value\n"


def frame(number: int, text: bytes) -> bytes:
    return struct.pack(">BxxxL", number, len(text)) + text


class FakeEngine:
    """Answers as it is told, by the last part of the path; to all else as to a container that is not there."""

    def __init__(self, address: str) -> None:
        self.engine = Engine(address)
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.may_end = asyncio.Event()
        """Whether containers end: until then nobody is told that they have."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        path = target.partition("?")[0]
        more = "chunked" in head.lower()
        while more:
            more = (size := int(await reader.readline(), 16)) > 0
            await reader.readexactly(size + 2)
        self.asked.append(f"{method} {path}")
        if path.endswith("/wait"):
            await self.may_end.wait()
        body = self.answers.get(path.rpartition("/")[2])
        status = b"404 Not Found" if body is None else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\n\r\n%s" % (status, body or b"{}"))
        await writer.drain()
        writer.close()


@asynccontextmanager
async def fake_engine(folder: Path) -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(f"unix://{folder}/engine")
    server = await asyncio.start_unix_server(fake.answer, folder / "engine")
    try:
        yield fake
    finally:
        await fake.engine.close()
        server.close()


@asynccontextmanager
async def kept_by(fake: FakeEngine, folder: Path) -> AsyncIterator[containers.Containers]:
    background = await Background.open()
    (folder / "containers").mkdir()
    try:
        yield containers.Containers(fake.engine, "token", folder / "containers", background)
    finally:
        await background.close()


def work(manifest: Manifest = PORTED, cores: float = 0.0) -> Work:
    return Work(KEY, Path("/cache/abc"), manifest, cores=cores)


def test_the_slices_port_leads_to_the_one_inside() -> None:
    body = configuration(work(), ASKED)
    assert body["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostPort": "31000"}]}
    assert body["ExposedPorts"] == {"80/tcp": {}}
    assert "CDM_PORT=80" in body["Env"]
    same = configuration(work(replace(PORTED, container=Container())), ASKED)
    assert same["HostConfig"]["PortBindings"] == {"31000/tcp": [{"HostPort": "31000"}]}
    assert "CDM_PORT=31000" in same["Env"]
    none = configuration(work(Manifest(container=Container())), ASKED._replace(port=None))
    assert none["HostConfig"]["PortBindings"] == {}
    assert "Cmd" not in none, "what the image runs"


def test_it_is_found_again_by_its_labels() -> None:
    labels = configuration(work(), ASKED)["Labels"]
    assert labels == {
        "cdm.runtime": "token",
        "cdm.key": "n1.g/web/1.0.0/2",
        "cdm.node": "n1",
        "cdm.slice": "n1/g:web:1.0.0#2",
    }


def test_variables_arguments_and_secrets() -> None:
    manifest = replace(PORTED, env={"LEVEL": "info"}, args=("--listen", ":${CDM_PORT}", "${LEVEL}"))
    body = configuration(work(manifest), ASKED)
    assert {"LEVEL=info", "PASSWORD=secret", "CDM_NODE=n1", "CDM_SLICE=n1/g:web:1.0.0#2"} <= set(body["Env"])
    assert "CDM_RUN=cdm-token-1" in body["Env"], "as everywhere"
    assert body["Cmd"] == ["--listen", ":80", "info"]
    with pytest.raises(SliceFailed, match="is a secret"):
        configuration(work(replace(manifest, args=("${PASSWORD}",))), ASKED)


def test_limits() -> None:
    limits = Limits(memory=1_000_000, processes=7, open_files=64, cpu_seconds=5, file_size=9)
    host = configuration(work(replace(PORTED, limits=limits), cores=1.5), ASKED)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (1_000_000, 1_000_000, 7)
    assert (host["NanoCpus"], host["CpuShares"]) == (500_000_000, 1536)
    assert {(each["Name"], each["Hard"]) for each in host["Ulimits"]} == {("nofile", 64), ("cpu", 5), ("fsize", 9)}
    unlimited = configuration(work(Manifest(container=Container())), ASKED)["HostConfig"]
    assert not {"Memory", "PidsLimit", "NanoCpus"} & {*unlimited}
    able = {"MemoryLimit": True, "PidsLimit": False, "CpuCfsQuota": True}
    assert (unenforced(work(replace(PORTED, limits=limits)), able) or "").startswith("limits.processes cannot")
    assert unenforced(work(), able) is None


def test_manifests_of_programs_are_stored_as_before() -> None:
    assert b"container" not in Manifest(entry="main.py").stored
    assert Manifest.restore(PORTED.stored) == PORTED
    assert Manifest.restore(replace(PORTED, container=Container()).stored).container == Container()


@pytest.mark.parametrize("field", ["entry", "directory"])
def test_what_goes_with_programs_is_refused(field: str) -> None:
    with pytest.raises(InvalidManifest, match=f"{field}: goes with programs"):
        Manifest.parse(f'container = {{}}\n{field} = "bin"'.encode())


def test_where_the_engine_is(tmp_path: Path) -> None:
    assert engine_address({"DOCKER_HOST": "unix:///here"}) == "unix:///here"
    with pytest.raises(UsageError, match="unix://PATH or tcp://HOST:PORT"):
        Engine("/here")


@pytest.mark.anyio
async def test_no_engine_is_told_in_one_line(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/none")
    with pytest.raises(EngineFailed, match=r"the container engine at .*/none does not answer") as caught:
        await engine.ask("GET", "/info")
    assert not caught.value.is_missing
    await engine.close()


@pytest.mark.anyio
async def test_being_cancelled_in_the_moment_of_an_answer_is_no_error(tmp_path: Path) -> None:
    """It was logged as one: the loop told an answer to somebody who did not wait for it any more."""
    errors: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    engine = Engine(f"unix://{tmp_path}/engine")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/engine")
        listener.listen()
        listener.setblocking(False)
        asking = asyncio.create_task(engine.ask("GET", "/info"))
        there, _ = await loop.sock_accept(listener)
        with there:
            await loop.sock_recv(there, 1)  # it was asked, and waits
            for _ in range(10):
                await asyncio.sleep(0)
            there.send(b"HTTP/1.1 200 OK\r\n")
            await asyncio.sleep(0)
            asking.cancel()  # the loop has seen that there is an answer, and tells of it next
            await asyncio.wait((asking,))
    await engine.close()
    loop.set_exception_handler(before)
    assert asking.cancelled()
    assert not errors


@pytest.mark.anyio
async def test_a_connection_that_is_closed_says_that_it_is_over(tmp_path: Path) -> None:
    """Whoever keeps it for later asks that, and takes another one then."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/engine")
        listener.listen()
        stream = await SocketBackend().connect_unix_socket(f"{tmp_path}/engine")
        there, _ = listener.accept()
        assert not stream.get_extra_info("is_readable")
        there.close()
        assert stream.get_extra_info("is_readable")
        await stream.aclose()
        assert stream.get_extra_info("is_readable")


@pytest.mark.anyio
async def test_many_who_connect_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/engine")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/engine")
        listener.listen(0)
        asking = [asyncio.create_task(engine.ask("GET", "/info")) for _ in range(5)]
        await asyncio.sleep(0.1)
        listener.setblocking(False)
        for _ in asking:
            there, _ = await asyncio.get_running_loop().sock_accept(listener)
            with there:
                await asyncio.get_running_loop().sock_recv(there, 2**16)
                there.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
    assert await asyncio.gather(*asking) == [[]] * 5
    await engine.close()


def test_what_vanishes_while_it_is_asked_for_is_missing() -> None:
    """Podman has a fault then, by the status of its answer; Docker has not."""
    gone = b'{"cause": "no such container", "message": "container abc does not exist in database: no such container"}'
    assert _refusal(gone, 500).is_missing
    assert _refusal(b'{"message": "No such container: abc"}', 404).is_missing
    assert not _refusal(b'{"message": "conmon failed"}', 500).is_missing


@pytest.mark.anyio
async def test_lines_of_both_streams_however_they_come() -> None:
    text = b"2026-11-29T04:23:20.123456789Z words"
    data = struct.pack(">BxxxL", 1, len(text)) + text + struct.pack(">BxxxL", 2, 3) + b"err"

    async def bit_by_bit() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 5):
            yield data[at : at + 5]

    assert [each async for each in _frames(bit_by_bit())] == [("out", text), ("err", b"err")]
    assert _milliseconds(text.split()[0]) == _milliseconds(b"2026-11-29T06:23:20.123+02:00")


def test_an_engine_is_told_no_names_of_an_archive(tmp_path: Path) -> None:
    """Not as Docker lists them, nor as OCI does; all else is sent as it is."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "layer").write_bytes(b"layer" * 1000)
    name = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "web:1"}
    index = {"schemaVersion": 2, "manifests": [{"digest": "sha256:abc", "annotations": {**name, "else": "stays"}}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "abc.json", "RepoTags": ["web:1"]}]))
    sent = b"".join(_pieces(tmp_path, _nameless(tmp_path)))
    with tarfile.open(fileobj=io.BytesIO(sent)) as archive:
        found = {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}  # type: ignore[union-attr]
    assert found.pop("blobs/layer") == b"layer" * 1000
    assert {path: json.loads(content) for path, content in found.items()} == {
        "index.json": {
            "schemaVersion": 2,
            "manifests": [{"digest": "sha256:abc", "annotations": {"else": "stays"}}],
        },
        "manifest.json": [{"Config": "abc.json", "RepoTags": []}],
    }


@pytest.mark.parametrize(
    ("listed", "reason"),
    [(None, "no container image"), ("[{}, {}]", "has 2 container images"), ("{", "cannot be read")],
)
def test_what_is_no_image_is_refused(tmp_path: Path, listed: str | None, reason: str) -> None:
    if listed is not None:
        (tmp_path / "manifest.json").write_text(listed)
    with pytest.raises(SliceFailed, match=reason) as caught:
        _nameless(tmp_path)
    assert caught.value.fatal


@pytest.mark.anyio
async def test_what_may_have_been_created_is_noted_until_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "KILL_PATIENCE", 0.1)
    engine, background = Engine(f"unix://{tmp_path}/none"), await Background.open()
    notes = tmp_path / "containers"
    notes.mkdir()
    kept = containers.Containers(engine, "token", notes, background)
    try:
        with pytest.raises(SliceFailed, match="cannot be removed"):
            await kept.launch(ContainerRun(engine, "cdm-token-1", KEY, Manifest(), tmp_path / "output"), {})
        assert is_noted(notes)
    finally:
        await background.close()
        await engine.close()


@pytest.mark.anyio
async def test_output_that_the_engine_cannot_read_ends_nothing(tmp_path: Path) -> None:
    """Docker says so in the stream itself, without a time: where a disk was full, or power was cut."""
    lines = frame(1, STAMP + b"one\n") + frame(3, DAMAGED) + frame(2, STAMP + b"two\n")
    async with fake_engine(tmp_path) as fake, kept_by(fake, tmp_path) as kept:
        fake.answers = {"logs": lines, "wait": b'{"StatusCode": 3}', "json": b'{"State": {}}'}
        run = ContainerRun(fake.engine, "cdm-token-1", KEY, Manifest(), tmp_path / "output")
        kept.follow(run)
        with bounded():
            while fake.asked.count("GET /containers/cdm-token-1/logs") < 2:  # noqa: ASYNC110  # it was read to its end
                await asyncio.sleep(0.02)
            assert not run.over.is_set()
            fake.may_end.set()
            await run.over.wait()
        assert run.ending == "exit status 3"
        assert run.last == ("one", "two")


@pytest.mark.anyio
async def test_an_error_of_ours_with_one_container_ends_no_other(tmp_path: Path) -> None:
    """Here: an answer that nobody expects. It is no longer known whether that one runs, so it is stopped."""
    async with fake_engine(tmp_path) as fake, kept_by(fake, tmp_path) as kept:
        fake.answers = {"logs": b"", "wait": b"[]", "json": b'{"State": {}}'}
        fake.may_end.set()
        run = ContainerRun(fake.engine, "cdm-token-1", KEY, Manifest(), tmp_path / "output")
        kept.follow(run)
        with bounded():
            await run.over.wait()
        assert isinstance(run.ended, Exited)
        assert not run.clean
        assert "cannot be followed" in run.ending
        fake.answers["wait"] = b'{"StatusCode": 3}'
        other = ContainerRun(fake.engine, "cdm-token-2", KEY, Manifest(), tmp_path / "other")
        kept.follow(other)
        with bounded():
            await other.over.wait()
        assert other.ending == "exit status 3"


@pytest.mark.anyio
async def test_a_full_disk_costs_a_container_its_note_and_no_more(tmp_path: Path) -> None:
    """The next process of the node starts it anew; what was noted before is still there, and no draft."""
    async with fake_engine(tmp_path) as fake, kept_by(fake, tmp_path) as kept:
        run, note = RunHandle("cdm-token-1", KEY), RunNote.first(work(), 1.0, 31000)
        kept.note(run, note)
        (tmp_path / "containers" / "cdm-token-1.new").symlink_to("/dev/full")
        kept.note(run, replace(note, ready=2.0))
        (left,) = (tmp_path / "containers").iterdir()
        assert RunNote.read(left.read_bytes()) == note


@pytest.mark.anyio
async def test_what_cannot_be_noted_is_not_created(tmp_path: Path) -> None:
    async with fake_engine(tmp_path) as fake, kept_by(fake, tmp_path) as kept:
        run = ContainerRun(fake.engine, "none/cdm-token-1", KEY, Manifest(), tmp_path / "output")
        with pytest.raises(SliceFailed, match=os.strerror(errno.ENOENT)) as caught:
            await kept.launch(run, {})
        assert not caught.value.fatal
        assert not fake.asked


@pytest.mark.anyio
async def test_whatever_goes_wrong_while_it_starts_is_the_slices_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it knows no other: anything else ended the node."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine")

    async def no_space() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with fake_engine(tmp_path) as fake:
        fake.answers = {"info": b"{}", "json": b"[]"}
        runtime = ContainerRuntime(Surroundings(KEY.node, tmp_path / "runtime", lambda *_: None))
        await runtime.start()
        try:
            await runtime.load(replace(work(), may_start=no_space))
            with pytest.raises(SliceFailed, match="No space left"):
                await runtime.activate(KEY)
            assert runtime.slices == {KEY: False}
        finally:
            await runtime.close()


@pytest.mark.parametrize(
    ("problem", "fatal"),
    [
        ("write /var/lib/docker/tmp/docker-import-1/layer.tar: no space left on device", False),
        ("Error processing tar file(exit status 1): write /usr/lib/libc.so: no space left on device", False),
        ("Error processing tar file(exit status 1): read /dev/stdin: input/output error", False),
        ("context canceled", False),
        ("Error processing tar file(exit status 1): unexpected EOF", True),
        ("Error processing tar file(exit status 1): archive/tar: invalid tar header", True),
        ('invalid diffID for layer 0: expected "sha256:0", got "sha256:1"', True),
        ("open /var/lib/docker/tmp/docker-import-1/abc.json: no such file or directory", True),
        ("unexpected end of JSON input", True),
        ("invalid image JSON, no RootFS key", True),
        ("cannot load windows image on linux", True),
    ],
)
@pytest.mark.anyio
async def test_only_a_broken_archive_is_of_no_use_later(tmp_path: Path, problem: str, fatal: bool) -> None:
    """Docker reports all that goes wrong in the same way, with HTTP's status of success."""
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "manifest.json").write_text('[{"Config": "abc.json"}]')
    async with fake_engine(tmp_path) as fake:
        told = json.dumps({"errorDetail": {"message": problem}, "error": problem}).encode() + b"\r\n"
        fake.answers = {"load": told}
        with pytest.raises(SliceFailed, match="does not take the image") as caught:
            await Images(fake.engine, "node")._load(tmp_path / "image")
    assert caught.value.fatal == fatal
