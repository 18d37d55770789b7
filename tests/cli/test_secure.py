"""`cdm secure`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from cdm.cli import Exit
from cdm.errors import UsageError
from cdm.secure.issuers import Issuers
from cdm.secure.logins import issued_at, tokens_of
from cdm.secure.operators import claims_of
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
    assert "READERS" not in (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")
    after = made(tmp_path, "--out", "site", "--nodes", "node-2", "web1.example.org", "--readers", "router")
    assert after == {**before, **{name: after[name] for name in ("web1.example.org", "router")}}
    text = (tmp_path / "site/accounts.conf").read_text(encoding="utf-8")
    assert "$KV.slices.web1=2Eexample=2Eorg.>" in text
    assert "READERS" in text
    context = json.loads((tmp_path / "site/nats/context/web1.example.org.json").read_text(encoding="utf-8"))
    assert context["inbox_prefix"] == "_INBOX_web1=2Eexample=2Eorg"
    again = made(tmp_path, "--out", "site", "--rotate", "web1.example.org")
    assert {name for name in again if again[name] != after[name]} == {"web1.example.org"}
    assert (tmp_path / "site/server.conf").read_text(encoding="utf-8") == server
    subprocess.run([binary(), "-t", "-c", str(tmp_path / "site/server.conf")], check=True, capture_output=True)


def test_a_key_is_rotated_and_a_user_removed(tmp_path: Path) -> None:
    before = made(tmp_path, *NEW)
    after = made(tmp_path, "--out", "site", "--rotate", "node-1", "--remove", "node-2", "manager-2")
    assert after.keys() == before.keys() - {"node-2", "manager-2"}
    assert {name for name in after if after[name] != before[name]} == {"node-1"}
    done = secure(tmp_path, "--out", "site", "--nodes", "node-3", "--remove", "manager-1", "--managers", "manager-3")
    assert "cdm node forget manager-1" in done.stdout
    assert "nats-server --signal reload && sleep 1 && nats-server --signal reload" in done.stdout
    secure(tmp_path, "--out", "site", "--managers", "manager-1", "--remove", "manager-3", "node-3")
    after = made(tmp_path, "--out", "site")
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


def test_what_is_lost_is_made_again_where_it_can_be(tmp_path: Path) -> None:
    before = made(tmp_path, *NEW, "--server", "nats://127.0.0.1:4522,nats://127.0.0.2:4522")
    site = tmp_path / "site"
    assert 'listen: "0.0.0.0:4522"' in (site / "server.conf").read_text(encoding="utf-8")
    lost = [site / "site.json", site / "nats/context/node-1.json", site / "server.conf"]
    contents = [path.read_bytes() for path in lost]
    shutil.rmtree(site / "nats")
    for path in (lost[0], lost[2]):
        path.unlink()
    told = secure(tmp_path, "--out", "site").stderr
    assert "site/site.json is lost, and made anew from accounts.conf" in told
    assert "site/server.conf is not there; --store, with --cert and --key, as they were, make it anew" in told
    without = secure(tmp_path, "--out", "site", "--cert", "c", "--key", "k")
    assert (without.returncode, "give --store as it was, too" in without.stderr) == (Exit.USAGE, True)
    assert made(tmp_path, "--out", "site", "--store", "/var/lib/nats") == before
    assert [path.read_bytes() for path in lost] == contents
    (site / "keys/node-1.nk").unlink()
    shown = secure(tmp_path, "--out", "site").stdout
    assert "site/keys/node-1.nk (not there)" in shown
    assert "--rotate makes another" in shown
    assert "not there" not in secure(tmp_path, "--out", "site", "--rotate", "node-1").stdout
    # Somewhere else, and other authorities.
    made(tmp_path, "--out", "site", "--server", "tls://nats.example.org", "--ca", "new.pem")
    context = json.loads(lost[1].read_text(encoding="utf-8"))
    assert (context["url"], context["ca"]) == ("tls://nats.example.org", str(tmp_path / "new.pem"))


@pytest.mark.parametrize(
    ("then", "read"), [("", False), ("# A comment of an earlier version\n", False), ("no_auth_user: nobody\n", True)]
)
def test_servers_are_to_read_what_a_later_version_writes_otherwise(tmp_path: Path, then: str, read: bool) -> None:
    """Not where it is no more than a comment: what they have is as good."""
    made(tmp_path, *NEW)
    accounts, site = tmp_path / "site/accounts.conf", tmp_path / "site/site.json"
    now = accounts.read_bytes()
    accounts.write_bytes(now + then.encode())
    told = json.loads(site.read_text(encoding="utf-8"))
    told["accounts"] = hashlib.sha256(accounts.read_bytes()).hexdigest()
    site.write_text(json.dumps(told), encoding="utf-8")
    assert ("Copy site/accounts.conf to each server" in secure(tmp_path, "--out", "site").stdout) is read
    assert accounts.read_bytes() == now
    assert "Copy" not in secure(tmp_path, "--out", "site").stdout


def test_what_others_may_read_or_is_not_there_is_told(tmp_path: Path) -> None:
    clear = secure(tmp_path, *NEW[:-1], "clear", "--server", "tls://nats.example.org").stdout
    assert "the server offers no TLS, and the contexts ask for it" in clear
    files = ("--cert", "server.pem", "--key", "server.key")
    assert "server.pem is not there yet" in secure(tmp_path, *NEW, *files).stderr
    (tmp_path / "site/keys/node-1.nk").chmod(0o644)
    assert "others may read site/keys/node-1.nk: chmod 600" in secure(tmp_path, "--out", "site").stderr


SIGNED = ("--jwt", "--nodes", "node-1", "--managers", "m", "--out", "signed", "--server", "nats://127.0.0.1:9")


@pytest.mark.parametrize("lost", ["CDM.nk", "NODE_node-1.nk", "nats-operator.nk", ""])
def test_no_key_that_signs_is_made_anew(tmp_path: Path, lost: str) -> None:
    assert secure(tmp_path, *SIGNED).returncode == 0
    path = tmp_path / "signed/issuers" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = _contents(tmp_path)
    done = secure(tmp_path, "--out", "signed", "--nodes", "node-2")
    assert done.returncode == Exit.USAGE
    assert f"signed/issuers/{lost or 'nats-operator.nk'} is missing: whoever changes accounts needs all" in done.stderr
    assert _contents(tmp_path) == before


def test_servers_that_are_away_are_told_later(tmp_path: Path) -> None:
    assert secure(tmp_path, *SIGNED).returncode == 0
    system = (tmp_path / "signed/keys/system.creds").read_bytes()
    done = secure(tmp_path, "--out", "signed", "--nodes", "node-2", "--rotate", "system", "--push")
    assert done.returncode == Exit.FAILED
    assert done.stderr.startswith("cdm: signed is written, but the servers were not told: no NATS server answered at ")
    assert "cdm secure --out signed --push" in done.stderr
    assert (tmp_path / "signed/keys/node-2.creds").exists()
    # The one that servers know is kept until they know another.
    assert (tmp_path / "signed/keys/system.creds").read_bytes() == system


def test_who_tells_servers_and_is_lost_is_made_again(tmp_path: Path) -> None:
    """No server knows the new one, until it is started with it: there is no next one to wait for."""
    assert secure(tmp_path, *SIGNED, "--prefix", "shop").stdout.count("--context admin --prefix shop") == 1
    assert secure(tmp_path, "--out", "signed", "--rotate", "system").returncode == 0  # servers were not told of it
    keys = tmp_path / "signed/keys"
    (keys / "system.creds").unlink()
    done = secure(tmp_path, "--out", "signed", "--push")
    assert done.returncode == Exit.DENIED
    assert "signed/keys/system.creds is missing: --rotate system makes another, which servers know once" in done.stderr
    shown = secure(tmp_path, "--out", "signed", "--rotate", "system", "node-1").stdout
    assert "it is another, which servers know once they have signed/accounts.conf and are restarted" in shown
    assert "They are read when it connects again" in shown
    assert [path.name for path in keys.iterdir() if "system" in path.name] == ["system.creds"]
    known = json.loads((tmp_path / "signed/site.json").read_text(encoding="utf-8"))
    tokens = map(claims_of, tokens_of((tmp_path / "signed/accounts.conf").read_text(encoding="utf-8")).values())
    (system,) = (each for each in tokens if each.name == "SYS")
    signing = [each["key"] for each in system.nats["signing_keys"]]
    assert (known["system_next"], signing) == ("", [known["signers"]["system"]])


def test_jwts_that_say_nothing_new_are_not_issued_again(tmp_path: Path) -> None:
    assert secure(tmp_path, *SIGNED).returncode == 0
    accounts = tmp_path / "signed/accounts.conf"
    before, issued = accounts.read_bytes(), issued_at(accounts.read_text(encoding="utf-8"))
    while int(time.time()) == issued:
        time.sleep(0.1)
    told = json.loads(secure(tmp_path, "--out", "signed", "--json").stdout)
    assert (told["changed"], accounts.read_bytes()) == (False, before)
    told = json.loads(secure(tmp_path, "--out", "signed", "--nodes", "node-9", "--json").stdout)
    assert told["changed"] is True
    assert (issued_at(accounts.read_text(encoding="utf-8")) or 0) > (issued or 0)


def test_readers_that_are_gone_are_let_in_nowhere(tmp_path: Path) -> None:
    """Servers remember an account that they were told of: it has to be told that it is of nobody."""
    assert secure(tmp_path, *SIGNED, "--readers", "router").returncode == 0
    assert secure(tmp_path, "--out", "signed", "--remove", "router").returncode == 0
    tokens = tokens_of((tmp_path / "signed/accounts.conf").read_text(encoding="utf-8")).values()
    (readers,) = (each for each in map(claims_of, tokens) if each.name == "READERS")
    assert readers.nats["limits"]["conn"] == 0
    assert not readers.nats["signing_keys"]


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
        (("--out", "site", "--cert", "x", "--key", "y"), Exit.USAGE, "edit site/server.conf"),
        (("--out", "site", "--jwt"), Exit.USAGE, "--jwt is only for a new folder"),
        (("--out", "site", "--push"), Exit.USAGE, "--push is for a folder of --jwt"),
        (("--out", "site", "--server", "tls://x:y"), Exit.USAGE, "write host, host:port or nats://host:port"),
        (("--out", "site", "--readers", "node-1"), Exit.USAGE, "'node-1' is a node: give the reader another name"),
        (("--out", "new", "--managers", "m", "--operator", "none"), Exit.USAGE, "--operator none: No such file"),
        (("--out", "new", "--managers", "m", "--operator", "damaged/site.json"), Exit.USAGE, "NAME backup.json"),
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


def test_what_an_operator_of_before_needs_is_missed_and_never_made_up(tmp_path: Path) -> None:
    issuers = Issuers(tmp_path / "issuers", foreign=False)
    issuers.create(None)
    assert issuers.operator_token(1).count(".") == 2, "its own it signs"
    foreign = Issuers(tmp_path / "issuers", foreign=True)
    with pytest.raises(UsageError, match=r"nats-operator\.jwt is missing"):
        foreign.check(())
    (tmp_path / "issuers" / "nats-operator.jwt").write_text(issuers.operator_token(1))
    with pytest.raises(UsageError, match=r"SYS\.jwt is missing"):
        _ = foreign.system
    (tmp_path / "issuers" / "SYS.jwt").write_text("nonsense")
    with pytest.raises(UsageError, match=r"SYS\.jwt is damaged"):
        _ = foreign.system
