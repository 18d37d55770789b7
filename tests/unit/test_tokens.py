"""JWTs of accounts: what they say, who signed them, and how long they get."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import nkeys
import pytest

from cdm.errors import UsageError
from cdm.model.artifact import node_id
from cdm.secure.accounts import Account
from cdm.secure.issuing import issued
from cdm.secure.jwts import NatsKey, new_key, operator_token, system_token, user_token
from cdm.secure.members import HUB, Members
from cdm.secure.operators import read_backup
from cdm.secure.permissions import accounts

pytestmark = pytest.mark.quick

MOST = 1024 * 1024
"""The longest message that a nats-server takes as it is shipped, in bytes: an account has to fit into one."""


def _claims(token: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


def _issued(found: tuple[Account, ...]) -> tuple[NatsKey, dict[str, NatsKey], dict[str, str]]:
    operator, keys = new_key("operator"), {each.name: new_key("account") for each in found}
    signers = {user.name: new_key("account").public for each in found for user in each.users}
    tokens = issued(found, operator, keys, signers, 1)
    return operator, keys, {each.name: tokens[keys[each.name].public] for each in found}


def test_what_is_signed_is_what_is_said() -> None:
    signer, user = new_key("account"), new_key("user")
    token = user_token(signer, "A", "node-1", user.public, 1)
    text, _, signature = token.rpartition(".")
    nkeys.from_seed(bytearray(signer.seed.encode())).verify(text.encode(), base64.urlsafe_b64decode(signature + "=="))
    claims = _claims(token)
    assert (claims["iss"], claims["sub"], claims["nats"]["issuer_account"]) == (signer.public, user.public, "A")


def test_a_thousand_nodes_fit_into_an_account() -> None:
    found = accounts(Members(tuple(node_id(f"node-{number}") for number in range(1000)), (node_id("m1"),)))
    _, _, tokens = _issued(found)
    assert max(map(len, tokens.values())) < MOST


def test_nothing_of_the_buckets_is_had_without_their_leave() -> None:
    """Each import is activated by the buckets' account, for this importer and this subject."""
    found = accounts(Members((node_id("node-1"), node_id("node-2")), (node_id("m1"),)))
    operator, keys, tokens = _issued(found)
    hub = _claims(tokens[HUB])
    assert hub["iss"] == operator.public
    assert all(export["token_req"] for export in hub["nats"]["exports"])
    for account in found:
        for each in _claims(tokens[account.name])["nats"]["imports"]:
            if each["account"] == keys[HUB].public:
                leave = _claims(each["token"])
                assert (leave["iss"], leave["sub"]) == (keys[HUB].public, keys[account.name].public)
                assert leave["nats"]["subject"] == each["subject"]


def _backup(path: Path, **other: Any) -> tuple[NatsKey, NatsKey]:
    """What `nats auth operator backup` writes of an operator without signing keys; returns its key and its system's."""
    operator, system = new_key("operator"), new_key("account")
    account = {"name": "SYS", "key": {"key": system.seed}, "token": system_token(operator, system.public, (), 1)}
    told = {
        "name": "ACME",
        "key": {"key": operator.seed},
        "token": operator_token(operator, "ACME", system.public, 1),
        "signingKeys": None,
        "accounts": [account | other.pop("account", {})],
        **other,
    }
    path.write_text(json.dumps(told), encoding="utf-8")
    return operator, system


def test_an_operator_signs_itself_where_it_has_no_signing_key(tmp_path: Path) -> None:
    operator, system = _backup(tmp_path / "acme.json")
    found = read_backup(tmp_path / "acme.json")
    assert (found.signer.public, found.system_signer.public) == (operator.public, system.public)
    assert operator.seed not in repr(found)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"key": {"key": ""}}, "has no key that signs accounts"),
        ({"key": {"key": new_key("operator").seed}}, "has no key that signs accounts"),
        ({"key": {"key": "SOA"}}, "is no backup of an operator"),
        ({"accounts": None}, "has no system account"),
        ({"account": {"key": {"key": ""}}}, "has no key of its system account"),
        ({"token": "x.y.z"}, "is no backup of an operator"),
    ],
)
def test_a_backup_that_is_not_whole_is_told(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    _backup(tmp_path / "acme.json", **other)
    with pytest.raises(UsageError, match=told):
        read_backup(tmp_path / "acme.json")


def test_a_seed_is_never_shown() -> None:
    key = new_key("operator")
    assert key.seed not in repr(key)
    with pytest.raises(ValueError, match="damaged") as raised:
        NatsKey(key.seed[:-1])
    assert key.seed[:-1] not in str(raised.value)
