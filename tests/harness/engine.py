"""The container engine: whether there is one, which images it runs, and one user of it at a time.

Settings, each an environment variable:

| variable | default | |
|---|---|---|
| `NATS_IMAGE` | `nats:2.15.1` | the NATS server |
| `CDM_IMAGE` | built here | cdm; where it is not set, the Dockerfile is built |
| `PYTHON_IMAGE` | the Dockerfile's | what cdm's image is built from |
| `CDM_REQUIRE_CONTAINERS` | | `1`: without an engine the tests fail and are not skipped |
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import docker
import docker.errors
import pytest

from tests.harness.paths import ROOT


class Images(NamedTuple):
    """What is run."""

    nats: str
    cdm: str


@functools.cache
def images() -> Images:
    """The images' names; skips, or fails, the test where there is no engine to run them."""
    try:
        client = docker.from_env()
        try:
            client.ping()
            cdm = os.environ.get("CDM_IMAGE") or _build(client)
        finally:
            client.close()
    except docker.errors.DockerException as error:
        without(f"no container engine, or no image: {error}")
    return Images(os.environ.get("NATS_IMAGE") or "nats:2.15.1", cdm)


def unpacked(image: Any, folder: Path) -> None:
    """Have an artifact's folder hold an image of the engine."""
    archive = folder.parent / "saved.tar"
    with archive.open("wb") as file:
        file.writelines(image.save())
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True)
    archive.unlink()


def without(reason: str) -> NoReturn:
    """Skip the test for what is not there, or fail it where it must be there."""
    if os.environ.get("CDM_REQUIRE_CONTAINERS") == "1":
        raise AssertionError(reason)
    pytest.skip(reason)


def _build(client: Any) -> str:
    base = os.environ.get("PYTHON_IMAGE")
    arguments = {"PYTHON_IMAGE": base} if base else {}
    client.images.build(path=str(ROOT), tag="cdm:test", rm=True, buildargs=arguments)
    return "cdm:test"


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process plays with containers: the tests run several at a time, on few cores."""
    with (Path(tempfile.gettempdir()) / f"cdm-test-containers-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
