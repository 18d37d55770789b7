"""The folder of `cdm secure`: a server's configuration, the users' keys, and contexts for the `nats` tool.

``site.json`` holds who there is, with public keys only: seeds may be taken away to where they are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import Conflict, UsageError
from cdm.model.artifact import NodeId, node_id
from cdm.model.keys import decode_node, encode_node
from cdm.model.problems import UNREADABLE
from cdm.secure.configuration import server_file
from cdm.secure.jwts import SYSTEM
from cdm.secure.keys import Pair, new_pair, write_private
from cdm.secure.logins import ISSUERS, ByKeys, ByTokens, tokens_of
from cdm.secure.permissions import Members, account_of, accounts, inbox_of
from cdm.store.access import Access

ACCOUNTS = "accounts.conf"
SERVER = "server.conf"
SITE = "site.json"
KEYS = "keys"
CONTEXTS = Path("nats") / "context"
"""Where the `nats` tool, and cdm, look for contexts beneath XDG_CONFIG_HOME."""
RESERVED = ("admin", "operator")
"""Users that every site has."""

Role = Literal["admin", "operator", "system", "manager", "node"]
What = Literal["new", "rotated", "removed", "kept"]


class Tls(Struct, frozen=True, omit_defaults=True):
    """Files of the server and of its clients; empty: none."""

    cert: str = ""
    key: str = ""
    ca: str = ""


class SiteRecord(Struct, frozen=True):
    """What ``site.json`` holds."""

    version: int
    prefix: str
    url: str
    ca: str
    users: dict[str, str]
    """Public keys of the admin and the operator."""
    managers: dict[str, str]
    """By node, as in keys."""
    nodes: dict[str, str]
    accounts: str = ""
    """Digest of ``accounts.conf`` as it was written."""
    system: str = ""
    """Where users show JWTs: public key of the user who tells servers of accounts."""
    signers: dict[str, str] = {}
    """The same: public keys that sign users, by user."""
    retired: tuple[str, ...] = ()
    """The same: accounts of nodes that are no more."""

    @property
    def everybody(self) -> dict[str, str]:
        """All public keys, by user."""
        system = {SYSTEM: self.system} if self.system else {}
        return {**self.users, **system, **self.managers, **self.nodes}

    def role(self, name: str) -> Role:
        """What a user is."""
        if name in self.users:
            return "admin" if name == "admin" else "operator"
        if name == SYSTEM and self.system:
            return "system"
        return "manager" if name in self.managers else "node"


class UserWritten(Struct, frozen=True):
    """One user, and what was done about it."""

    name: str
    role: Role
    what: What
    public: str
    inbox_prefix: str
    key: str
    """Path of the file with the seed."""
    context: str
    """Path of the context."""


class Changes(Struct, frozen=True):
    """What is to be done to a folder.

    Args:
        nodes: nodes that only run slices, to be added where they are not there yet.
        managers: the same of nodes that manage.
        rotate: users that get another key.
        remove: users that are to be no more.
    """

    nodes: tuple[NodeId, ...] = ()
    managers: tuple[NodeId, ...] = ()
    rotate: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class SiteFolder:
    """The folder at ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SiteRecord | None:
        """Who there is; None: nothing is there.

        Raises:
            UsageError: what is there cannot be read.
            Conflict: something else is there.
        """
        try:
            return msgspec.json.decode((self.path / SITE).read_bytes(), type=SiteRecord)
        except FileNotFoundError:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise Conflict(f"{self.path} has no {SITE}, and is not empty: choose another --out") from None
            return None
        except UNREADABLE as error:
            raise UsageError(f"{self.path / SITE} is damaged: {error}") from None

    def create(
        self, changes: Changes, *, url: str, prefix: str, tls: Tls, store: str, jwt: bool = False
    ) -> list[UserWritten]:
        """Make the folder, with all that it holds; ``jwt``: users show JWTs. Errors as of `change`."""
        known = SiteRecord(1, prefix, url, tls.ca, {}, {}, {})
        _check(known, changes)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for name in (KEYS, CONTEXTS.parent, CONTEXTS):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        if jwt:
            ByTokens(self.path / ISSUERS, {}, ()).create()
            known = self._with_system(known)
        resolver = f"{store}/accounts" if jwt else ""
        text = server_file(ACCOUNTS, store=store, cert=tls.cert, key=tls.key, ca=tls.ca, resolver=resolver)
        (self.path / SERVER).write_text(text, encoding="utf-8")
        return self._write(known, changes, force=False)

    def _with_system(self, known: SiteRecord) -> SiteRecord:
        """Make the user who tells servers of accounts, or another one in its place."""
        logins, pair = ByTokens(self.path / ISSUERS, known.signers, known.retired), new_pair()
        known = replace(known, system=pair.public)
        write_private(self._key(known, SYSTEM), logins.shown_by_system(pair))
        write_private(self._context(SYSTEM), self._connection(known, SYSTEM))
        return replace(known, signers=logins.signers)

    def system(self, known: SiteRecord) -> Access:
        """How to connect as the user who tells servers of accounts."""
        ca = Path(known.ca).expanduser() if known.ca else None
        return Access((known.url,), creds=self._key(known, SYSTEM), ca=ca, inbox_prefix=inbox_of(SYSTEM))

    def tokens(self) -> list[str]:
        """The JWTs of all accounts, as they were written last; of those that give something to others first.

        A server looks once for the account that another imports from.
        """
        return tokens_of((self.path / ACCOUNTS).read_text(encoding="utf-8"))[::-1]

    def _logins(self, known: SiteRecord) -> ByKeys | ByTokens:
        if not known.system:
            return ByKeys()
        return ByTokens(self.path / ISSUERS, known.signers, known.retired)

    def change(self, known: SiteRecord, changes: Changes, *, force: bool) -> list[UserWritten]:
        """Add, rotate and remove users; the keys of all others stay.

        Raises:
            UsageError: the changes contradict each other or what is there.
            Conflict: a file would be overwritten that somebody else wrote.
        """
        return self._write(known, changes, force=force)

    def _write(self, known: SiteRecord, changes: Changes, *, force: bool) -> list[UserWritten]:
        _check(known, changes)
        new = [name for name in self._wanted(changes) if name not in known.everybody]
        self._check_files(known, new, force=force)
        pairs = {name: new_pair() for name in (*new, *changes.rotate)}
        managers = {encode_node(each) for each in changes.managers}
        after = replace(
            known,
            users=_with(known.users, pairs, RESERVED, changes.remove),
            managers=_with(known.managers, pairs, managers, changes.remove),
            nodes=_with(known.nodes, pairs, {encode_node(each) for each in changes.nodes}, changes.remove),
            retired=self._retired(known, changes),
        )
        found = accounts(Members(_ids(after.nodes), _ids(after.managers), after.prefix))
        logins = self._logins(after)
        # The keys first: a server that is told of a key that nobody has locks its user out.
        for account in found:
            for user in account.users:
                if pair := pairs.get(user.name):
                    write_private(self._key(after, user.name), logins.shown_by(account, user, pair))
                    write_private(self._context(user.name), self._connection(after, user.name))
        if isinstance(logins, ByTokens):
            after = replace(after, signers={name: logins.signers[name] for name in after.everybody})
        text = logins.text(found, after.everybody)
        write_private(self.path / ACCOUNTS, text.encode())
        (self.path / ACCOUNTS).chmod(0o644)  # there are public keys in it, and servers have users of their own
        site = msgspec.json.format(msgspec.json.encode(replace(after, accounts=_digest(text))), indent=2)
        write_private(self.path / SITE, site + b"\n")
        for name in changes.remove:
            self._key(known, name).unlink(missing_ok=True)
            self._context(name).unlink(missing_ok=True)
        if not known.accounts:
            new = list(after.everybody)
        what: dict[str, What] = {**dict.fromkeys(new, "new"), **dict.fromkeys(changes.rotate, "rotated")}
        return [
            *(self._written(after, name, what.get(name, "kept")) for name in after.everybody),
            *(self._written(known, name, "removed") for name in changes.remove),
        ]

    def _wanted(self, changes: Changes) -> list[str]:
        return [*RESERVED, *map(encode_node, (*changes.managers, *changes.nodes))]

    def _check_files(self, known: SiteRecord, new: Iterable[str], *, force: bool) -> None:
        """Nothing that somebody else wrote is overwritten."""
        for name in new:
            for path in (self._key(known, name), self._context(name)):
                if path.exists():
                    raise Conflict(f"{path} is there, and {SITE} does not know of it: move it away")
        path = self.path / ACCOUNTS
        if force or not known.accounts or not path.exists():
            return
        if _digest(path.read_text(encoding="utf-8", errors="replace")) != known.accounts:
            raise Conflict(f"{path} was changed by hand: take what you added to {SERVER}, or overwrite it with --force")

    def _retired(self, known: SiteRecord, changes: Changes) -> tuple[str, ...]:
        """Accounts that servers may know, and that are no more."""
        if not known.system:
            return ()
        here = {account_of(node) for node in changes.nodes}
        gone = (account_of(node) for node in _ids(name for name in changes.remove if name in known.nodes))
        return tuple(name for name in dict.fromkeys((*known.retired, *gone)) if name not in here)

    def _connection(self, known: SiteRecord, name: str) -> bytes:
        """A context of the `nats` tool."""
        context = {
            "description": f"cdm: {known.role(name)} {name}",
            "url": known.url,
            self._logins(known).context: str(self._key(known, name).absolute()),
            "ca": str(Path(known.ca).expanduser().absolute()) if known.ca else "",
            "inbox_prefix": inbox_of(name),
        }
        return msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n"

    def _key(self, known: SiteRecord, name: str) -> Path:
        return self.path / KEYS / f"{name}{self._logins(known).suffix}"

    def _context(self, name: str) -> Path:
        return self.path / CONTEXTS / f"{name}.json"

    def _written(self, known: SiteRecord, name: str, what: What) -> UserWritten:
        public, paths = known.everybody[name], (str(self._key(known, name)), str(self._context(name)))
        return UserWritten(name, known.role(name), what, public, inbox_of(name), *paths)


