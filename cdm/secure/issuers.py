"""The keys that sign: the operator's, and each account's. Who has them can be anybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import DecodeError

from cdm.errors import UsageError
from cdm.secure.jwts import NatsKey, new_key, operator_token, system_token
from cdm.secure.keys import write_private
from cdm.secure.operators import Authority, claims_of

ISSUERS = "issuers"
"""The folder's name."""
_OPERATOR = "nats-operator"
_SYSTEM_ACCOUNT = "SYS"


class Issuers:
    """The folder.

    What is of an operator that there was before is kept as it was: its JWT, and that of the servers' own account.

    Args:
        folder: where they are.
        foreign: whether the operator was there before.
    """

    def __init__(self, folder: Path, *, foreign: bool) -> None:
        self._folder = folder
        self._foreign = foreign

    def create(self, authority: Authority | None) -> None:
        """Make the keys of the operator and of the servers' own account, or take those that there are."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if authority is None:
            self._write(_OPERATOR, new_key("operator"))
            self._write(_SYSTEM_ACCOUNT, new_key("account"))
            return
        self._write(_OPERATOR, authority.signer)
        write_private(self._token(_OPERATOR), f"{authority.token}\n".encode())
        write_private(self._token(_SYSTEM_ACCOUNT), f"{authority.system_token}\n".encode())

    def add(self, accounts: Iterable[str]) -> None:
        """Make the keys of accounts that are not there yet; one that was given up goes on with its own."""
        for name in accounts:
            if not self._key(name).exists():
                self._write(name, new_key("account"))

    def check(self, accounts: Iterable[str]) -> None:
        """See that the keys of accounts that servers know are there: with other keys they would be other accounts."""
        for name in (_OPERATOR, *accounts):
            self.account(name)
        self._kept(_OPERATOR)
        self._kept(_SYSTEM_ACCOUNT)

    @property
    def operator(self) -> NatsKey:
        """Signs accounts. Raises `UsageError`, as all of these do: a file is missing, or damaged."""
        return self.account(_OPERATOR)

    def account(self, name: str) -> NatsKey:
        """The key of one of this folder's own accounts."""
        path = self._key(name)
        try:
            return NatsKey(_text(path))
        except ValueError as error:
            raise UsageError(f"{path} is damaged: {error}") from None

    def operator_token(self, now: int) -> str:
        """The operator's JWT; one of ours is issued now, in seconds since 1970."""
        return self._kept(_OPERATOR) or operator_token(self.operator, "cdm", self.system, now)

    @property
    def system(self) -> str:
        """Public key of the servers' own account."""
        kept = self._kept(_SYSTEM_ACCOUNT)
        return claims_of(kept).sub if kept else self.account(_SYSTEM_ACCOUNT).public

    def system_token(self, signers: Sequence[str], now: int) -> str:
        """The JWT of the servers' own account; ``signers``: public keys that sign users of it, where it is ours."""
        return self._kept(_SYSTEM_ACCOUNT) or system_token(self.operator, self.system, signers, now)

    def _kept(self, name: str) -> str:
        """The JWT of an operator that was there before, or of its system account; empty: they are ours."""
        if not self._foreign:
            return ""
        path = self._token(name)
        try:
            claims_of(token := _text(path))
        except (ValueError, DecodeError) as error:
            raise UsageError(f"{path} is damaged: {error}") from None
        return token

    def _write(self, name: str, key: NatsKey) -> None:
        write_private(self._key(name), f"{key.seed}\n".encode())

    def _key(self, name: str) -> Path:
        return self._folder / f"{name}.nk"

    def _token(self, name: str) -> Path:
        return self._folder / f"{name}.jwt"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing: whoever changes accounts needs all of {ISSUERS}, as it was; take it from a backup, or "
            "set up another site with another --out: then all keys are new"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} is damaged: {error}") from None
