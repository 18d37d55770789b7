"""The file of versions: it holds for everything that is installed, and says nothing of where that comes from."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.harness.paths import ROOT

pytestmark = pytest.mark.quick


def pins() -> dict[str, str]:
    """Versions by normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines if line[:1] != "#"]
    assert all(found), "nothing but name==version"
    return {normalised(each[1]): each[2] for each in found if each}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(x for e in extras for x in e),
    ]
    known = pins()
    for requirement in map(Requirement, wanted):
        if requirement.name != "cdm":
            assert known[normalised(requirement.name)] in requirement.specifier, requirement


def test_the_image_and_the_checks_use_it() -> None:
    for file, times in {"Dockerfile": 2, ".ci/run": 2, ".ci/images": 2, ".dockerignore": 1}.items():
        assert (ROOT / file).read_text(encoding="utf-8").count("constraints.txt") == times, file


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml"])
def test_no_image_is_whatever_is_newest(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.findall(r"_IMAGE(?:=|:-)([a-z]+:[^\s}]+)", text)
    assert found
    assert all(re.search(r":[0-9]+\.[0-9]+\.[0-9]+|:local$|@sha256:[0-9a-f]{64}$", image) for image in found), found
