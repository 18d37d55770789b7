"""What `deploy/` holds fits together: the profile `monitoring` of `compose.yaml`, its mounts, Grafana's files.

Grafana itself is not run here: there is no package of it. What its documents say of these files is held against them.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.harness.monitoring import DASHBOARD, RULES
from tests.harness.paths import ROOT

pytestmark = pytest.mark.quick

GRAFANA = ROOT / "deploy/grafana"
READS_PROVISIONING, READS_CONFIG = PurePosixPath("/etc/grafana/provisioning"), PurePosixPath("/etc/prometheus")
"""Where the images of Grafana and Prometheus look, if nothing else is said."""


def read(path: str) -> Any:
    return YAML(typ="safe", pure=True).load((ROOT / path).read_text(encoding="utf-8"))


def mounted(service: dict[str, Any]) -> dict[PurePosixPath, str]:
    """What is mounted where, from this repository, for reading."""
    found: dict[PurePosixPath, str] = {}
    for each in service["volumes"]:
        source, target, mode = each.split(":")
        assert mode == "ro", each
        assert (ROOT / source).exists(), each
        found[PurePosixPath(target)] = source
    return found


def test_the_profile_has_what_it_mounts_and_asks_nodes_where_they_serve() -> None:
    compose = read("compose.yaml")
    services = compose["services"]
    ours = {name: each for name, each in services.items() if each.get("profiles") == ["monitoring"]}
    assert set(ours) == {"prometheus", "grafana"}
    assert mounted(ours["prometheus"]) == {READS_CONFIG: "./deploy/prometheus"}
    config = read("deploy/prometheus/prometheus.yml")
    assert config["rule_files"] == [RULES.name], "it stands beside the configuration"
    (job,) = config["scrape_configs"]
    (static,) = job["static_configs"]
    port = compose["x-cdm"]["environment"]["CDM_HTTP"]
    assert static["targets"] == [f"{name}{port}" for name in services if name.startswith("node-")]
    for each in ours.values():
        (published,) = each["ports"]
        assert published.startswith("127.0.0.1:"), "nobody is asked who they are: for this machine only"


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    services = read("compose.yaml")["services"]
    mounts = mounted(services["grafana"])
    assert mounts[READS_PROVISIONING] == "./deploy/grafana/provisioning"
    assert sorted(each.name for each in (GRAFANA / "provisioning").iterdir()) == ["dashboards", "datasources"]
    (source,) = read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    host, port = re.fullmatch(r"http://([a-z]+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert services[host]["ports"][0].endswith(f":{port}")
    (provider,) = read("deploy/grafana/provisioning/dashboards/cdm.yml")["providers"]
    folder = PurePosixPath(provider["options"]["path"])
    assert {target: path for target, path in mounts.items() if folder in target.parents} == {
        folder / DASHBOARD.name: "./deploy/grafana/cdm.json"
    }
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert PurePosixPath(home) == folder / DASHBOARD.name


def test_the_dashboard_has_panels_beside_each_other_that_ask_the_chosen_data_source() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert document.get("id") is None, "of another Grafana"
    (chosen,) = document["templating"]["list"]
    assert (chosen["type"], chosen["query"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": f"${{{chosen['name']}}}"}
    panels = document["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    for each in (*panels, *document["annotations"]["list"]):
        if each.get("type") != "row":
            assert each["datasource"] == wanted, each
        targets = each.get("targets", [])
        assert all(target.get("datasource", wanted) == wanted for target in targets), each
        assert len({target["refId"] for target in targets}) == len(targets), each["title"]
    for one, other in combinations(panels, 2):
        assert apart(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    assert all(each["gridPos"]["x"] + each["gridPos"]["w"] <= 24 for each in panels), "the grid has 24 columns"


def apart(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
