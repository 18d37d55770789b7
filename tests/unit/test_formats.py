"""YAML, TOML and JSON are read as what they say, with the line of each field; what is wrong is told with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.cli.export import Exported, written_as_yaml
from cdm.cli.formats import UnreadableFile, portions_of

YAML = """\
# the shop
artifact: acme:web:1
env:
  LEVEL: "3"
spread:
  - by: zone
    weights: {a: 1, b: 2}
  - {by: rack}
---
---
- artifact: acme:api:1
- artifact: acme:api:2
  instances: 2
"""
TOML = '''\
artifact = "acme:web:1"
args = ["""
[no.table]
"""]
[env]
LEVEL = "3"
[[spread]]
by = "zone"
[spread.weights]
a = 1
[[spread]]
by = "rack"
'''
JSON = '{"artifact": "acme:web:1",\n\t"env": {\n"LEVEL": "\\ud83d\\ude00"},\n"spread": [{},\n{"by": "x"}]}\n\n{"a":\n1}'


def _lines(text: str, name: str, *fields: str, part: int = 0) -> list[int]:
    found = portions_of(text.encode(), name)[part]
    return [found.line_of(field) for field in fields]


def _values(text: str, name: str) -> list[Any]:
    return [part.value for part in portions_of(text.encode(), name)]


FIELDS = ("env.LEVEL", "spread[0].by", "spread[1].by", "spread[0].weights.a", "env.OTHER", "nowhere")


@pytest.mark.quick
def test_each_field_has_its_line_and_what_is_missing_that_of_what_it_is_missing_in() -> None:
    assert _lines(YAML, "a.yaml", *FIELDS) == [4, 6, 8, 7, 3, 2]
    assert _lines(YAML, "a.yaml", "", "instances", part=2) == [12, 13]
    assert _lines(TOML, "a.toml", *FIELDS) == [6, 8, 12, 10, 5, 1]
    assert _lines(JSON, "a.json", *FIELDS) == [3, 4, 5, 4, 2, 1]
    assert _lines(JSON, "a.json", "a", "b", part=1) == [7, 7]
    listed = '[[blueprints]]\nartifact="x"\n[[blueprints]]\nartifact="y"\n[blueprints.env]\nA=1\n'
    assert _lines(listed, "a.toml", "env.A", "env", "artifact", part=1) == [6, 5, 4]


@pytest.mark.quick
def test_a_file_may_hold_several_documents() -> None:
    assert [value["artifact"] for value in _values(YAML, "a.yaml")] == ["acme:web:1", "acme:api:1", "acme:api:2"]
    assert _values(JSON, "a.json")[0]["env"] == {"LEVEL": "😀"}
    for text, name in (
        ('{"blueprints": [{"a": 1}, {"a": 2}]}', "x.json"),
        ('[{"a": 1}, {"a": 2}]', "x.json"),
        ('{"a": 1} {"a": 2}', "x.json"),
        ("[[blueprints]]\na=1\n[[blueprints]]\na=2\n", "x.toml"),
        ("blueprints: [{a: 1}, {a: 2}]", "x.yml"),
    ):
        assert _values(text, name) == [{"a": 1}, {"a": 2}], text
        assert _values(text, "-") == [{"a": 1}, {"a": 2}], text


@pytest.mark.quick
@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n", "\n\n"])
@pytest.mark.parametrize("name", ["a.yaml", "-"])
def test_a_file_may_hold_none(text: str, name: str) -> None:
    assert _values(text, name) == []


@pytest.mark.quick
def test_yaml_is_that_of_version_1_2_with_anchors_and_merges() -> None:
    text = "x: &x {a: off, b: yes, t: 2024-01-01}\ny:\n  <<: *x\n  b: 1:30\nz: [*x, 0o17, 1e3, ~]\n"
    same = {"a": "off", "b": "yes", "t": "2024-01-01"}
    assert _values(text, "a.yaml") == [{"x": same, "y": {**same, "b": "1:30"}, "z": [same, 15, 1000.0, None]}]
    assert _lines(text, "a.yaml", "y.b", "y.a") == [4, 1]
    first = "{<<: [{a: 1}, {a: 2, b: 2}]}"
    assert _values(first, "a.yaml") == [{"a": 1, "b": 2}]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join(9 * [f'*{before}'])}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "text", "line", "what"),
    [
        ("a.yaml", "a: 1\nb: 2\na: 3\n", 3, "a: is given twice"),
        ("a.yaml", "a: 1\n\tb: 2\n", 2, "is not YAML: .*'\\\\t'"),
        ("a.yaml", "- a\n- b: [\n", 3, "is not YAML: while parsing"),
        ("a.yaml", "a: \x01\n", 1, "is not YAML: unacceptable character"),
        ("a.yaml", "a:\n  b: !foo 1\n", 2, "no kind of value !foo"),
        ("a.yaml", "a: 1\n? [b]\n: 1\n", 2, "a name must be text"),
        ("a.yaml", "a: *b\n", 1, "undefined alias"),
        ("a.yaml", "a: .nan\n", 1, ".nan is not a number"),
        ("a.yaml", "a: 1\n<<: 3\n", 2, "<< must name mappings"),
        ("a.yaml", "%YAML 1.1\n---\na: off\n", 0, "is not YAML that can be read"),
        ("a.yaml", "a: &x\n  b: *x\n", 1, "nested too deeply"),
        ("a.yaml", "[" * 1_500, 0, "is nested too deeply"),
        ("a.yaml", BOMB, 1, "too many values"),
        ("a.json", '{"a": 1,\n}', 2, "is not JSON: "),
        ("a.json", '{"a": 1}\n{"a": 1,\n"b": 1,\n"b": 2}', 4, "b: is given twice"),
        ("a.json", '{"a": NaN}', 1, "NaN is not a number"),
        ("a.json", "[" * 100_000, 0, "is nested too deeply"),
        ("a.toml", "a = 1\na = 2\n", 2, "is not TOML: "),
        ("a.toml", "a = 1\nb = [\n", 3, "is not TOML: "),
        ("a.toml", "a = inf\n", 0, "inf is not a number"),
        ("-", "[env]\nA = \n", 2, "is not TOML: "),
        ("-", '{"a": }', 1, "is not JSON: "),
        ("-", "a: [", 1, "is not YAML: "),
        ("a.yaml", b"\xff\xfe", 1, "is not UTF-8"),
        ("a.yaml", "a: 1\nb: é\n".encode("latin-1"), 2, "is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(name: str, text: str | bytes, line: int, what: str) -> None:
    with pytest.raises(UnreadableFile, match=what) as found:
        portions_of(text if isinstance(text, bytes) else text.encode(), name)
    assert found.value.line == line


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_exported_is_read_as_what_it_was(fields: dict[str, Any]) -> None:
    document = {"artifact": "a:b:1", **fields}
    text = written_as_yaml([Exported(document, "me"), Exported(document, "")])
    assert _values(text, "a.yaml") == [document, document]
    assert _values(json.dumps(document), "a.json") == [document]
