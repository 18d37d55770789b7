"""What a file for a proxy is made of, and what Caddy is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdm.cli.caddy import with_places, with_upstreams
from cdm.cli.filling import FileTemplate, write_whole
from cdm.manager.endpoints import Endpoint
from cdm.model.artifact import NodeId, Service

WEB = Service("acme", "web")
ONE, TWO = (Endpoint(f"10.0.0.{each}", 8000 + each, 50.0, NodeId(f"n{each}"), "1.0") for each in (1, 2))


def filled(folder: Path, text: str, *found: Endpoint, service: Service = WEB) -> str:
    (folder / "template").write_text(text, encoding="utf-8")
    return FileTemplate(folder / "template").filled(service, found)


def test_a_line_about_an_instance_is_written_for_each(tmp_path: Path) -> None:
    text = "a {{service}}\n s{{number}} {{ address }}:{{port}} {{weight}} {{node}}@{{version}} of {{count}}\nz"
    assert filled(tmp_path, text, ONE, TWO) == (
        "a acme:web\n s1 10.0.0.1:8001 1 n1@1.0 of 2\n s2 10.0.0.2:8002 1 n2@1.0 of 2\nz"
    )
    assert filled(tmp_path, text) == "a acme:web\nz"
    assert filled(tmp_path, "{{none}}down;\n{{endpoint}}\n") == "down;\n"
    assert filled(tmp_path, "{{none}}down;\n{{endpoint}}\n", ONE) == "10.0.0.1:8001\n"
    assert filled(tmp_path, "{a} {{}} $x".replace("{{}}", "%s"), ONE) == "{a} %s $x"


def test_what_others_say_means_nothing_more_in_it(tmp_path: Path) -> None:
    evil = Endpoint("::1", 80, 100.0, NodeId("n;{{node}}\\"), "1'$(x)`é")
    assert filled(tmp_path, "{{node}} {{version}} {{endpoint}}\n", evil) == "n___node___ 1___x___ [::1]:80\n"
    assert filled(tmp_path, "{{service}}\n", service=Service("a;b", "w{}")) == "a_b:w__\n"


def test_weights_are_whole_and_in_proportion(tmp_path: Path) -> None:
    found = (ONE, Endpoint("h", 1, 25.0, NodeId("n"), "1"))
    assert filled(tmp_path, "{{weight}}\n", *found) == "100\n50\n"


def test_a_file_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_whole(made, "one")
    made.chmod(0o600)
    write_whole(made, "two")
    assert (made.read_text(), made.stat().st_mode & 0o777) == ("two", 0o600)
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "none" / "made", "x")
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_caddys_handler_keeps_what_is_its_users() -> None:
    handler: dict[str, Any] = {
        "@id": "x",
        "handler": "reverse_proxy",
        "upstreams": [{"dial": "10.0.0.1:8001", "max": 5}],
    }
    told = with_upstreams(handler, (ONE, TWO))
    assert told == {
        **handler,
        "upstreams": [{"dial": "10.0.0.1:8001", "max": 5}, {"dial": "10.0.0.2:8002"}],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}},
    }
    assert with_upstreams(told, (ONE, TWO)) == told, "nothing is changed twice"
    own = {**handler, "load_balancing": {"retries": 2, "selection_policy": {"policy": "ip_hash"}}}
    assert with_upstreams(own, (ONE, TWO))["load_balancing"] == own["load_balancing"]
    uneven = (ONE, Endpoint("h", 1, 25.0, NodeId("n"), "1"))
    weighted = {"retries": 2, "selection_policy": {"policy": "weighted_round_robin", "weights": [100, 50]}}
    assert with_upstreams(own, uneven)["load_balancing"] == weighted
    even = with_upstreams({**own, "load_balancing": weighted}, ())
    assert (even["upstreams"], even["load_balancing"]["selection_policy"]) == ([], {"policy": "round_robin"})


def test_caddys_turns_are_all_alike_whatever_the_weights() -> None:
    places = ["{file./turns/0}", "{file./turns/1}"]
    weighted = {"retries": 2, "selection_policy": {"policy": "weighted_round_robin", "weights": [100, 50]}}
    told = with_places({"handler": "reverse_proxy", "load_balancing": weighted}, places)
    assert told["upstreams"] == [{"dial": each} for each in places]
    assert told["load_balancing"] == {"retries": 2, "selection_policy": {"policy": "round_robin"}}
    own = {"handler": "reverse_proxy", "load_balancing": {"selection_policy": {"policy": "least_conn"}}}
    assert with_places(own, places)["load_balancing"] == own["load_balancing"]
