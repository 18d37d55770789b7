"""Accounts as JWTs: what the operator of the servers signs for each account, and a server's configuration with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

from msgspec.structs import replace

from cdm.secure.accounts import Account, Export
from cdm.secure.jwts import NatsKey, account_token

Keys = Mapping[str, NatsKey]
"""The accounts' keys, by the accounts' names."""


def issued(
    accounts: Iterable[Account], operator: NatsKey, keys: Keys, signers: Mapping[str, str], now: int
) -> dict[str, str]:
    """The JWT of each account, by its public key.

    Args:
        accounts: all of them.
        operator: who signs them.
        keys: the accounts' own.
        signers: public keys that sign users, by the users' names.
        now: seconds since 1970.
    """
    return {keys[each.name].public: account_token(operator, _summarised(each), keys, signers, now) for each in accounts}


def preload(tokens: Mapping[str, str]) -> str:
    """The block by which a server knows accounts when it starts; those that it was told of since are newer."""
    lines = "".join(f"  {public}: {token}\n" for public, token in tokens.items())
    return f"resolver_preload {{\n{lines}}}\n"


def _summarised(account: Account) -> Account:
    """One export for all nodes, in the place of one for each.

    Which node may import which subject is in what it imports: the operator signs that, and the exporter's activation
    with it. So the account of the buckets need not grow by all that is open to each node.
    """
    exports: dict[tuple[str, bool], Export] = {}
    for each in account.exports:
        subject = reduce(_any, each.accounts, each.subject)
        known = exports.get((subject, each.stream))
        exports[subject, each.stream] = replace(each, subject=subject, many=each.many or bool(known and known.many))
    # A server takes no account that exports a subject twice.
    return replace(
        account,
        exports=tuple(
            each
            for (subject, stream), each in exports.items()
            if not any(subject != other and stream == kind and _covers(other, subject) for other, kind in exports)
        ),
    )


def _covers(wide: str, narrow: str) -> bool:
    """Whether every subject of the second pattern is one of the first."""
    ours, theirs = wide.split("."), narrow.split(".")
    if ours[-1] == ">":
        ours, theirs = ours[:-1], theirs[: len(ours) - 1]
    return len(ours) == len(theirs) and all(own in ("*", other) for own, other in zip(ours, theirs, strict=True))


def _any(subject: str, taker: str) -> str:
    """The subject with ``*`` in the place of the token that names who takes it."""
    _, _, node = taker.partition("NODE_")
    if not node:
        return subject
    return ".".join("*" if token == node or token.endswith(f"-{node}") else token for token in subject.split("."))
