"""JWTs of operators, accounts and users, as NATS has them (version 2 of its claims).

Written after the public description of NATS JWTs: header and claims as JSON, each in URL-safe base64 without padding,
then the ed25519 signature of both by the issuer's nkey. The operator signs accounts, an account signs its users, and
an *activation* by which it lets another account import one of its exports.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import nkeys

from cdm.secure.accounts import MOST_RESPONSES, RESPONSE_SECONDS, Account, Export, Grant, Import, User
from cdm.secure.members import COPIES, HUB, inbox_of

Kind = Literal["operator", "account", "user"]

_PREFIXES: dict[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
CLAIMS_UPDATE = "$SYS.REQ.CLAIMS.UPDATE"
"""Where servers are told of an account."""
SYSTEM, SYSTEM_NEXT = "system", "system.next"
"""The user who tells servers of accounts, and the one that takes its place; a dot is in no other user's name."""
SYSTEM_USER = User(SYSTEM, "", (Grant("", (CLAIMS_UPDATE,)),), (f"{inbox_of(SYSTEM)}.>",))
PRIVATE = (HUB, COPIES)
"""Accounts whose exports ask for an activation: it is for them to say who may have what.

Others give little away, and activations are most of what an account's JWT holds.
"""
_HEAD = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_UNLIMITED = -1


class NatsKey:
    """An nkey that signs.

    Args:
        seed: as it is stored, ``S…``.

    Raises:
        ValueError: it is no seed.
    """

    def __init__(self, seed: str) -> None:
        try:
            self._pair = nkeys.from_seed(bytearray(seed.encode()))
        except Exception:  # noqa: BLE001  # many kinds, some with the seed in them
            raise ValueError("the seed is damaged") from None
        self.seed = seed
        self.public = bytes(self._pair.public_key).decode()

    def __repr__(self) -> str:
        return f"NatsKey({self.public})"

    def sign(self, text: str) -> bytes:
        """Its signature of a text."""
        return bytes(self._pair.sign(text.encode()))


def new_key(kind: Kind) -> NatsKey:
    """A key that nobody has yet."""
    return NatsKey(bytes(nkeys.encode_seed(os.urandom(32), _PREFIXES[kind])).decode())


def operator_token(operator: NatsKey, name: str, system: str, now: int) -> str:
    """The operator's own, signed by itself.

    Args:
        operator: its key.
        name: what people call it.
        system: public key of the servers' own account.
        now: seconds since 1970.
    """
    return _signed(operator, operator.public, name, "operator", {"system_account": system}, now)


def system_token(operator: NatsKey, system: str, signers: Sequence[str], now: int) -> str:
    """The account of the servers themselves, over which they are told of accounts.

    Args:
        operator: its key.
        system: the account's public key.
        signers: public keys, each of which signs a user who may tell servers of accounts.
        now: seconds since 1970.
    """
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1}
    scopes = [_scope(SYSTEM_USER, signer, Account("SYS", "", (SYSTEM_USER,))) for signer in signers]
    claims = {"limits": {**limits, "wildcards": True}, "signing_keys": scopes}
    return _signed(operator, system, "SYS", "account", claims, now)


def account_token(
    operator: NatsKey, account: Account, keys: Mapping[str, NatsKey], signers: Mapping[str, str], now: int
) -> str:
    """An account, signed by the operator.

    What a user may do stands here and not in the user's own JWT, so that it can be changed where the user's
    credentials are out of reach. Each user has a signing key, whose scope that is; without it in the account, the user
    is none of it any more.

    Args:
        operator: its key.
        account: what it may do, gives, and takes.
        keys: those of this account and of all that it takes something from, by the accounts' names.
        signers: public keys that sign users, by the users' names.
        now: seconds since 1970.
    """
    own, limits = keys[account.name].public, account.limits
    most = {
        "subs": _UNLIMITED,  # the scopes limit them
        "data": _UNLIMITED,
        "payload": limits.payload if limits else _UNLIMITED,
        "imports": _UNLIMITED,
        "exports": _UNLIMITED,
        "wildcards": True,
        "conn": limits.connections if limits else _UNLIMITED,
    }
    if account.consumers is not None:
        most |= {"mem_storage": _UNLIMITED, "disk_storage": _UNLIMITED, "streams": _UNLIMITED}
        most["consumer"] = account.consumers
    claims = {
        "limits": most,
        "signing_keys": [_scope(each, signers[each.name], account) for each in account.users],
        "exports": [_export(each, private=account.name in PRIVATE) for each in account.exports],
        "imports": [_import(each, own, keys[each.account], now) for each in account.imports],
    }
    return _signed(operator, own, account.name, "account", claims, now)


def _scope(user: User, signer: str, account: Account) -> dict[str, Any]:
    template = _permissions(user, account.limits.subscriptions if account.limits else _UNLIMITED)
    return {"kind": "user_scope", "key": signer, "role": user.name, "template": template}


def _permissions(user: User, subscriptions: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pub": {"allow": [subject for grant in user.publish for subject in grant.subjects]},
        "sub": {"allow": list(user.subscribe)},
        "subs": subscriptions,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
    }
    if user.responses:
        found["resp"] = {"max": MOST_RESPONSES, "ttl": RESPONSE_SECONDS * 10**9}
    return found


def user_token(signer: NatsKey, account: str, user: str, public: str, now: int) -> str:
    """A user of an account, with the permissions of the key that signs it.

    Args:
        signer: one of the account's signing keys.
        account: the account's public key.
        user: the user's name.
        public: the user's public key.
        now: seconds since 1970.
    """
    return _signed(signer, public, user, "user", {"issuer_account": account}, now)


def system_user_token(signer: NatsKey, account: str, public: str, now: int) -> str:
    """The user who tells servers of accounts, of an account that is somebody else's: its permissions are its own.

    Args:
        signer: the account's own key, or a signing key of it that has no scope.
        account: the account's public key.
        public: the user's public key.
        now: seconds since 1970.
    """
    issued_for = {} if signer.public == account else {"issuer_account": account}
    return _signed(signer, public, SYSTEM, "user", {**_permissions(SYSTEM_USER, _UNLIMITED), **issued_for}, now)


def credentials(token: str, seed: bytes) -> str:
    """The file by which a client shows who it is: the user's JWT, and the seed to prove it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "Whoever has this file is this user. Keep it as you keep the root password of that machine.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


def _export(export: Export, *, private: bool) -> dict[str, Any]:
    claims: dict[str, Any] = {"subject": export.subject, "type": "stream" if export.stream else "service"}
    if export.many:
        claims["response_type"] = "Stream"
    return {**claims, "token_req": True} if private else claims


def _import(each: Import, importer: str, exporter: NatsKey, now: int) -> dict[str, Any]:
    kind = "stream" if each.stream else "service"
    found = {"subject": each.subject, "account": exporter.public, "type": kind}
    if each.account in PRIVATE:
        claims = {"subject": each.subject, "kind": kind}
        found["token"] = _signed(exporter, importer, each.subject, "activation", claims, now)
    return {**found, "local_subject": each.to} if each.to else found


def _signed(issuer: NatsKey, subject: str, name: str, kind: str, claims: Mapping[str, Any], now: int) -> str:
    body: dict[str, Any] = {
        "iat": now,
        "iss": issuer.public,
        "sub": subject,
        "name": name,
        "nats": {**claims, "type": kind, "version": 2},
    }
    digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    text = f"{_encoded(_HEAD)}.{_encoded(json.dumps(body).encode())}"
    return f"{text}.{_encoded(issuer.sign(text))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
