"""As whom slices run: what the options mean, and what of it a machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdm.errors import UsageError
from cdm.runtimes.run_as import SAME, USUAL, Ids, OneUser, UserRange, check, chosen, parse_range, parse_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")


def machine(root: Path, *, mapped: str = "0 0 4294967295", lent: str = "", names: str = "root:x:0:0::/:\n") -> Path:
    """A machine's files."""
    for path, text in {
        "proc/self/uid_map": mapped,
        "proc/self/gid_map": mapped,
        "etc/subuid": lent,
        "etc/subgid": lent,
        "etc/passwd": names,
        "etc/group": "root:x:0:\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def test_root_takes_the_first_range_that_is_free(root: Path) -> None:
    assert chosen(None, "", machine(root)) == USUAL[0]
    assert chosen("", None, machine(root, mapped="0 100000 65536")) == USUAL[1]
    assert chosen(None, None, machine(root, lent="me:1900000100:10\n")) == USUAL[1]
    assert chosen(None, None, machine(root, names="a:x:1900065535:1::/:\n")) == USUAL[1]
    with pytest.raises(UsageError) as caught:
        chosen(None, None, machine(root, mapped="0 1000 1\n1 100000 1000"))
    assert "only 0-0, 1-1000 exist here" in str(caught.value)
    assert "--run-as same" in str(caught.value)


def test_others_than_root_run_them_as_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert chosen(None, None, machine(tmp_path)) == SAME
    assert chosen("1000", None, machine(tmp_path)) == SAME


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        ("100-200", "150 is somebody else's"),
        ("65000-65534", "65534 is somebody else's"),
        ("300000-300010", "231072-365535 belong to users' own containers"),
        ("4000000000-4294967294", "only 0-3999999999 exist here"),
        ("5-3", "'5-3' is no range of users"),
        ("0-3", "'0-3' is no range of users"),
        ("a-b", "'a-b' is no range of users"),
        ("1-99999999999", "is no range of users"),
    ],
)
def test_a_range_that_cannot_be_had(root: Path, users: str, problem: str) -> None:
    machine(root, mapped="0 0 4000000000", lent="a:100000:10\nb:231072:134464\nbroken\n", names="x:x:150:1::/:\nbad\n")
    with pytest.raises(UsageError, match=problem):
        chosen(None, users, root)


def test_what_the_options_mean(root: Path) -> None:
    machine(root)
    assert chosen(None, " 70000-80000 ", root) == UserRange(70_000, 80_000)
    assert chosen("same", None, root) == SAME
    assert chosen("nobody", None, root).uid == 65534  # type: ignore[union-attr]
    assert chosen("123456", None, root) == OneUser(123_456, 123_456)
    for bad in ("root", "0", "no such user", "99999999999", "²"):
        with pytest.raises(UsageError, match="--run-as"):
            parse_user(bad)
    with pytest.raises(UsageError, match="choose one of them"):
        chosen("nobody", "1-2", root)
    assert 5 in parse_range("5-9")
    assert 10 not in parse_range("5-9")


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert Ids.read("uid", tmp_path) == Ids((), (), ())
    assert Ids((), (), ()).problem(UserRange(5, 6)) is None


@as_root
def test_the_folders_above_must_let_slices_through(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o700)
    with pytest.raises(UsageError, match=r"may not be entered by user 1900000000; .*another --folder"):
        check(USUAL[0], tmp_path / "shut" / "node" / "folder")
    check(USUAL[0], Path("/var/lib/cdm-that-is-not-there/node"))
    check(OneUser(12345, 12345), Path("/var/lib/cdm-that-is-not-there/node"))
    check(SAME, tmp_path / "shut" / "node")
