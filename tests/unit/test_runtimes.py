"""The interface of runtimes: optional hooks are defaults, and a class need not inherit to be one."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import cdm
from cdm.errors import UsageError
from cdm.model.artifact import Artifact, NodeId
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.runtimes import OutputLine, Runtime, Surroundings, Work, adapted, runtime_named
from cdm.runtimes.interface import GROUP, OURS
from cdm.runtimes.process.runtime import ProcessRuntime
from cdm.runtimes.process.token import new_token, token_of

pytestmark = pytest.mark.anyio

ARTIFACT = Artifact("g", "one", "1")
KEY = SliceKey(NodeId("n1"), ARTIFACT, 0)
WORK = Work(KEY, Path(), Manifest())


class Plain:
    """No more than is necessary, and no base class."""

    def __init__(self) -> None:
        self.states: dict[SliceKey, bool] = {}

    async def load(self, work: Work) -> None:
        self.states[work.key] = False

    async def activate(self, key: SliceKey) -> int | None:
        self.states[key] = True
        return 80

    async def deactivate(self, key: SliceKey) -> None:
        self.states[key] = False

    async def unload(self, key: SliceKey) -> None:
        self.states.pop(key, None)

    @property
    def slices(self) -> Mapping[SliceKey, bool]:
        return self.states


class Inheriting(Plain, Runtime):
    """The same, with the base class."""


class PlainWithAll(Plain):
    """Every hook, and no base class."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    async def check_machine(self) -> None:
        self.calls.append("check_machine")

    async def start(self) -> None:
        self.calls.append("start")

    async def close(self) -> None:
        self.calls.append("close")

    def heard(self, at: float) -> None:
        self.calls.append(at)

    def written(self, artifact: Artifact) -> Sequence[SliceKey]:
        return [KEY]

    async def read(self, key: SliceKey, **_: Any) -> AsyncIterator[Sequence[OutputLine]]:
        yield []


class InheritingWithAll(PlainWithAll, Runtime):
    """The same, with the base class."""


@pytest.mark.parametrize("kind", [Plain, Inheriting])
async def test_what_a_runtime_lacks_is_a_default(kind: type[Plain]) -> None:
    made = kind()
    runtime = adapted(made)
    await runtime.check_machine()
    await runtime.start()
    runtime.heard(1.0)
    await runtime.load(WORK)
    assert await runtime.activate(KEY) == 80
    assert runtime.slices == {KEY: True}
    await runtime.deactivate(KEY)
    assert runtime.slices == {KEY: False}
    assert not runtime.lapses
    assert not runtime.logs
    assert list(runtime.written(ARTIFACT)) == []
    assert [each async for each in runtime.read(KEY)] == []
    await runtime.close()
    assert not made.states, "nothing is left running"


@pytest.mark.parametrize("kind", [PlainWithAll, InheritingWithAll])
async def test_what_a_runtime_has_is_used(kind: type[PlainWithAll]) -> None:
    made = kind()
    runtime = adapted(made)
    await runtime.check_machine()
    await runtime.start()
    runtime.heard(1.0)
    await runtime.close()
    assert made.calls == ["check_machine", "start", 1.0, "close"]
    assert runtime.lapses
    assert runtime.logs
    assert list(runtime.written(ARTIFACT)) == [KEY]
    assert [each async for each in runtime.read(KEY)] == [[]]


@pytest.mark.parametrize("damage", ["", "0123", "\udcff"])
async def test_a_token_is_made_anew_where_there_is_none(tmp_path: Path, damage: str) -> None:
    if damage:
        (tmp_path / "token").write_text(damage, errors="surrogateescape")
    assert token_of(tmp_path) is None
    assert new_token(tmp_path) == token_of(tmp_path)


async def test_a_token_that_cannot_be_read_is_told_and_stays(tmp_path: Path) -> None:
    """What runs would not be known any more by another one, and would be begun a second time."""
    (tmp_path / "token").symlink_to("token")
    with pytest.raises(OSError, match="symbolic links"):
        await ProcessRuntime(Surroundings(KEY.node, tmp_path, lambda *_: None)).start()
    assert (tmp_path / "token").is_symlink()


def test_a_runtime_that_inherits_is_itself() -> None:
    runtime = Inheriting()
    assert adapted(runtime) is runtime


def test_cdms_own_runtimes_are_those_of_its_entry_points() -> None:
    project = tomllib.loads((Path(cdm.__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][GROUP] == OURS
    assert runtime_named("process") is ProcessRuntime
    for name in OURS:
        runtime_named(name)
    with pytest.raises(UsageError, match=r"no runtime 'procces' .*container, external, process, systemd"):
        runtime_named("procces")
