"""What systemd is told, and the unit that cdm comes with."""

from __future__ import annotations

import inspect
from configparser import ConfigParser

import pytest

from cdm.cli.node import OnStop, node
from cdm.node.notify import READY, notify, watchdog_interval
from tests.harness.paths import ROOT

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "17"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "18"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_signs_of_life_come_twice_as_often_as_they_are_waited_for(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environment, 17) == seconds


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all", "@nobody.cdm"])
def test_nobody_who_wants_to_know_is_no_error(address: str) -> None:
    notify(READY, {"NOTIFY_SOCKET": address} if address else {})


def test_the_unit_leaves_the_keeper_alone() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "deploy/systemd/cdm-node.service").read_text(encoding="utf-8"))
    service = unit["Service"]
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "process", "on-failure")
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "it is never given up for good"
    assert service["ExecStart"].endswith("/cdm node")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    variable, value = service["Environment"].split("=")
    assert variable in str(inspect.signature(node, eval_str=True).parameters["on_stop"].annotation)
    assert value == OnStop.KEEP
