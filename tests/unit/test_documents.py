"""Blueprints in files: all are checked, and each mistake is told with its place and what may have been meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdm.cli.documents import read_all
from cdm.errors import UsageError

pytestmark = pytest.mark.quick

Shown = pytest.CaptureFixture[str]
GOOD = "artifact: acme:web:1\ninstances: 3\n"


def _file(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _flaws(capsys: Shown, *paths: Path) -> list[str]:
    """What is wrong with files, as shown, without their folder."""
    with pytest.raises(UsageError, match=r"^\d+ mistakes?, so nothing was done"):
        read_all(paths)
    return capsys.readouterr().err.replace(f"{paths[0].parent}/", "").splitlines()


TEXT = "must be a string without NUL characters or lone surrogates"
VERSION = 'must be a version like "1.0.0" (at most 64 characters)'


@pytest.mark.parametrize(
    ("text", "flaws"),
    [
        (
            "artifact: acme:web:1\ninstences: 3\n",
            ["2: instences: there is no such field (did you mean instances?)", "1: instances: is required"],
        ),
        (
            "artefact: acme:web:1\ninstances: x\n",
            [
                "1: artefact: there is no such field (did you mean artifact?)",
                '2: instances: must be a whole number from 0 to 100,000 or "each"',
            ],
        ),
        ("instances: 3\n", ["1: artifact: is required: whose blueprint it is, GROUP:NAME:VERSION"]),
        ("\nartifact: acme:web\ninstances: 3\n", ["2: artifact: 'acme:web' is not of the form group:name:version"]),
        ("artifact: 5\ninstances: 3\n", ["1: artifact: '5' is not of the form group:name:version"]),
        (
            f"{GOOD}args:\n  - 80\nrollout:\n  from: 1.0\n",
            [
                f'4: args[0]: {TEXT}; write it in quotes: "80"',
                f'6: rollout.from: {VERSION}; write it in quotes: "1.0"',
            ],
        ),
        (f"{GOOD}spread:\n  - by: zone\n    or: waitt\n", ['5: spread[0].or: must be "anyway" or "wait"']),
        (f"{GOOD}rollout:\n  step: []\n", ["4: rollout.step: there is no such field (did you mean steps?)"]),
        (f"{GOOD}needs: {{disk: 1}}\n", ["3: needs.disk: there is no such field (fields: cpu, memory)"]),
        (
            f'{GOOD}rollout: {{from: "1"}}\n',
            ["3: rollout.from: 1 is this version itself; name the one that it replaces, or none"],
        ),
        ("hello\n", ['1: is no blueprint: write fields, as in "artifact: GROUP:NAME:VERSION"']),
        ('{artifact: "acme:web:1", args: ["\\ud800"]}', ["1: has text with lone surrogates, which is no UTF-8"]),
        ("a: [\n", ["2: is not YAML: while parsing a flow node expected the node content, but found '<stream end>'"]),
        (f"{GOOD}---\n{GOOD}", ["4: artifact: acme:web:1 is given twice, first in a.yaml:1"]),
    ],
)
def test_each_mistake_is_told_with_its_place(tmp_path: Path, capsys: Shown, text: str, flaws: list[str]) -> None:
    assert _flaws(capsys, _file(tmp_path, text)) == [f"a.yaml:{flaw}" for flaw in flaws]


def test_of_many_mistakes_some_are_shown(tmp_path: Path, capsys: Shown) -> None:
    path = _file(tmp_path, "---\n".join(60 * ["instances: 3\n"]))
    with pytest.raises(UsageError, match=r"^60 mistakes, so nothing was done; 10 more are not shown$"):
        read_all([path])
    assert len(capsys.readouterr().err.splitlines()) == 50


def test_a_wrong_file_is_told_beside_the_others(tmp_path: Path, capsys: Shown) -> None:
    good, bad = _file(tmp_path, GOOD), _file(tmp_path, "a = \n", "b.toml")
    (empty := tmp_path / "empty").mkdir()
    _file(tmp_path, GOOD, "empty/.hidden.yaml")
    _file(tmp_path, GOOD, "empty/notes.txt")
    control = _file(tmp_path, "instances: 1", "c\x1b[31m.yaml")
    assert _flaws(capsys, good, bad, tmp_path / "none.yaml", empty, control) == [
        "empty: there is no file in this folder that ends with .yaml, .yml, .json, .toml",
        "b.toml:1: is not TOML: Invalid value",
        "none.yaml: cannot be read: No such file or directory",
        r"c\x1b[31m.yaml:1: artifact: is required: whose blueprint it is, GROUP:NAME:VERSION",
    ]


def test_a_folder_is_read_with_the_folders_in_it_and_each_file_once(tmp_path: Path) -> None:
    _file(tmp_path, GOOD)
    _file(tmp_path, 'artifact = "acme:api:1"\ninstances = "each"\n[env]\nA = "x"\n', "b/b.toml")
    path = _file(
        tmp_path, json.dumps({"blueprints": [{"artifact": "acme:db:1", "instances": 1, "env": None}]}), "b/c.JSON"
    )
    found = {str(each.artifact): each for each in read_all([tmp_path, path, tmp_path / "b"])}
    assert {name: each.fields for name, each in found.items()} == {
        "acme:web:1": {"instances": 3},
        "acme:api:1": {"instances": "each", "env": {"A": "x"}},
        "acme:db:1": {"instances": 1},
    }
    assert found["acme:api:1"].place == f"{tmp_path}/b/b.toml:1"


def test_a_file_without_a_blueprint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no blueprint in .*a\.yaml"):
        read_all([_file(tmp_path, "# nothing yet\n")])