def _check(known: SiteRecord, changes: Changes) -> None:
    """Refuse what contradicts itself, or what is there."""
    nodes, managers = (set(map(encode_node, each)) for each in (changes.nodes, changes.managers))
    for name in sorted((nodes | managers) & {*RESERVED, SYSTEM}):
        raise UsageError(f"{name!r} is the name of a user that every site has: give the node another id")
    for name in sorted((nodes & managers) | (nodes & known.managers.keys()) | (managers & known.nodes.keys())):
        raise UsageError(
            f"{name!r} cannot be both: a node of --managers manages, and may run slices too; one of --nodes only runs "
            "slices"
        )
    for option, names in (("--rotate", changes.rotate), ("--remove", changes.remove)):
        for name in names:
            if name not in known.everybody:
                there = ", ".join(known.everybody) or "nobody"
                raise UsageError(f"{option} {name}: there is no such user; there is: {there}")
    if SYSTEM in changes.rotate:
        raise UsageError(
            f"--rotate {SYSTEM}: servers know this user by the account that they were set up with, and nobody could "
            "tell them of another key; set up another site with `--jwt --out`"
        )
    if both := sorted((set(changes.rotate) | nodes | managers) & set(changes.remove)):
        raise UsageError(f"--remove {both[0]}: the same command adds it, or gives it a new key")
    for name in changes.remove:
        if name in (*RESERVED, SYSTEM):
            raise UsageError(f"--remove {name}: every site has one; --rotate {name} gives it a new key")
    if not (managers | known.managers.keys()) - set(changes.remove):
        raise UsageError("without a manager nothing is managed: name at least one node with --managers")


def _with(known: dict[str, str], pairs: Mapping[str, Pair], own: Iterable[str], less: Sequence[str]) -> dict[str, str]:
    """The public keys of a role, with the new ones."""
    names = dict.fromkeys((*known, *sorted(own)))
    return {name: pairs[name].public if name in pairs else known[name] for name in names if name not in less}


def _ids(names: Iterable[str]) -> tuple[NodeId, ...]:
    return tuple(node_id(decode_node(name)) for name in names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
