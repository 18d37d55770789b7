"""Every configuration that the documents show is one, says the program that it is for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from cdm.cli.filling import FileTemplate
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import NodeId, Service
from tests.docs.documents import blocks
from tests.harness.monitoring import promtool
from tests.proxies.shown import Shown

FOUND = [Endpoint("10.0.0.1", 8001, 50.0, NodeId("n1"), "1"), Endpoint("::1", 8002, 50.0, NodeId("n2"), "2")]


def shown(folder: Path) -> Shown:
    return Shown(folder, Shown.named, "127.0.0.1:8280")


def taken(folder: Path, command: str) -> None:
    """The program takes its configuration."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_envoy(tmp_path: Path) -> None:
    taken(tmp_path, f"{shown(tmp_path).envoy()} --mode validate")


def test_caddy(tmp_path: Path) -> None:
    run, _ = shown(tmp_path).caddy()
    taken(tmp_path, run.replace(" run ", " validate "))


def test_nginx_also_where_there_is_no_instance(tmp_path: Path) -> None:
    run, _ = shown(tmp_path).nginx()
    for found in (FOUND, []):
        made = FileTemplate(tmp_path / "slice.conf.tmpl").filled(Service("g", "web"), found)
        (tmp_path / "slice.conf").write_text(made, encoding="utf-8")
        taken(tmp_path, f"{run} -t")


def test_haproxy_also_where_there_is_no_instance(tmp_path: Path) -> None:
    run, _ = shown(tmp_path).haproxy()
    for found in (FOUND, []):
        made = FileTemplate(tmp_path / "slice.cfg.tmpl").filled(Service("g", "web"), found)
        (tmp_path / "slice.cfg").write_text(made, encoding="utf-8")
        taken(tmp_path, f"{run} -c")


def test_traefik() -> None:
    """It has no package here: what is shown is held against its own documents by eye, and read as YAML."""
    static, dynamic = (YAML(typ="safe", pure=True).load(each) for each in blocks("Traefik", "yaml"))
    assert static["providers"]["http"]["endpoint"].endswith("/v1/traefik")
    (router,) = dynamic["http"]["routers"].values()
    assert router["service"] == f"{Shown.named}@http"


def test_prometheus(tmp_path: Path) -> None:
    (config,) = blocks("Instances for Prometheus", "yaml")
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
