"""Operators of NATS that there are already: what `nats auth operator backup` writes of one, and what is taken of it.

Taken are a key that signs accounts, the operator's JWT, that of the servers' own account, and a user of that account,
who tells servers of accounts. The keys of other accounts and of their users are not.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cdm.errors import UsageError
from cdm.model.problems import UNREADABLE
from cdm.secure.jwts import NatsKey


class _Key(Struct):
    key: str = ""


class _Account(Struct, rename="camel"):
    token: str
    key: _Key = msgspec.field(default_factory=_Key)
    signing_keys: list[_Key] | None = None


class _Backup(Struct, rename="camel"):
    name: str
    token: str
    key: _Key = msgspec.field(default_factory=_Key)
    signing_keys: list[_Key] | None = None
    accounts: list[_Account] | None = None


class Authority(Struct, frozen=True):
    """An operator, as far as accounts are signed in its name."""

    name: str
    token: str
    """Its JWT."""
    signer: NatsKey
    """One of its signing keys, or its own where it has none."""
    system: str
    """Public key of the servers' own account."""
    system_token: str
    """That account's JWT."""
    system_signer: NatsKey
    """Signs users of that account."""


def read_backup(path: Path) -> Authority:
    """Read what `nats auth operator backup` wrote. Raises `UsageError`, without anything secret."""
    try:
        return _authority(msgspec.json.decode(path.read_bytes(), type=_Backup), path)
    except OSError as error:
        raise UsageError(f"--operator {path}: {error.strerror}") from None
    except (*UNREADABLE, KeyError, TypeError):
        raise UsageError(
            f"--operator {path} is no backup of an operator; write one: nats auth operator backup NAME backup.json "
            "(one that is encrypted must be opened first: nats auth nkey unseal)"
        ) from None


class TokenClaims(Struct):
    """What a JWT says."""

    sub: str
    name: str
    nats: dict[str, Any]
    iat: int = 0
    """When it was issued, in seconds since 1970."""


def _authority(backup: _Backup, path: Path) -> Authority:
    what, claims = f"operator {backup.name} in {path}", claims_of(backup.token)
    signing = set(claims.nats.get("signing_keys") or ())
    # One that has signing keys may insist on them.
    signer = _one_of(signing or {claims.sub}, [*(backup.signing_keys or ()), backup.key])
    if signer is None:
        raise UsageError(f"{what} has no key that signs accounts")
    system = claims.nats.get("system_account", "")
    for account in backup.accounts or ():
        own = claims_of(account.token)
        if own.sub == system:
            # Keys that are told with a scope sign users of that scope only.
            plain = {each for each in own.nats.get("signing_keys") or () if isinstance(each, str)}
            user_signer = _one_of({system, *plain}, [account.key, *(account.signing_keys or ())])
            if user_signer is None:
                raise UsageError(f"{what} has no key of its system account: nobody could tell servers of accounts")
            return Authority(backup.name, backup.token, signer, system, account.token, user_signer)
    raise UsageError(f"{what} has no system account: nobody could tell servers of accounts")


def claims_of(token: str) -> TokenClaims:
    """What a JWT says, unverified. Raises `ValueError`."""
    _, body, _ = token.split(".")
    return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=TokenClaims)


def _one_of(public: set[str], keys: list[_Key]) -> NatsKey | None:
    """The key, of several, that belongs to one of the public ones."""
    for each in keys:
        if each.key:
            found = NatsKey(each.key)
            if found.public in public:
                return found
    return None
