"""What a look at a cluster comes to: from a picture to findings, and these as monitoring reads them."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cdm.cli.doctor_formats import nagios, nagios_failed, prometheus
from cdm.doctor.examination import CHECKS, examine
from cdm.doctor.finding import Finding, FindingKind, Severity, ordered, worst
from cdm.doctor.picture import READ, BucketPicture, NodePicture, Peer, Picture, ServerPicture, Storage
from cdm.model.artifact import NodeId
from cdm.model.node import FEATURES, LEFT, LOST, Intent, Lease, Registration, Schedule, Seen, Vitals
from cdm.node.supervisor import seconds_of, stop_limit, unit_of

pytestmark = [pytest.mark.anyio, pytest.mark.quick]

VERSION = "1.2.0"
NAMES = ("blueprints", "slices", "nodes", "status", "artifacts")


def node(ttl: float | None = 10.0, *, heard: float = 1.0, ahead: float | None = 0.0, **told: Any) -> NodePicture:
    vitals = Vitals(lease_ttl=told.pop("lease_ttl", 10.0), **told.pop("vitals", {}))
    registration = Registration(version=told.pop("version", VERSION), ttl=ttl, features=FEATURES, vitals=vitals)
    return NodePicture(replace(registration, **told), heard, ahead)


def buckets(**changed: Any) -> tuple[BucketPicture, ...]:
    """All of them as they are to be; ``changed`` says what is otherwise with the first."""
    first, *others = (BucketPicture(name) for name in NAMES)
    return (replace(first, **changed), *others)


def nodes(**named: NodePicture) -> dict[NodeId, NodePicture]:
    return {NodeId(name): each for name, each in named.items()}


WELL = Picture(
    VERSION,
    ServerPicture("2.15.1", ahead=0.2, within=0.1),
    {"write blueprints": True, "change buckets": False},
    buckets(),
    nodes(a=node(), b=node(), c=node()),
    lease=Lease(NodeId("a"), 3),
)
"""A cluster of which there is nothing to say."""


def test_where_all_is_well_each_kind_is_told_once() -> None:
    found = examine(WELL)
    assert {each.kind for each in found} == set(FindingKind) == CHECKS.keys()
    assert worst(found) is Severity.OK
    assert not any(each.mend for each in found)


OLD = replace(node().registration, features=("rollouts",), version="1.1.0")
OTHER = NodeId("x")
CASES: dict[str, tuple[Picture, str, str, str]] = {
    "an old server": (
        Picture(VERSION, ServerPicture("2.9.0", "2.9.0 is too old")), "server critical", "too old", "-js",
    ),
    "nearly full": (
        replace(WELL, server=replace(WELL.server, storage=(Storage("JetStream's storage", 85, 100),))),
        "server warning", "85% of JetStream's storage", "raise",
    ),
    "no buckets": (
        replace(WELL, buckets=buckets(missing=True), unseen="bucket blueprints does not exist"),
        "buckets critical", "does not exist", "cdm init",
    ),
    "not to be read": (
        replace(WELL, may={READ: False}, unseen="permission denied"),
        "permissions warning", "nobody has looked", "operator",
    ),
    "an outage": (replace(WELL, unseen="no answer"), "buckets critical", "nothing is known of", "start the servers"),
    "nothing pushed yet": (
        replace(WELL, buckets=(*WELL.buckets[:-1], BucketPicture("artifacts", missing=True))),
        "buckets note", "nothing was ever pushed", "cdm init",
    ),
    "a stream without a leader": (
        replace(WELL, buckets=buckets(led=False)), "buckets critical", "has no leader", "start those",
    ),
    "settings": (
        replace(WELL, buckets=buckets(lacking={"max_age": 0})), "buckets critical", "max_age=0", "--fix",
    ),
    "one of three servers": (
        replace(WELL, server=replace(WELL.server, servers=3)), "replicas warning", "one server holds", "--replicas 3",
    ),
    "different replicas": (
        replace(WELL, buckets=buckets(replicas=3)), "replicas warning", "blueprints 3, slices 1", "--replicas 3",
    ),
    "a replica that is lost": (
        replace(WELL, buckets=buckets(peers=(Peer("n2", lost=True),))), "replicas warning", "hold blueprints", "start",
    ),
    "a replica that is behind": (
        replace(WELL, buckets=buckets(peers=(Peer("n2", 5000),))), "replicas warning", "5,000 writes behind", "log",
    ),
    "a copy that lags": (
        replace(WELL, buckets=buckets(lag=2000, silent=1.0)), "copies warning", "2,000 writes behind", "cdm init",
    ),
    "a copy that is cut off": (
        replace(WELL, buckets=buckets(lag=0)), "copies warning", "has not heard of its bucket ever", "cdm init",
    ),
    "roll-ups": (
        replace(WELL, buckets=buckets(rolls_up=True)), "changeover warning", "takes roll-ups", "--fix",
    ),
    "roll-ups that are needed": (
        replace(WELL, buckets=buckets(rolls_up=True), nodes=nodes(a=NodePicture(OLD))),
        "changeover note", "others removed; waiting for manager a", "upgrade managers",
    ),
    "roll-ups that an old manager lacks": (
        replace(WELL, nodes=nodes(a=NodePicture(OLD), b=node())), "changeover critical", "elect nobody", "upgrade",
    ),
    "nobody leads": (replace(WELL, lease=None), "leader critical", "nobody leads", "logs"),
    "nobody can lead": (
        replace(WELL, lease=None, nodes=nodes(a=node(role="agent"))), "leader critical", "no node is", "role",
    ),
    "who leads is gone": (
        replace(WELL, lease=Lease(OTHER, 4)), "leader warning", "not registered", "takes over",
    ),
    "one manager": (
        replace(WELL, nodes=nodes(a=node(), b=node(role="agent"))), "managers warning", "only node", "two more",
    ),
    "the manager that is left": (
        replace(WELL, nodes=nodes(a=node()), seen={OTHER: Seen(Registration(), LOST, {})}),
        "managers warning", "only node", "two more",
    ),
    "different numbers of managers": (
        replace(WELL, nodes=nodes(a=node(vitals={"managers": 5}), b=node(vitals={"managers": 3}), c=node())),
        "managers warning", "(3: b; 5: a)", "same --managers",
    ),
    "a crowd of managers": (
        replace(WELL, nodes=nodes(a=node(), **{f"m{number}": node() for number in range(20)})),
        "managers note", "21 nodes can lead", "--role auto",
    ),
    "an old manager": (
        replace(WELL, nodes=nodes(a=node(version="1.1.9"), b=node())), "versions warning", "cdm 1.1.9", "first",
    ),
    "old agents": (
        replace(WELL, nodes=nodes(a=node(), b=node(role="agent", version="1.1.0"))),
        "versions note", "have not the newest", "upgrade",
    ),
    "another version here": (replace(WELL, version="1.0.0"), "versions note", "this is cdm 1.0.0", ""),
    "a feature that waits": (
        replace(WELL, nodes=nodes(a=node(features=("rollouts",)))), "versions warning", "know rules of", "upgrade",
    ),
    "no nodes": (replace(WELL, nodes={}), "nodes warning", "no node is registered", "cdm node"),
    "a node that is late": (
        replace(WELL, nodes=nodes(a=node(heard=7.0))), "nodes warning", "7.0 s ago", "log",
    ),
    "a lost node": (
        replace(WELL, seen={OTHER: Seen(Registration(), LOST, {"g:a:1": 1})}), "nodes warning", "1 slice", "forget x",
    ),
    "an intent for nobody": (
        replace(WELL, intents={OTHER: Intent(Schedule.CORDON)}), "nodes note", "no such node", "cdm uncordon x",
    ),
    "different TTLs": (
        replace(WELL, nodes=nodes(a=node(), b=node(20.0))), "ttl warning", "10 s: a; 20 s: b", "same --node-ttl",
    ),
    "different leases": (
        replace(WELL, nodes=nodes(a=node(), b=node(lease_ttl=5.0))), "ttl warning", "5 s: b", "same --lease-ttl",
    ),
    "a long lease": (
        replace(WELL, nodes=nodes(a=node(lease_ttl=30.0))), "ttl note", "longer than registrations", "--lease-ttl 10s",
    ),
    "shorter than an election": (
        replace(WELL, nodes=nodes(a=node(5.0, lease_ttl=5.0)), buckets=buckets(replicas=3)),
        "ttl warning", "--node-ttl is 5 s", "10s",
    ),
    "many heartbeats": (
        replace(WELL, nodes=nodes(**{f"n{number}": node(1.0, lease_ttl=1.0) for number in range(200)})),
        "ttl note", "600 heartbeats a second", "--node-ttl 2s",
    ),
    "this machine's clock": (
        replace(WELL, server=replace(WELL.server, ahead=-3.0)), "clock warning", "3.0 s behind", "NTP",
    ),
    "a node's clock": (
        replace(WELL, nodes=nodes(a=node(ahead=2.5))), "clock warning", "2.5 s ahead of", "NTP",
    ),
    "a full disk": (
        replace(WELL, nodes=nodes(a=node(vitals={"disk_free": 10**8, "disk_size": 10**11}))),
        "disk critical", "100M of 100G", "--cache",
    ),
    "no time to stop": (
        replace(WELL, nodes=nodes(a=node(vitals={"stop_limit": 90.0, "stop_needs": 120.0}))),
        "stopping warning", "90 s after", "TimeoutStopSec=130",
    ),
    "slices of a stranger": (replace(WELL, slices={OTHER: 2}), "slices warning", "2 slices", "leader deletes"),
    "a key": (
        replace(WELL, unreadable=(("P_slices", "what is this", "is not of the form"),)),
        "keys warning", "is not of the form", "nats kv del -f P_slices 'what is this'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_not_well_is_told_with_how_to_mend_it(case: tuple[Picture, str, str, str]) -> None:
    picture, judged, what, mend = case
    found = [each for each in examine(picture) if what in each.what]
    assert [(f"{each.kind} {each.severity}", mend in each.mend) for each in found] == [(judged, True)], found
    assert found[0].fixable is ("--fix" in found[0].mend)


@pytest.mark.parametrize(
    "picture",
    [
        replace(WELL, nodes={**WELL.nodes, OTHER: NodePicture(Registration("agent", ttl=10.0))}),  # not cdm's agent
        replace(WELL, nodes=nodes(a=node(None, heard=inf, ahead=None))),
        replace(WELL, nodes=nodes(a=node(vitals={"disk_free": 2**31, "disk_size": 2**50}))),  # enough, of a large one
        replace(WELL, nodes=nodes(a=node(vitals={"disk_free": 0, "disk_size": 0, "stop_needs": 1e6}))),
        replace(WELL, nodes=nodes(a=node(vitals={"stop_limit": 90.0, "stop_needs": 30.0}))),
        replace(WELL, seen={OTHER: Seen(Registration(), LEFT)}, slices={OTHER: 1, NodeId("a"): 3}),
        replace(WELL, server=replace(WELL.server, storage=(Storage("memory", 5, 0), Storage("disk", 5, 100)))),
        replace(WELL, server=replace(WELL.server, ahead=5.0, within=4.5)),  # nobody can tell
        replace(WELL, buckets=buckets(lag=5, silent=0.5, peers=(Peer("n2", 5),))),
    ],
)
def test_what_is_well_is_not_complained_of(picture: Picture) -> None:
    assert worst(examine(picture)) is Severity.OK, examine(picture)


TROUBLES = ordered(
    [
        Finding(Severity.OK, FindingKind.SERVER, "", "well"),
        Finding(Severity.NOTE, FindingKind.NODES, "y", "is not there"),
        Finding(Severity.WARNING, FindingKind.KEYS, 'slices/a"b\\c', "what | is\nthat"),
        Finding(Severity.CRITICAL, FindingKind.LEADER, "", "nobody leads"),
    ]
)


def test_a_plugin_of_nagios_tells_a_line_with_figures_and_then_all() -> None:
    told, code = nagios(TROUBLES)
    assert code == 2
    assert told.splitlines() == [
        "CDM CRITICAL - leader: nobody leads (and 1 more) | critical=1 warning=1 note=1 ok=1",
        "CRITICAL: leader: nobody leads",
        'WARNING: keys slices/a"b\\c: what / is\\nthat',
    ]
    assert nagios(TROUBLES[2:]) == ("CDM OK - nothing to mend | critical=0 warning=0 note=1 ok=1", 0)
    assert nagios(TROUBLES[1:])[1] == 1
    assert nagios_failed("no answer", reachable=False) == ("CDM CRITICAL - no answer", 2)
    assert nagios_failed("denied", reachable=True) == ("CDM UNKNOWN - denied", 3)


def test_metrics_are_in_the_text_format() -> None:
    picture = replace(WELL, nodes=nodes(a=node(ahead=-0.25, vitals={"disk_free": 7}), b=node(ahead=None)))
    lines = prometheus(TROUBLES, picture).splitlines()
    assert all(line.startswith(("# HELP cdm_doctor_", "# TYPE cdm_doctor_", "cdm_doctor_")) for line in lines)
    samples = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}
    assert samples['cdm_doctor_severity{kind="leader"}'] == 3
    assert 'cdm_doctor_severity{kind="ttl"}' not in samples, "that was not looked at"
    assert samples['cdm_doctor_finding{kind="keys",severity="warning",where="slices/a\\"b\\\\c"}'] == 1
    assert samples['cdm_doctor_clock_ahead_seconds{node="a"}'] == -0.25
    assert samples['cdm_doctor_disk_free_bytes{node="a"}'] == 7
    assert sum(name.startswith("cdm_doctor_clock") for name in samples) == 1


# What a node knows of systemd


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [("1min 30s\n", 90), ("5s", 5), ("1h 2min 3s 500ms", 3723.5), ("infinity", None), ("", None), ("90 apples", None)],
)
def test_times_of_systemd(shown: str, seconds: float | None) -> None:
    assert seconds_of(shown) == seconds


def test_the_unit_of_a_process() -> None:
    assert unit_of("0::/system.slice/cdm.service\n") == "cdm.service"
    assert unit_of("0::/user.slice/user-1000.slice/user@1000.service/app.slice/cdm.service/slices") == "cdm.service"
    assert unit_of("0::/user.slice/user-1000.slice/session-1.scope") == ""


async def test_the_limit_is_asked_for_only_below_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup, asked = tmp_path / "cgroup", tmp_path / "systemctl"
    cgroup.write_text("0::/system.slice/cdm.service\n", encoding="utf-8")
    asked.write_text('#!/bin/sh\necho "$*" > "$0.asked"; echo 1min 30s\n', encoding="utf-8")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("cdm.node.supervisor.PATIENCE", 60.0)  # that it is asked is the subject, not how long it takes
    assert await stop_limit({}, cgroup) is None
    assert not _lines(tmp_path)
    assert await stop_limit({"INVOCATION_ID": "x"}, cgroup) == 90
    assert _lines(tmp_path) == ["show --property=TimeoutStopUSec --value cdm.service"]
    cgroup.write_text("0::/user.slice/user@1000.service/app.slice/cdm.service\n", encoding="utf-8")
    assert await stop_limit({"INVOCATION_ID": "x"}, cgroup) == 90
    assert _lines(tmp_path)[0].startswith("--user show")
    asked.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert await stop_limit({"INVOCATION_ID": "x"}, cgroup) is None
    assert await stop_limit({"INVOCATION_ID": "x"}, tmp_path / "none") is None


def _lines(folder: Path) -> list[str]:
    asked: Iterable[Path] = folder.glob("systemctl.asked")
    return [line for file in asked for line in file.read_text(encoding="utf-8").splitlines()]


def test_how_a_node_is_changes_nothing_that_is_decided() -> None:
    one, other = node(vitals={"clock": 1.0}).registration, node(vitals={"clock": 2.0}).registration
    assert not one.differs_from(other)
    assert one.differs_from(replace(other, address="elsewhere"))
    assert one.lasting.vitals is None
    raw = b'{"vitals": {"clock": 1e300, "lease_ttl": -1, "disk_free": 9999999999999999999999, "stop_needs": 1e300}}'
    vitals = Registration.parse(raw).vitals
    assert vitals == Vitals(1e11, 0.0, 2**63, stop_needs=365 * 86_400.0), "numbers that no machine has"
