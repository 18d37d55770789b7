"""What the buckets hold of one service, for tests of commands: written one after another, with what edits come to."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cdm.cli.plans import Edit, deploying
from cdm.cli.service import ServiceLook, look_of
from cdm.errors import EditRefused
from cdm.model.artifact import Service
from cdm.model.edit import fields_of
from cdm.model.keys import encode_artifact
from cdm.model.record import Rollout, RolloutPhase, Side
from cdm.model.status import Condition, RolloutStatus, Status
from cdm.store.revisions import Revision

WEB = Service("acme.shop", "web")
NOW = "2026-11-28T09:00:00Z"


class Bucket:
    """Blueprints, statuses and a record, written one after another."""

    def __init__(self) -> None:
        self.blueprints: list[Revision] = []
        self.statuses: dict[str, Status] = {}
        self.record: Rollout | None = None

    def put(self, version: str, value: object) -> int:
        """Write a blueprint; None deletes it."""
        payload = None if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        number = len(self.blueprints) + 1
        name = encode_artifact(WEB.version(version))
        self.blueprints.append(Revision(name, number, 1_000.0 + number, payload, "me@here" if number % 2 else ""))
        return number

    def status(self, version: str, condition: Condition, **fields: Any) -> None:
        """Have the leader say something of the newest blueprint of a version."""
        name = encode_artifact(WEB.version(version))
        newest = max(each.number for each in self.blueprints if each.name == name)
        self.statuses[name] = Status(condition, observed_revision=newest, in_force_revision=newest, **fields)

    def rollout(self, source: str, target: str, phase: RolloutPhase, step: int = 0, **fields: Any) -> None:
        """Write the record of a rollout that began with the newest blueprints."""
        old, new = (Side(version, self._newest(version), digest=version) for version in (source, target))
        superseded = {source: self._newest(source)} if source != target and phase is not RolloutPhase.REVERTED else {}
        self.record = Rollout(old, new, phase, step, superseded=superseded, **fields)

    def _newest(self, version: str) -> int:
        name = encode_artifact(WEB.version(version))
        return max((each.number for each in self.blueprints if each.name == name), default=0)

    @property
    def look(self) -> ServiceLook:
        """What a command finds."""
        statuses = [Revision(name, 1, 0.0, msgspec.json.encode(status)) for name, status in self.statuses.items()]
        record = None if self.record is None else msgspec.json.encode(self.record)
        other = Revision("acme.shop/api/1", 99, 0.0, b"7")
        return look_of(WEB, [*self.blueprints, other, Revision("?", 100, 0.0, b"7")], statuses, record)


@pytest.fixture
def one() -> Bucket:
    """One version, in force, with settings of its own."""
    bucket = Bucket()
    bucket.put("1", {"instances": 3, "env": {"A": "x"}, "restarted": "then", "rollout": {"max_surge": 2}})
    bucket.status("1", Condition.READY, desired=3)
    return bucket


@pytest.fixture
def two(one: Bucket) -> Bucket:
    """A rollout from 1 to 2 is under way."""
    one.put(
        "2",
        {"instances": 3, "rollout": {"from": "1", "kind": "canary", "steps": [{"weight": 10}, {"pause": "approve"}]}},
    )
    one.rollout("1", "2", RolloutPhase.ROLLING)
    one.status("1", Condition.SUPERSEDED)
    one.status("2", Condition.PROGRESSING, desired=3)
    return one


def begun() -> Bucket:
    """A first version, and no rollout so far."""
    bucket = Bucket()
    bucket.put("1", 1)
    return bucket


def written(edit: Edit) -> dict[str, Any]:
    """The fields of the blueprint that it writes."""
    return fields_of(edit.raw)


def deploy(bucket: Bucket, version: str, **options: Any) -> Edit:
    return deploying(bucket.look, WEB.version(version), **options)


def refused(told: str) -> Any:
    return pytest.raises(EditRefused, match=told)


def status_of(condition: Condition, phase: str = "", **fields: Any) -> Status:
    """What a leader says of revision 7: with a phase, that of a rollout from 1 to 2."""
    rollout = RolloutStatus(phase, "rolling", "1", "2", why="because") if phase else msgspec.UNSET
    return Status(condition, "so", 7, 7, rollout=rollout, **fields)
