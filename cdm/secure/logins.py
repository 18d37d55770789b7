"""How servers know users: by public keys in their configuration, or by JWTs that the servers' operator signs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cdm.errors import UsageError
from cdm.secure.accounts import Account, AccountLimits, User
from cdm.secure.configuration import ACCOUNTS_HEAD, rendered
from cdm.secure.issuing import issued, preload
from cdm.secure.jwts import SYSTEM, NatsKey, credentials, new_key, operator_token, system_token, user_token
from cdm.secure.keys import Pair, write_private

ISSUERS = "issuers"
"""The folder of the keys that sign: the operator's, and each account's."""
_OPERATOR = "nats-operator"
_SYSTEM_ACCOUNT = "SYS"
_RETIRED = AccountLimits(connections=0, payload=0)

JWT_HEAD = """\
# Who may do what, as JWTs. Written by `cdm secure`, and written anew at each change: include it in the configuration of
# each server. A server that runs is told of changes by `cdm secure --push`, and remembers them.
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

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str]) -> str:
        """The file that servers include.

        Args:
            accounts: all of them.
            publics: the users' public keys, by their names.
        """


class ByKeys:
    """Users show that they have a seed, whose public key is in the configuration."""

    suffix = ".nk"
    context = "nkey"

    def shown_by(self, account: Account, user: User, pair: Pair) -> bytes:
        """The seed."""
        return pair.seed + b"\n"

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str]) -> str:
        """All accounts, in words of the server's configuration."""

        def login(user: User) -> str:
            return f"nkey: {publics[user.name]}"

        return ACCOUNTS_HEAD + rendered(accounts, login)


class ByTokens:
    """Users show a JWT that is signed by a key of their account, which is in the account's JWT.

    Args:
        folder: where the keys are that sign.
        signers: public keys of the users' signing keys, as they are known; new ones are added.
        retired: names of accounts that were given up; servers may still know them.
    """

    suffix = ".creds"
    context = "creds"

    def __init__(self, folder: Path, signers: Mapping[str, str], retired: Sequence[str]) -> None:
        self._folder = folder
        self.signers = dict(signers)
        self._retired = retired

    def create(self) -> None:
        """Make the keys of the operator and of the servers' own account."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for name, key in ((_OPERATOR, new_key("operator")), (_SYSTEM_ACCOUNT, new_key("account"))):
            write_private(self._file(name), f"{key.seed}\n".encode())

    def shown_by(self, account: Account, user: User, pair: Pair) -> bytes:
        """The user's JWT with its seed. The key that signs it is used once, and given up."""
        return self._shown_by(user.name, self._own(account.name).public, pair)

    def shown_by_system(self, pair: Pair) -> bytes:
        """The same of the user who tells servers of accounts."""
        return self._shown_by(SYSTEM, self._key(_SYSTEM_ACCOUNT).public, pair)

    def _shown_by(self, user: str, account: str, pair: Pair) -> bytes:
        signer = new_key("account")
        self.signers[user] = signer.public
        return credentials(user_token(signer, account, user, pair.public, _now()), pair.seed).encode()

    def text(self, accounts: Sequence[Account], publics: Mapping[str, str]) -> str:
        """The operator, the servers' own account, and the accounts' JWTs for a server that knows none yet."""
        operator, system = self._key(_OPERATOR), self._key(_SYSTEM_ACCOUNT)
        everything = (*accounts, *(Account(name, "", (), limits=_RETIRED) for name in self._retired))
        keys = {each.name: self._own(each.name) for each in everything}
        tokens = issued(everything, operator, keys, self.signers, _now())
        tokens[system.public] = system_token(operator, system.public, self.signers[SYSTEM], _now())
        return (
            f"{JWT_HEAD}operator: {operator_token(operator, 'cdm', system.public, _now())}\n"
            f"system_account: {system.public}\n{preload(tokens)}"
        )

    def _own(self, account: str) -> NatsKey:
        """The account's own key, made where there is none yet."""
        if not self._file(account).exists():
            write_private(self._file(account), f"{new_key('account').seed}\n".encode())
        return self._key(account)

    def _key(self, name: str) -> NatsKey:
        try:
            return NatsKey(self._file(name).read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            raise UsageError(
                f"{self._file(name)} is missing: whoever changes accounts needs all of {ISSUERS}"
            ) from None
        except ValueError as error:
            raise UsageError(f"{self._file(name)} is damaged: {error}") from None

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.nk"


def tokens_of(text: str) -> list[str]:
    """The accounts' JWTs in a file that was written with them."""
    _, _, block = text.partition("resolver_preload {\n")
    return [line.split(": ", 1)[1] for line in block.splitlines() if ": " in line]


def _now() -> int:
    return int(time.time())
