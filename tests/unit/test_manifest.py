from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidManifest
from cdm.model.limits import Limits, Logs
from cdm.model.manifest import (
    MAX_BYTES,
    Http,
    Line,
    Liveness,
    Manifest,
    Readiness,
    Restart,
    RestartPolicy,
    Tcp,
    Up,
)

WHOLE = b"""
entry = "bin/serve"
args = ["--port", "${CDM_PORT}"]
directory = "data"
port = "auto"
stop_signal = "SIGINT"
stop_grace = 3

[env]
LEVEL = "info"

[readiness]
check = { kind = "http", path = "/ready" }
timeout = 20
interval = 0.5

[liveness]
check = { kind = "tcp" }
failures = 5

[restart]
policy = "on-failure"
attempts = 1

[limits]
memory = 1048576

[logs]
files = 2
"""

WRONG: list[tuple[bytes, str]] = [
    (b"entri = 'x'", "entri"),
    (b'{"entri": "x"}', "entri"),
    (b"entry = 1", "entry"),
    (b"entry = '/bin/sh'", "entry"),
    (b"entry = 'a/../../b'", "entry"),
    (b'entry = "a\\u0000b"', "entry"),
    (b"directory = '..'", "directory"),
    (b"args = 'x'", "args"),
    (b"args = [1]", "args"),
    (b'args = ["a\\u0000b"]', "args"),
    (b"[env]\nA = 1", "env"),
    (b"[env]\n'A B' = '1'", "env"),
    (b'[env]\nA = "\\u0000"', "env"),
    (b"port = 0", "port"),
    (b"port = 65536", "port"),
    (b"port = true", "port"),
    (b"port = 'any'", "port"),
    (b"stop_signal = 'TERM'", "stop_signal"),
    (b"stop_grace = 0", "stop_grace"),
    (b"stop_grace = nan", "stop_grace"),
    (b"stop_grace = inf", "stop_grace"),
    (b"stop_grace = 2020-01-01", "stop_grace"),
    (b"readiness = { check = { kind = 'tcp' } }", "port"),
    (b"readiness = { check = { kind = 'ping' } }", "kind"),
    (b"readiness = { check = { kind = 'up', secs = 1 } }", "secs"),
    (b"readiness = { checks = {} }", "checks"),
    (b"liveness = {}", "check"),
    (b"liveness = { check = { kind = 'up' } }", "kind"),
    (b"restart = { policy = 'sometimes' }", "policy"),
    (b"restart = { attempts = -1 }", "attempts"),
    (b"limits = { memory = 0 }", "memory"),
    (b"limits = { memory = 9223372036854775808 }", "memory"),
    (b"logs = { files = 0 }", "files"),
    (b"logs = []", "logs"),
    (b"entry = ", ""),
    (b"{", ""),
    (b"[]", ""),
    (b"3", ""),
    (b"\xff", ""),
    (b"a = " + b"[" * 5_000, ""),
    (b'{"env": ' + b"[" * 20_000, ""),
    (b"#" * (MAX_BYTES + 1), "long"),
]


def test_a_manifest_is_toml_or_json() -> None:
    read = Manifest.parse(WHOLE)
    assert read == Manifest(
        entry="bin/serve",
        args=("--port", "${CDM_PORT}"),
        env={"LEVEL": "info"},
        directory="data",
        port="auto",
        readiness=Readiness(Http("/ready"), timeout=20, interval=0.5),
        liveness=Liveness(Tcp(), failures=5),
        restart=Restart(RestartPolicy.ON_FAILURE, attempts=1),
        stop_signal="SIGINT",
        stop_grace=3,
        limits=Limits(memory=1048576),
        logs=Logs(files=2),
    )
    assert Manifest.parse(msgspec.json.encode(read)) == read
    assert Manifest.parse(b"\xef\xbb\xbf" + WHOLE) == read, "with the byte-order mark of some editors"
    assert Manifest.parse(b"") == Manifest() == Manifest.parse(b"{}")


