"""What lies in the folder of `cdm secure`: who there is, a server's configuration, keys, contexts for the `nats` tool.

``site.json`` holds who there is, with public keys only: seeds may be taken away to where they are used. The same is in
a line of ``accounts.conf``, which servers have copies of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdm.errors import Conflict, UsageError
from cdm.model.problems import UNREADABLE
from cdm.secure.configuration import server_file
from cdm.secure.issuers import ISSUERS
from cdm.secure.jwts import SYSTEM
from cdm.secure.keys import write_private
from cdm.secure.logins import ByKeys, ByTokens
from cdm.secure.members import inbox_of
from cdm.secure.site import SiteRecord, called
from cdm.store.access import address_of

ACCOUNTS = "accounts.conf"
SERVER = "server.conf"
SITE = "site.json"
KEYS = "keys"
CONTEXTS = Path("nats") / "context"
"""Where the `nats` tool, and cdm, look for contexts beneath XDG_CONFIG_HOME."""
RECORD_HEAD = "# site: "
_RECORD = re.compile(rf"^{RECORD_HEAD}(\{{.*\}})$", re.MULTILINE)


class Tls(Struct, frozen=True, omit_defaults=True):
    """Files of the server and of its clients; empty: none."""

    cert: str = ""
    key: str = ""
    ca: str = ""


class SiteFiles:
    """The folder at ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accounts = path / ACCOUNTS
        self.server = path / SERVER
        self.site = path / SITE
        self.issuers = path / ISSUERS
        self.next_system = path / KEYS / f"{SYSTEM}.creds.next"
        """Credentials of the user who tells servers of accounts next."""

    def key(self, known: SiteRecord, name: str) -> Path:
        """What a user shows to servers."""
        return self.path / KEYS / f"{called(name)}{_way(known).suffix}"

    def context(self, name: str) -> Path:
        """A user's context."""
        return self.path / CONTEXTS / f"{called(name)}.json"

    def make(self) -> None:
        """Make the folder, which nobody but its owner may enter, and those in it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.make_folders()

    def make_folders(self) -> None:
        """Make those in it; somebody may have removed one."""
        for name in (KEYS, CONTEXTS.parent, CONTEXTS):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)

    # Who there is

    def read(self) -> SiteRecord | None:
        """Who there is; None: nothing is there. Where ``site.json`` is lost, ``accounts.conf`` tells.

        Raises:
            UsageError: what is there cannot be read.
            Conflict: something else is there.
        """
        try:
            return msgspec.json.decode(self.site.read_bytes(), type=SiteRecord)
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
                f"{self.site} is damaged: {error}; move it away, and it is made anew from {ACCOUNTS}"
            ) from None

    def _told_by_accounts(self) -> SiteRecord | None:
        try:
            text = self.accounts.read_text(encoding="utf-8")
            if (line := _RECORD.search(text)) is None:
                return None
            return replace(msgspec.json.decode(line[1], type=SiteRecord), accounts=_digest(text))
        except (OSError, *UNREADABLE):
            return None

    def write(self, known: SiteRecord, accounts: str) -> SiteRecord:
        """Write who there is, and what servers are told of them; returns the record as it was written."""
        record = msgspec.json.encode(replace(known, accounts="")).decode()
        text = f"{RECORD_HEAD}{record}\n\n{accounts}"
        write_private(self.accounts, text.encode())
        self.accounts.chmod(0o644)  # there are public keys in it, and servers have users of their own
        known = replace(known, accounts=_digest(text))
        write_private(self.site, msgspec.json.format(msgspec.json.encode(known), indent=2) + b"\n")
        return known

    @property
    def accounts_text(self) -> str:
        """What is in ``accounts.conf``; empty: it is not there."""
        try:
            return self.accounts.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def write_server(self, known: SiteRecord, tls: Tls, store: str) -> None:
        """Write the server's own file; what is there is overwritten.

        Args:
            known: who there is.
            tls: files of the server and of its clients.
            store: the server's folder for JetStream.
        """
        resolver = f"{store}/accounts" if known.system else ""
        listen = f"0.0.0.0:{_port(known.url)}"
        text = server_file(ACCOUNTS, listen, store=store, cert=tls.cert, key=tls.key, ca=tls.ca, resolver=resolver)
        self.server.write_text(text, encoding="utf-8")

    # Of each user

    def write_context(self, known: SiteRecord, name: str) -> None:
        """Write a user's context of the `nats` tool."""
        context = {
            "description": f"cdm: {known.role(name)} {called(name)}",
            "url": known.url,
            _way(known).context: str(self.key(known, name).absolute()),
            "ca": str(Path(known.ca).expanduser().absolute()) if known.ca else "",
            "inbox_prefix": inbox_of(name),
        }
        write_private(self.context(name), msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n")

    def remove(self, known: SiteRecord, name: str) -> None:
        """Remove what a user shows, and its context."""
        self.key(known, name).unlink(missing_ok=True)
        self.context(name).unlink(missing_ok=True)

    def check(self, known: SiteRecord, new: Iterable[str], *, force: bool) -> None:
        """See that nothing is overwritten that somebody else wrote. Raises `Conflict`.

        Args:
            known: who there is.
            new: users that are to be added.
            force: whether ``accounts.conf`` may be overwritten though it was changed by hand.
        """
        for name in new:
            for path in (self.key(known, name), self.context(name)):
                if path.exists():
                    raise Conflict(f"{path} is there, and {SITE} does not know of it: move it away")
        path = self.accounts
        if force or not known.accounts or not path.exists():
            return
        if _digest(path.read_text(encoding="utf-8", errors="replace")) != known.accounts:
            raise Conflict(f"{path} was changed by hand: take what you added to {SERVER}, or overwrite it with --force")

    def exposed(self) -> list[Path]:
        """Files with something secret that others than their owner may read."""
        files = (path for name in (KEYS, ISSUERS) for path in sorted((self.path / name).glob("*")))
        return [path for path in files if path.is_file() and path.stat().st_mode & 0o077]


def told(text: str) -> str:
    """What a text of ``accounts.conf`` tells: all of it but comments for people."""
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if line.startswith(RECORD_HEAD) or not line.lstrip().startswith("#")
    )


def _way(known: SiteRecord) -> type[ByKeys | ByTokens]:
    return ByTokens if known.system else ByKeys


def _port(url: str) -> int:
    return address_of(url.split(",", maxsplit=1)[0]).port or 4222


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
