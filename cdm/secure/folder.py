"""The folder of `cdm secure`, as it is made and changed: users come, go, and are given other keys.

What lies there is in `cdm.secure.files`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cdm.model.keys import encode_node
from cdm.secure.files import SiteFiles, Tls, told
from cdm.secure.issuers import Issuers
from cdm.secure.jwts import SYSTEM, SYSTEM_NEXT
from cdm.secure.keys import Pair, new_pair, write_private
from cdm.secure.logins import ByKeys, ByTokens, Logins, issued_at, shown_to, tokens_of
from cdm.secure.members import inbox_of
from cdm.secure.operators import Authority
from cdm.secure.permissions import accounts
from cdm.secure.site import RESERVED, Changes, Role, SiteRecord, called, check
from cdm.store.access import Access

What = Literal["new", "rotated", "removed", "kept"]


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
    """Whether ``accounts.conf`` tells something else than before, so that servers have to read it."""


class SiteFolder:
    """The folder at ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.files = SiteFiles(path)

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
        self.files.make()
        if jwt:
            self._issuers(known).create(authority)
            known = self._with_system(known, authority)
        self.files.write_server(known, tls, store)
        return self.change(known, changes, force=False)

    def _with_system(self, known: SiteRecord, authority: Authority | None) -> SiteRecord:
        """Make the user who tells servers of accounts."""
        pair = new_pair()
        known = replace(known, system=pair.public)
        if authority:
            write_private(self.files.key(known, SYSTEM), shown_to(authority, pair))
            return known
        logins = ByTokens(self._issuers(known), known.signers, ())
        write_private(self.files.key(known, SYSTEM), logins.shown_by_system(pair, SYSTEM))
        return replace(known, signers=logins.signers)

    # Telling servers of accounts

    def system(self, known: SiteRecord) -> Access:
        """How to connect as the user who tells servers of accounts."""
        ca = Path(known.ca).expanduser() if known.ca else None
        creds = self.files.key(known, SYSTEM)
        return Access(tuple(known.url.split(",")), creds=creds, ca=ca, inbox_prefix=inbox_of(SYSTEM))

    def tokens(self, known: SiteRecord) -> list[str]:
        """The JWTs of all accounts, as they were written last; of those that give something to others first.

        A server looks once for the account that another imports from.
        """
        tokens = tokens_of(self.files.accounts.read_text(encoding="utf-8"))
        if known.authority:
            del tokens[self._issuers(known).system]  # not ours to tell of
        return [*tokens.values()][::-1]

    def succeed(self, known: SiteRecord) -> SiteRecord:
        """A server was told of the next user who tells servers of accounts: from now on it is this one.

        Until another server was told of that, both are let in; so this may be interrupted, and done again.
        """
        if (path := self.files.next_system).exists():
            path.replace(self.files.key(known, SYSTEM))
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
        self.files.check(known, new, force=force)
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
        self.files.make_folders()
        # The keys first: a server that is told of a key that nobody has locks its user out.
        for account in found:
            for user in account.users:
                if pair := pairs.get(user.name):
                    write_private(self.files.key(after, user.name), logins.shown_by(account, user, pair))
        if isinstance(logins, ByTokens):
            if SYSTEM in changes.rotated:
                after = self._rotate_system(after, logins)
            here = {*after.everybody, *((SYSTEM_NEXT,) if after.system_next else ())}
            after = replace(after, signers={name: key for name, key in logins.signers.items() if name in here})
        earlier = self.files.accounts_text
        after = self._store(after, logins)
        for name in after.everybody:
            if moved or not self.files.context(name).exists():
                self.files.write_context(after, name)
        for name in removed:
            self.files.remove(known, name)
        if not known.accounts:
            new = list(after.everybody)
        what: dict[str, What] = {**dict.fromkeys(new, "new"), **dict.fromkeys(changes.rotated, "rotated")}
        users = [
            *(self._written(after, name, what.get(name, "kept")) for name in after.everybody),
            *(self._written(known, name, "removed") for name in removed),
        ]
        changed = after.accounts != known.accounts and told(self.files.accounts_text) != told(earlier)
        return FolderWritten(users, changed)

    def _rotate_system(self, known: SiteRecord, logins: ByTokens) -> SiteRecord:
        """Make another user who tells servers of accounts."""
        pair = new_pair()
        if self.files.key(known, SYSTEM).exists():
            write_private(self.files.next_system, logins.shown_by_system(pair, SYSTEM_NEXT))
            return replace(known, system_next=pair.public)
        # Nobody can tell servers of another one: they learn of it when they start.
        self.files.next_system.unlink(missing_ok=True)
        logins.signers.pop(SYSTEM_NEXT, None)
        write_private(self.files.key(known, SYSTEM), logins.shown_by_system(pair, SYSTEM))
        return replace(known, system=pair.public, system_next="")

    def _store(self, after: SiteRecord, logins: Logins) -> SiteRecord:
        """Write what servers are told, and who there is; returns the record as it was written.

        JWTs that would say nothing new stay as they were issued, so that servers need not be told of them.
        """
        found, before = accounts(after.members), self.files.accounts_text
        text = logins.text(found, after.everybody, int(time.time()))
        if (at := issued_at(before)) is not None:
            again = logins.text(found, after.everybody, at)
            if told(before).endswith(told(again)):
                text = again
        return self.files.write(after, text)

    def _issuers(self, known: SiteRecord) -> Issuers:
        return Issuers(self.files.issuers, foreign=bool(known.authority))

    def _logins(self, known: SiteRecord) -> ByKeys | ByTokens:
        if not known.system:
            return ByKeys()
        return ByTokens(self._issuers(known), known.signers, known.retired)

    def _written(self, known: SiteRecord, name: str, what: What) -> UserWritten:
        public, paths = known.everybody[name], (str(self.files.key(known, name)), str(self.files.context(name)))
        return UserWritten(called(name), known.role(name), what, public, inbox_of(name), *paths)


def _with(known: dict[str, str], pairs: Mapping[str, Pair], own: Iterable[str], less: Sequence[str]) -> dict[str, str]:
    """The public keys of a role, with the new ones."""
    names = dict.fromkeys((*known, *sorted(set(own))))
    return {name: pairs[name].public if name in pairs else known[name] for name in names if name not in less}
