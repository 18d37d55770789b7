"""`cdm secure`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from cdm.cli import Exit
from tests.harness import forked
from tests.harness.processes import environment
from tests.harness.servers import binary

pytestmark = pytest.mark.quick


def secure(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a folder."""
    done = forked.ran("secure", *arguments, cwd=folder, env={**environment(), "COLUMNS": "200"})
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def made(folder: Path, *arguments: str) -> dict[str, str]:
    """Run it; returns the seeds that there are afterwards, none of which it tells."""
    done = secure(folder, *arguments)
    assert done.returncode == 0, done.stderr
    keys = {path.stem: path.read_text(encoding="utf-8").strip() for path in (folder / "site" / "keys").iterdir()}
    shown = done.stdout + "".join(
        path.read_text(encoding="utf-8")
        for path in (folder / "site").rglob("*")
        if path.is_file() and path.suffix != ".nk"
    )
    assert not [seed for seed in keys.values() if seed in shown]
    return keys


NEW = ("--nodes", "node-1", "node-2", "--managers", "manager-1,manager-2", "--out", "site")


def test_everybody_has_a_key_and_the_server_takes_it(tmp_path: Path) -> None:
    keys = made(tmp_path, *NEW)
    assert keys.keys() == {"admin", "operator", "manager-1", "manager-2", "node-1", "node-2"}
    assert len(set(keys.values())) == len(keys)
    for path in (tmp_path / "site").rglob("*"):
        private = path.is_dir() or path.suffix == ".nk" or path.name == "site.json"
        assert not private or not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not stat.S_IMODE((tmp_path / "site").stat().st_mode) & 0o077
    context = json.loads((tmp_path / "site/nats/context/node-1.json").read_text(encoding="utf-8"))
    assert Path(context["nkey"]) == tmp_path / "site/keys/node-1.nk"
    assert context["inbox_prefix"] == "_INBOX_node-1"
    subprocess.run([binary(), "-t", "-c", str(tmp_path / "site/server.conf")], check=True, capture_output=True)


def test_nodes_are_added_and_all_other_keys_stay(tmp_path: Path) -> None:
    before = made(tmp_path, *NEW)
    server = (tmp_path / "site/server.conf").read_text(encoding="utf-8") + "# mine\n"
    (tmp_path / "site/server.conf").write_text(server, encoding="utf-8")
    after = made(tmp_path, "--out", "site", "--nodes", "node-2", "web1.example.org")
    assert after == {**before, "web1=2Eexample=2Eorg": after["web1=2Eexample=2Eorg"]}
    assert "$KV.slices.web1=2Eexample=2Eorg.>" in (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")
    assert (tmp_path / "site/server.conf").read_text(encoding="utf-8") == server
    subprocess.run([binary(), "-t", "-c", str(tmp_path / "site/server.conf")], check=True, capture_output=True)


def test_a_key_is_rotated_and_a_user_removed(tmp_path: Path) -> None:
    before = made(tmp_path, *NEW)
    after = made(tmp_path, "--out", "site", "--rotate", "node-1", "--remove", "node-2", "manager-2")
    assert after.keys() == before.keys() - {"node-2", "manager-2"}
    assert {name for name in after if after[name] != before[name]} == {"node-1"}
    text = (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")
    assert "node-2" not in text
    again = made(tmp_path, "--out", "site")
    assert again == after
    assert (tmp_path / "site/accounts.conf").read_text(encoding="utf-8") == text


def test_seeds_may_be_taken_away(tmp_path: Path) -> None:
    made(tmp_path, *NEW)
    (tmp_path / "site/keys/node-1.nk").unlink()
    assert "node-1" not in made(tmp_path, "--out", "site", "--nodes", "node-3")
    assert "NODE_node-1" in (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")


def test_what_is_done_is_told_as_json(tmp_path: Path) -> None:
    told = json.loads(secure(tmp_path, *NEW, "--json").stdout)
    assert told["accounts"] == "site/accounts.conf"
    assert {(each["name"], each["role"], each["what"]) for each in told["users"]} >= {
        ("admin", "admin", "new"),
        ("manager-1", "manager", "new"),
        ("node-1", "node", "new"),
    }
    public = {each["name"]: each["public"] for each in told["users"]}
    assert all(re.fullmatch("U[A-Z2-7]{55}", key) for key in public.values())
    told = json.loads(secure(tmp_path, "--out", "site", "--rotate", "node-1", "--json").stdout)
    assert {each["name"]: each["public"] for each in told["users"] if each["what"] == "kept"}.items() <= public.items()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--out", "new", "--nodes", "a"), Exit.USAGE, "without a manager nothing is managed"),
        (("--out", "new", "--nodes", "a", "--managers", "a"), Exit.USAGE, "'a' cannot be both"),
        (("--out", "new", "--managers", "operator"), Exit.USAGE, "'operator' is the name of a user"),
        (("--out", "new", "--managers", "a b"), Exit.USAGE, "node id 'a b'"),
        (("--out", "new", "--managers", "m", "--cert", "c"), Exit.USAGE, "--cert and --key belong together"),
        (("--out", "new", "--managers", "m", "--prefix", "a.b"), Exit.USAGE, "--prefix 'a.b'"),
        (("--out", "site", "--nodes", "manager-1"), Exit.USAGE, "'manager-1' cannot be both"),
        (
            ("--out", "site", "--rotate", "node-9"),
            Exit.USAGE,
            "--rotate node-9: there is no such user; there is: ",
        ),
        (("--out", "site", "--remove", "admin"), Exit.USAGE, "--remove admin: every site has one"),
        (("--out", "site", "--remove", "node-1", "--rotate", "node-1"), Exit.USAGE, "the same command"),
        (("--out", "site", "--remove", "manager-1", "manager-2"), Exit.USAGE, "without a manager"),
        (("--out", "site", "--server", "tls://x"), Exit.USAGE, "--server is only for a new folder"),
        (("--out", "other", "--managers", "m"), Exit.CONFLICT, "other has no site.json, and is not empty"),
        (("--out", "stray", "--nodes", "node-3"), Exit.CONFLICT, "keys/node-3.nk is there"),
        (("--out", "edited", "--nodes", "node-3"), Exit.CONFLICT, "accounts.conf was changed by hand"),
        (("--out", "damaged", "--nodes", "node-3"), Exit.USAGE, "site.json is damaged"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_and_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], code: Exit, told: str
) -> None:
    made(tmp_path, *NEW)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for name in ("stray", "edited", "damaged"):
        assert secure(tmp_path, *NEW[:-1], name).returncode == 0
    (tmp_path / "stray/keys/node-3.nk").touch()
    (tmp_path / "edited/accounts.conf").write_text("# mine\n", encoding="utf-8")
    (tmp_path / "damaged/site.json").write_text("{", encoding="utf-8")
    before = _contents(tmp_path)
    done = secure(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert _contents(tmp_path) == before


def test_what_was_changed_by_hand_is_overwritten_with_force(tmp_path: Path) -> None:
    made(tmp_path, *NEW)
    (tmp_path / "site/accounts.conf").write_text("# mine\n", encoding="utf-8")
    made(tmp_path, "--out", "site", "--force")
    assert "NODE_node-1" in (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")


def _contents(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(path, folder): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