@pytest.mark.parametrize(("raw", "field"), WRONG, ids=lambda value: repr(value[:40]))
def test_a_wrong_manifest_is_refused_in_a_line_that_names_the_field(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        Manifest.parse(raw)
    text = str(refused.value)
    assert field in text
    assert "\n" not in text
    assert "`" not in text
    assert "$" not in text
    assert 0 < len(text) < 300


A_SECRET = "the name of a secret (letters, digits, dots, dashes and underscores; at most 128)"
FIELDS = ", ".join(Manifest.__struct_fields__)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"readiness = 'http'", "readiness: must be an object"),
        (b"port = 0", 'port: must be a whole number (at least 1, at most 65,535) or "auto"'),
        (b"port = 'any'", 'port: must be a whole number (at least 1, at most 65,535) or "auto"'),
        (b'{"port": 1e400}', 'port: must be a whole number (at least 1, at most 65,535) or "auto"'),
        (b"stop_grace = nan", "stop_grace: must be seconds (more than 0, at most 86,400)"),
        (b"limits = { memory = '64M' }", "limits.memory: must be a whole number of bytes (more than 0, at most 2^60)"),
        (b"args = 'x'", "args: must be a list of strings"),
        (b"args = ['a', 1]", "args[1]: must be a string"),
        (b"env = { B = 'x', A = 1 }", 'env.A: must be a string or { secret = "NAME" }'),
        (b"env = { A = { secret = '../x' } }", f"env.A.secret: must be {A_SECRET}"),
        (b"env = { A = { secret = 'x', as = 'fd' } }", 'env.A.as: must be "env" or "file"'),
        (b"env = { A = { secrt = 'x' } }", "env.A.secrt: there is no such field (fields: secret, as)"),
        (b"env = { 'A B' = '1' }", "env: each name must be the name of a variable"),
        (b"readiness = { check = 'http' }", "readiness.check: must be an object"),
        (b"readiness = { check = {} }", "readiness.check.kind: is required"),
        (b"readiness = { check = { kind = 1 } }", 'readiness.check.kind: must be "up", "tcp", "http" or "line"'),
        (b"liveness = { check = { kind = 'up' } }", 'liveness.check.kind: must be "tcp" or "http"'),
        (b"liveness = { check = { kind = 'tcp', path = '/' } }", "liveness.check.path: there is no such field"),
        (b"restart = { policy = 'sometimes' }", 'restart.policy: must be "always", "on-failure" or "never"'),
        (b"entri = 'x'", f"entri: there is no such field (fields: {FIELDS})"),
        (
            b"limits = { cpu = 1 }",
            f"limits.cpu: there is no such field (fields: {', '.join(Limits.__struct_fields__)})",
        ),
        (b'"a\\nb" = 1', rf"'a\nb': there is no such field (fields: {FIELDS})"),
        ("port = 80".encode("utf-16"), "is UTF-16 or UTF-32, as its byte-order mark says; write it as UTF-8"),
        (b'{"port": 3,}', "is not JSON: trailing comma in object (byte 11)"),
    ],
)
def test_what_is_expected_is_told_in_words(raw: bytes, told: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        Manifest.parse(raw)
    assert str(refused.value) == told


_seconds = st.floats(0.001, 86_400) | st.integers(1, 86_400)
_port = st.integers(1, 65_535)
_amount = st.none() | st.integers(0, 1_000_000)
_bytes = st.integers(1, 2**60)
_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_name = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
_path = st.lists(st.text(string.ascii_letters + "._ -é", min_size=1, max_size=8), max_size=4).map("/".join)
_inside = _path.filter(lambda path: not path.startswith("/") and ".." not in path.split("/"))
_alive = st.builds(Tcp, _port) | st.builds(Http, _text, _port)
manifests = st.builds(
    Manifest,
    entry=_inside,
    args=st.lists(_text, max_size=3).map(tuple),
    env=st.dictionaries(_name, _text, max_size=3),
    directory=_inside,
    port=st.none() | _port | st.just("auto"),
    readiness=st.builds(
        Readiness,
        st.none() | _alive | st.builds(Up, _seconds) | st.builds(Line, _text),
        _seconds,
        _seconds,
    ),
    liveness=st.none() | st.builds(Liveness, _alive, _seconds, _seconds, st.integers(1, 100)),
    restart=st.builds(Restart, st.sampled_from(RestartPolicy), st.integers(0, 1_000_000), _seconds, _seconds, _seconds),
    stop_signal=st.sampled_from(["SIGTERM", "SIGINT", "SIGKILL"]),
    stop_grace=_seconds,
    limits=st.builds(Limits, st.none() | _bytes, _amount, _amount, _amount, st.none() | _bytes),
    logs=st.builds(Logs, _bytes, st.integers(1, 100)),
)


@given(manifests)
def test_every_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert Manifest.parse(msgspec.json.encode(manifest)) == manifest


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Manifest.__struct_fields__, "check", "kind"]) | st.text(max_size=4), inner)
    ),
    max_leaves=8,
)


@given(
    st.binary(max_size=64)
    | st.text(st.sampled_from("entryargsv=[]{}'\"\n0123456789.-:#\\u"), max_size=60).map(str.encode)
    | _values.map(msgspec.json.encode)
)
def test_any_bytes_are_a_manifest_or_refused_and_nothing_else(raw: bytes) -> None:
    try:
        manifest = Manifest.parse(raw)
    except InvalidManifest:
        return
    assert Manifest.parse(msgspec.json.encode(manifest)) == manifest
