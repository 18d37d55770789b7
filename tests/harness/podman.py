"""Podman, with a folder and a network of its own, so that nothing of the machine's is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PYTHON = "localhost/cdm-test/python:1"
"""An image with this machine's Python, and no more of it than its programs need."""
NATS = "localhost/cdm-test/nats:1"
"""An image with the NATS server that the tests use."""
NETWORK, SUBNET, BRIDGE = "cdm-test", "10.213.0.0/16", "cdm-podman0"
LEFT_OUT = {"dist-packages", "site-packages", "__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "tkinter"}


class Service:
    """Podman's API. Containers go on while it is away, as they do where systemd starts it when it is asked."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._path = folder / "podman.sock"
        self._environment = environment
        self._log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"unix://{self._path}"

    def start(self) -> None:
        """Start it; it answers when this returns."""
        command = ["podman", "system", "service", "--time=0", self.address]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self._path.parent, stdout=log, stderr=log
            )
        for _ in range(1200):
            with socket.socket(socket.AF_UNIX) as connection:
                if connection.connect_ex(str(self._path)) == 0:
                    return
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        raise AssertionError("podman's service does not answer")

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._path.unlink(missing_ok=True)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """Podman's API for its time, and an engine that has the images; skips where it cannot be run."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not on PATH")
    if os.getuid():
        pytest.skip("podman is run as root here, with a folder of its own")
    environment = _configured(folder)
    made = Service(folder, environment)
    try:
        if problem := _prepared(environment, folder):
            pytest.skip(f"podman cannot run containers here: {problem}")
        made.start()
        yield made
    finally:
        made.kill()
        _removed(environment, folder)


def _configured(folder: Path) -> dict[str, str]:
    """Write its configuration; returns the variables with which it is started."""
    programs = (*map(shutil.which, ("catatonit", "docker-init", "tini")), "/usr/libexec/podman/catatonit")
    init = next((each for each in programs if each), "")
    (folder / "networks").mkdir()
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True}
    bridge["ipam"] = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    network = {"cniVersion": "0.4.0", "name": NETWORK, "plugins": plugins}
    (folder / "networks" / f"{NETWORK}.conflist").write_text(json.dumps(network))
    # Unless told so it asks for more open files and processes than may be had where root is not almighty.
    (folder / "containers.conf").write_text(
        "[containers]\n"
        'netns = "bridge"\n'
        'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        f'[engine]\ninit_path = "{init}"\n'
        'cgroup_manager = "cgroupfs"\n'
        'events_logger = "file"\n'
        f'tmp_dir = "{folder}/tmp"\n'
        f'volume_path = "{folder}/volumes"\n'
        f'[network]\nnetwork_config_dir = "{folder}/networks"\n'
        f'default_network = "{NETWORK}"\ndefault_subnet = "{SUBNET}"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
    )
    taken = {name: value for name, value in os.environ.items() if name not in ("CONTAINER_HOST", "DOCKER_HOST")}
    own = {"CONTAINERS_CONF": folder / "containers.conf", "CONTAINERS_STORAGE_CONF": folder / "storage.conf"}
    return {**taken, **{name: str(value) for name, value in own.items()}}


def _prepared(environment: dict[str, str], folder: Path) -> str:
    """Make the images, and run one; returns what fails, in a line."""
    _archived_python(folder / "python.tar")
    with tarfile.open(folder / "nats.tar", "w") as archive:
        archive.add(shutil.which("nats-server") or "nats-server", "nats-server")
    imported = ("podman", "import", "--quiet")
    check = ("--network", "bridge", "--init", PYTHON, "python3", "-c", "import socket, signal")
    for command in (
        (*imported, folder / "python.tar", PYTHON),
        (*imported, "--change", 'ENTRYPOINT ["/nats-server"]', folder / "nats.tar", NATS),
        ("podman", "run", "--rm", *check),
    ):
        done = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=120)
        if done.returncode:
            return done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return ""


def _archived_python(path: Path) -> None:
    """A tar archive of the system's Python with the libraries that it is linked to."""
    python = Path("/usr/bin/python3").resolve()
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": "/usr"}))
    modules = [str(each) for each in (library / "lib-dynload").glob("*.so")]
    linked = subprocess.run(["ldd", python, *modules], check=False, capture_output=True, text=True).stdout
    with tarfile.open(path, "w", dereference=True) as archive:
        archive.add(python, "usr/bin/python3")
        for each in sorted(set(re.findall(r"(/\S+) \(0x", linked))):
            archive.add(each, each.lstrip("/"))
        archive.add(library, filter=lambda member: None if LEFT_OUT & {*Path(member.name).parts} else member)


def _removed(environment: dict[str, str], folder: Path) -> None:
    subprocess.run(["podman", "rm", "--all", "--force"], env=environment, check=False, capture_output=True, timeout=120)
    for place in ("root", "run"):  # what is mounted there cannot be removed otherwise
        for line in Path("/proc/mounts").read_text().splitlines():
            if (at := line.split()[1]).startswith(f"{folder}/{place}"):
                subprocess.run(["umount", "--lazy", at], check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
