"""The folder of `cdm secure`: a server's configuration, the users' keys, and contexts for the `nats` tool.

``site.json`` holds who there is, with public keys only: seeds may be taken away to where they are used. The same is in
a line of ``accounts.conf``, which servers have copies of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import Conflict, UsageError
from cdm.model.keys import encode_node
from cdm.model.problems import UNREADABLE
from cdm.secure.configuration import server_file
from cdm.secure.issuers import ISSUERS, Issuers
from cdm.secure.jwts import SYSTEM, SYSTEM_NEXT
from cdm.secure.keys import Pair, new_pair, write_private
from cdm.secure.logins import ByKeys, ByTokens, Logins, shown_to, tokens_of
from cdm.secure.members import inbox_of
from cdm.secure.operators import Authority
from cdm.secure.permissions import accounts
from cdm.secure.site import RESERVED, Changes, Role, SiteRecord, called, check
from cdm.store.access import Access, address_of

ACCOUNTS = "accounts.conf"
SERVER = "server.conf"
SITE = "site.json"
KEYS = "keys"
CONTEXTS = Path("nats") / "context"
"""Where the `nats` tool, and cdm, look for contexts beneath XDG_CONFIG_HOME."""
RECORD_HEAD = "# site: "
_RECORD = re.compile(rf"^{RECORD_HEAD}(\{{.*\}})$", re.MULTILINE)

What = Literal["new", "rotated", "removed", "kept"]


class Tls(Struct, frozen=True, omit_defaults=True):
    """Files of the server and of its clients; empty: none."""

    cert: str = ""
    key: str = ""
    ca: str = ""


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


class FolderWritten(Struct, frozen=True):
    """What was done to a folder."""

    users: list[UserWritten]
    changed: bool
    """Whether ``accounts.conf`` is another than before: servers have to be told."""


class SiteFolder:
    """The folder at ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SiteRecord | None:
        """Who there is; None: nothing is there. Where ``site.json`` is lost, ``accounts.conf`` tells.

        Raises:
            UsageError: what is there cannot be read.
            Conflict: something else is there.
        """
        try:
            return msgspec.json.decode((self.path / SITE).read_bytes(), type=SiteRecord)
        except FileNotFoundError:
            if (found := self._told_by_accounts()) is not None:
                return found
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise Conflict(
                    f"{self.path} has no {SITE}, and is not empty: choose another --out, or put back {SITE}, or the "
                    f"{ACCOUNTS} of a server, which it is made from"
                ) from None
            return None
        except UNREADABLE as error:
            raise UsageError(
                f"{self.path / SITE} is damaged: {error}; move it away, and it is made anew from {ACCOUNTS}"
            ) from None

    def _told_by_accounts(self) -> SiteRecord | None:
        try:
            text = (self.path / ACCOUNTS).read_text(encoding="utf-8")
            if (line := _RECORD.search(text)) is None:
                return None
            return replace(msgspec.json.decode(line[1], type=SiteRecord), accounts=_digest(text))
        except (OSError, *UNREADABLE):
            return None

    def create(
        self,
        changes: Changes,
        *,
        url: str,
        prefix: str,
        tls: Tls,
        store: str,
        jwt: bool = False,
        authority: Authority | None = None,
    ) -> FolderWritten:
        """Make the folder, with all that it holds. Errors as of `change`.

        Args:
            changes: who there is.
            url: where clients find the server.
            prefix: of the names of buckets and subjects.
            tls: files of the server and of its clients.
            store: the server's folder for JetStream.
            jwt: whether users show JWTs.
            authority: an operator of NATS that there is, which signs them; None: one is made.
        """
        known = SiteRecord(1, prefix, url, tls.ca, {}, {}, {}, authority=authority.name if authority else "")
        check(known, changes)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._make_folders()
        if jwt:
            self._issuers(known).create(authority)
            known = self._with_system(known, authority)
        self.write_server(known, tls, store)
        return self.change(known, changes, force=False)

    def write_server(self, known: SiteRecord, tls: Tls, store: str) -> None:
        """Write the server's own file; arguments as of `create`. What is there is overwritten."""
        resolver = f"{store}/accounts" if known.system else ""
        listen = f"0.0.0.0:{_port(known.url)}"
        text = server_file(ACCOUNTS, listen, store=store, cert=tls.cert, key=tls.key, ca=tls.ca, resolver=resolver)
        (self.path / SERVER).write_text(text, encoding="utf-8")

    def _make_folders(self) -> None:
        for name in (KEYS, CONTEXTS.parent, CONTEXTS):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)

    def _with_system(self, known: SiteRecord, authority: Authority | None) -> SiteRecord:
        """Make the user who tells servers of accounts."""
        pair = new_pair()
        known = replace(known, system=pair.public)
        if authority:
            write_private(self._key(known, SYSTEM), shown_to(authority, pair))
            return known
        logins = ByTokens(self._issuers(known), known.signers, ())
        write_private(self._key(known, SYSTEM), logins.shown_by_system(pair, SYSTEM))
        return replace(known, signers=logins.signers)

    # Telling servers of accounts

    def system(self, known: SiteRecord) -> Access:
        """How to connect as the user who tells servers of accounts."""
        ca = Path(known.ca).expanduser() if known.ca else None
        return Access(tuple(known.url.split(",")), creds=self._key(known, SYSTEM), ca=ca, inbox_prefix=inbox_of(SYSTEM))

    def tokens(self, known: SiteRecord) -> list[str]:
        """The JWTs of all accounts, as they were written last; of those that give something to others first.

        A server looks once for the account that another imports from.
        """
        tokens = tokens_of((self.path / ACCOUNTS).read_text(encoding="utf-8"))
        if known.authority:
            del tokens[self._issuers(known).system]  # not ours to tell of
        return [*tokens.values()][::-1]

    def succeed(self, known: SiteRecord) -> SiteRecord:
        """A server was told of the next user who tells servers of accounts: from now on it is this one.

        Until another server was told of that, both are let in; so this may be interrupted, and done again.
        """
        if (path := self._next_system).exists():
            path.replace(self._key(known, SYSTEM))
        signers = {**known.signers}
        signers[SYSTEM] = signers.pop(SYSTEM_NEXT)
        after = replace(known, system=known.system_next, system_next="", signers=signers)
        return self._store(after, self._logins(after))

    # Changing it

    def change(
        self, known: SiteRecord, changes: Changes, *, force: bool, url: str | None = None, ca: str | None = None
    ) -> FolderWritten:
        """Add, rotate and remove users; the keys of all others stay.

        Args:
            known: who there is.
            changes: what is to be done.
            force: whether ``accounts.conf`` is overwritten though it was changed by hand.
            url: where clients find the server from now on.
            ca: certificate of the authority that clients trust from now on.

        Raises:
            UsageError: the changes contradict each other or what is there.
            Conflict: a file would be overwritten that somebody else wrote.
        """
        check(known, changes)
        new = [name for name in changes.wanted if name not in known.everybody]
        self._check_files(known, new, force=force)
        pairs = {name: new_pair() for name in (*new, *changes.rotated) if name != SYSTEM}
        removed, moved = changes.removed, not (url is None and ca is None)
        after = replace(
            known,
            url=known.url if url is None else url,
            ca=known.ca if ca is None else ca,
            users=_with(known.users, pairs, RESERVED, removed),
            managers=_with(known.managers, pairs, map(encode_node, changes.managers), removed),
            readers=_with(known.readers, pairs, map(encode_node, changes.readers), removed),
            nodes=_with(known.nodes, pairs, map(encode_node, changes.nodes), removed),
        )
        before = {each.name for each in accounts(known.members)} if known.users else set()
        found = accounts(after.members)
        there = {each.name for each in found}
        if known.system:
            retired = tuple(
                name for name in dict.fromkeys((*known.retired, *sorted(before - there))) if name not in there
            )
            after = replace(after, retired=retired)
            issuers = self._issuers(known)
            issuers.check((*sorted(before), *known.retired))
            issuers.add(sorted(there - before))
        logins = self._logins(after)
        self._make_folders()  # somebody may have removed one
        # The keys first: a server that is told of a key that nobody has locks its user out.
        for account in found:
            for user in account.users:
                if pair := pairs.get(user.name):
                    write_private(self._key(after, user.name), logins.shown_by(account, user, pair))
        if isinstance(logins, ByTokens):
            if SYSTEM in changes.rotated:
                after = self._rotate_system(after, logins)
            here = {*after.everybody, *((SYSTEM_NEXT,) if after.system_next else ())}
            after = replace(after, signers={name: key for name, key in logins.signers.items() if name in here})
        after = self._store(after, logins)
        for name in after.everybody:
            if moved or not self._context(name).exists():
                write_private(self._context(name), self._connection(after, name))
        for name in removed:
            self._key(known, name).unlink(missing_ok=True)
            self._context(name).unlink(missing_ok=True)
        if not known.accounts:
            new = list(after.everybody)
        what: dict[str, What] = {**dict.fromkeys(new, "new"), **dict.fromkeys(changes.rotated, "rotated")}
        users = [
            *(self._written(after, name, what.get(name, "kept")) for name in after.everybody),
            *(self._written(known, name, "removed") for name in removed),
        ]
        return FolderWritten(users, after.accounts != known.accounts)

    def _rotate_system(self, known: SiteRecord, logins: ByTokens) -> SiteRecord:
        """Make another user who tells servers of accounts."""
        pair = new_pair()
        if self._key(known, SYSTEM).exists():
            write_private(self._next_system, logins.shown_by_system(pair, SYSTEM_NEXT))
            return replace(known, system_next=pair.public)
        # Nobody can tell servers of another one: they learn of it when they start.
        self._next_system.unlink(missing_ok=True)
        logins.signers.pop(SYSTEM_NEXT, None)
        write_private(self._key(known, SYSTEM), logins.shown_by_system(pair, SYSTEM))
        return replace(known, system=pair.public, system_next="")

    def _store(self, after: SiteRecord, logins: Logins) -> SiteRecord:
        """Write what servers are told, and who there is; returns the record as it was written."""
        record = msgspec.json.encode(replace(after, accounts="")).decode()
        text = f"{RECORD_HEAD}{record}\n\n{logins.text(accounts(after.members), after.everybody)}"
        write_private(self.path / ACCOUNTS, text.encode())
        (self.path / ACCOUNTS).chmod(0o644)  # there are public keys in it, and servers have users of their own
        after = replace(after, accounts=_digest(text))
        write_private(self.path / SITE, msgspec.json.format(msgspec.json.encode(after), indent=2) + b"\n")
        return after

    def exposed(self) -> list[Path]:
        """Files with something secret that others than their owner may read."""
        files = (path for name in (KEYS, ISSUERS) for path in sorted((self.path / name).glob("*")))
        return [path for path in files if path.is_file() and path.stat().st_mode & 0o077]

    def _issuers(self, known: SiteRecord) -> Issuers:
        return Issuers(self.path / ISSUERS, foreign=bool(known.authority))

    def _logins(self, known: SiteRecord) -> ByKeys | ByTokens:
        if not known.system:
            return ByKeys()
        return ByTokens(self._issuers(known), known.signers, known.retired)

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

    def _connection(self, known: SiteRecord, name: str) -> bytes:
        """A context of the `nats` tool."""
        context = {
            "description": f"cdm: {known.role(name)} {called(name)}",
            "url": known.url,
            self._logins(known).context: str(self._key(known, name).absolute()),
            "ca": str(Path(known.ca).expanduser().absolute()) if known.ca else "",
            "inbox_prefix": inbox_of(name),
        }
        return msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n"

    def _key(self, known: SiteRecord, name: str) -> Path:
        return self.path / KEYS / f"{called(name)}{self._logins(known).suffix}"

    @property
    def _next_system(self) -> Path:
        return self.path / KEYS / f"{SYSTEM}.creds.next"

    def _context(self, name: str) -> Path:
        return self.path / CONTEXTS / f"{called(name)}.json"

    def _written(self, known: SiteRecord, name: str, what: What) -> UserWritten:
        public, paths = known.everybody[name], (str(self._key(known, name)), str(self._context(name)))
        return UserWritten(called(name), known.role(name), what, public, inbox_of(name), *paths)


def _with(known: dict[str, str], pairs: Mapping[str, Pair], own: Iterable[str], less: Sequence[str]) -> dict[str, str]:
    """The public keys of a role, with the new ones."""
    names = dict.fromkeys((*known, *sorted(set(own))))
    return {name: pairs[name].public if name in pairs else known[name] for name in names if name not in less}


def _port(url: str) -> int:
    return address_of(url.split(",", maxsplit=1)[0]).port or 4222


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
