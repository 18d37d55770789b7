"""How servers know users: by public keys in their configuration, or by JWTs that the servers' operator signs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import DecodeError

from cdm.secure.accounts import Account, AccountLimits, User
from cdm.secure.configuration import ACCOUNTS_HEAD, rendered
from cdm.secure.issuers import Issuers
from cdm.secure.issuing import issued, preload
from cdm.secure.jwts import SYSTEM, SYSTEM_NEXT, credentials, new_key, system_user_token, user_token
from cdm.secure.keys import Pair
from cdm.secure.operators import Authority, claims_of

_RETIRED = AccountLimits(connections=0, payload=0)

JWT_HEAD = """\
# Who may do what, as JWTs. Written by `cdm secure`, and written anew at each change: include it in the configuration of
# each server. A server that runs is told of changes by `cdm secure --push`, and remembers them: what it knows better it
# does not take from here.
# Nothing secret is in this file.

"""


class Logins(Protocol):
    """One of the two ways."""

    suffix: str
    """Of files with what a user shows."""
    context: str
    """Field of a context that names such a file."""

    def shown_by(self, account: Account, user: User, pair: Pair) -> bytes:
        """What the user's file holds: what it shows to servers."""

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str], now: int) -> str:
        """The file that servers include.

        Args:
            accounts: all of them.
            publics: the users' public keys, by their names.
            now: when JWTs are issued, in seconds since 1970. At the same time the same is issued again, to the letter.
        """


class ByKeys:
    """Users show that they have a seed, whose public key is in the configuration."""

    suffix = ".nk"
    context = "nkey"

    def shown_by(self, account: Account, user: User, pair: Pair) -> bytes:
        """The seed."""
        return pair.seed + b"\n"

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str], now: int) -> str:
        """All accounts, in words of the server's configuration."""

        def login(user: User) -> str:
            return f"nkey: {publics[user.name]}"

        return ACCOUNTS_HEAD + rendered(accounts, login)


class ByTokens:
    """Users show a JWT that is signed by a key of their account, which is in the account's JWT.

    Args:
        issuers: the keys that sign.
        signers: public keys of the users' signing keys, as they are known; new ones are added.
        retired: names of accounts that were given up; servers may still know them.
    """

    suffix = ".creds"
    context = "creds"

    def __init__(self, issuers: Issuers, signers: Mapping[str, str], retired: Sequence[str]) -> None:
        self._issuers = issuers
        self.signers = dict(signers)
        self._retired = retired

    def shown_by(self, account: Account, user: User, pair: Pair) -> bytes:
        """The user's JWT with its seed. The key that signs it is used once, and given up."""
        return self._shown_by(user.name, self._issuers.account(account.name).public, pair)

    def shown_by_system(self, pair: Pair, name: str) -> bytes:
        """The same of a user who tells servers of accounts."""
        return self._shown_by(name, self._issuers.system, pair)

    def _shown_by(self, user: str, account: str, pair: Pair) -> bytes:
        signer = new_key("account")
        self.signers[user] = signer.public
        return credentials(user_token(signer, account, user, pair.public, _now()), pair.seed).encode()

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str], now: int) -> str:
        """The operator, the servers' own account, and the accounts' JWTs for a server that knows none yet."""
        everything = (*accounts, *(Account(name, "", (), limits=_RETIRED) for name in self._retired))
        keys = {each.name: self._issuers.account(each.name) for each in everything}
        system = self._issuers.system
        users = [self.signers[name] for name in (SYSTEM, SYSTEM_NEXT) if name in self.signers]
        tokens = {
            **issued(everything, self._issuers.operator, keys, self.signers, now),
            system: self._issuers.system_token(users, now),
        }
        return f"{JWT_HEAD}operator: {self._issuers.operator_token(now)}\nsystem_account: {system}\n{preload(tokens)}"


def shown_to(authority: Authority, pair: Pair) -> bytes:
    """What the user shows who tells servers of accounts where their own account is somebody else's."""
    token = system_user_token(authority.system_signer, authority.system, pair.public, _now())
    return credentials(token, pair.seed).encode()


def tokens_of(text: str) -> dict[str, str]:
    """The accounts' JWTs in a file that was written with them, by the accounts' public keys."""
    _, _, block = text.partition("resolver_preload {\n")
    lines = (line.split(": ", 1) for line in block.splitlines() if ": " in line)
    return {public.strip(): token for public, token in lines}


def issued_at(text: str) -> int | None:
    """When the accounts' JWTs in a file were issued last, in seconds since 1970; None: there are none."""
    try:
        return max((claims_of(token).iat for token in tokens_of(text).values()), default=None)
    except (ValueError, DecodeError):  # damaged by hand
        return None


def _now() -> int:
    return int(time.time())
