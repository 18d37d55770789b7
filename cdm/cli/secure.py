"""``cdm secure``: who may do what in NATS, as a server's configuration with a key for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter
from msgspec.structs import replace

from cdm.cli.connected import interruptible
from cdm.cli.context import servers_of
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs, remark
from cdm.cli.options import FLAG, check_prefix, check_servers
from cdm.cli.parameters import Json
from cdm.cli.rows import LEAST_WIDTH, Column, listing, sheet, show
from cdm.cli.screen import print_json
from cdm.errors import AccessDenied, NoResponders, StoreError, Unreachable, UsageError
from cdm.model.artifact import NodeId, node_id
from cdm.secure.files import ACCOUNTS, Tls
from cdm.secure.folder import FolderWritten, SiteFolder, UserWritten
from cdm.secure.jwts import SYSTEM
from cdm.secure.operators import Authority, read_backup
from cdm.secure.site import Changes, SiteRecord
from cdm.secure.telling import tell

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", metavar="NAME", show_default=False)]


def secure(
    *,
    nodes: Names = (),
    managers: Names = (),
    readers: Names = (),
    out: Path = Path("cdm-secure"),
    rotate: Names = (),
    remove: Names = (),
    server: str | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    ca: Path | None = None,
    store: str | None = None,
    prefix: str | None = None,
    jwt: Annotated[bool, FLAG] = False,
    operator: Path | None = None,
    push: Annotated[bool, FLAG] = False,
    force: Annotated[bool, FLAG] = False,
    json: Json = False,
) -> int:
    """Write a server's configuration in which everybody may do what is theirs, and a key for everybody.

    Parameters
    ----------
    nodes
        Ids of nodes that only run slices. Those that the folder knows keep their keys.
    managers
        Ids of nodes that manage; they may run slices too. No other node can become a manager.
    readers
        Users that only read, e.g. routers.
    out
        The folder.
    rotate
        Users that get another key: nodes, managers, readers, admin, operator; with --jwt system, too.
    remove
        Nodes, managers or readers that are to be no more.
    server
        Address of the server, for the contexts. [default: tls://127.0.0.1:4222]
    cert
        The server's certificate.
    key
        The key of the server's certificate.
    ca
        Certificate of the authority that signed it, for the server and for clients.
    store
        The server's folder for JetStream. [default: /var/lib/nats]
    prefix
        Prefix of the names of buckets and subjects, as --prefix of `cdm node`.
    jwt
        Of a new folder: users show JWTs, signed by an operator that is made, too. Servers need not be told of changes
        by their configuration: --push tells them.
    operator
        The same with the operator of NATS that the servers have: what `nats auth operator backup` wrote of it.
    push
        Tell the servers that run of all accounts. For a folder of --jwt.
    force
        Overwrite accounts.conf though it was changed by hand.
    """
    check_prefix(prefix or "")
    if server is not None:
        check_servers(servers_of(server))
    folder = SiteFolder(out.expanduser())
    known = folder.files.read()
    if known and not folder.files.site.exists():
        remark(f"{folder.files.site} is lost, and made anew from {ACCOUNTS}")
    if push and not (known and known.system):
        raise UsageError("--push is for a folder of --jwt whose servers run")
    changes = Changes(_ids(nodes), _ids(managers), _ids(readers), _ids(rotate), _ids(remove))
    place = str(Path(store or "/var/lib/nats").absolute())
    fresh = known is None and not (cert or operator)
    if known is None:
        tls = _tls(cert, key, ca)
        url = server or f"{'tls' if cert else 'nats'}://127.0.0.1:4222"
        written = folder.create(
            changes,
            url=url,
            prefix=prefix or "",
            tls=tls,
            store=place,
            jwt=jwt or operator is not None,
            authority=_authority(operator),
        )
    else:
        lost = not folder.files.server.exists()
        if not lost:
            _refuse_later(folder, {"--cert": cert, "--key": key, "--store": store}, f"edit {folder.files.server}")
        elif cert and not store:
            raise UsageError(f"{folder.files.server} is not there: give --store as it was, too, and it is made anew")
        first = {"--prefix": prefix, "--jwt": jwt or None, "--operator": operator}
        _refuse_later(folder, first, "for another site give another --out")
        tls = _tls(cert, key, ca)
        written = folder.change(known, changes, force=force, url=server, ca=tls.ca or None)
        if lost and store:
            after = _known(folder)
            folder.files.write_server(after, replace(tls, ca=after.ca), place)
            fresh = not cert
            remark(f"{folder.files.server} is made anew; what was changed in it by hand is not in it")
        elif lost:
            remark(f"{folder.files.server} is not there; --store, with --cert and --key, as they were, make it anew")
    told = _push(folder) if push else None
    if json:
        print_json({**_told(folder, written), "pushed": told})
    else:
        _show(folder, written, new=known is None, clear=fresh, told=told)
    _warn(folder, (cert, key, ca))
    return 0


def _push(folder: SiteFolder) -> int:
    """Tell the servers of all accounts; returns of how many."""
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    known = _known(folder)

    async def run() -> int:
        told = await tell(folder.system(known), folder.tokens(known))
        if not known.system_next:
            return told
        # Both are let in now. The one before is let in until a server is told that it is no more.
        after = folder.succeed(known)
        return await tell(folder.system(after), folder.tokens(after), patient=True)

    try:
        return anyio.run(interruptible, run)
    except StoreError as error:
        raise type(error)(
            f"{folder.files.path} is written, but the servers were not told: {_why(error, folder, known)}; tell them "
            f"later: cdm secure --out {folder.files.path} --push"
        ) from None


def _why(error: StoreError, folder: SiteFolder, known: SiteRecord) -> str:
    """With what is to be done before they can be told, and without hints at options that this command does not have."""
    access = folder.system(known)
    match error:
        case Unreachable():
            return f"no NATS server answered at {access.shown}"
        case AccessDenied() if not (access.creds and access.creds.exists()) and known.authority:
            return (
                f"{access.creds} is missing: put the credentials of a user of the system account of operator "
                f"{known.authority} there"
            )
        case AccessDenied() if not (access.creds and access.creds.exists()):
            return f"{access.creds} is missing: --rotate {SYSTEM} makes another, {_restart(folder)}"
        case AccessDenied():
            return f"{access.shown} refused {access.creds}: where it was lost and is another now, {_restart(folder)}"
        case NoResponders():
            return "they take no accounts: their configuration needs a resolver of the type full"
        case _:
            return str(error)


def _restart(folder: SiteFolder) -> str:
    return f"which servers know once they have {folder.files.accounts} and are restarted"


def _known(folder: SiteFolder) -> SiteRecord:
    known = folder.files.read()
    assert known is not None
    return known


def _authority(backup: Path | None) -> Authority | None:
    """The operator of NATS that there is; None: one is made."""
    return read_backup(backup.expanduser()) if backup else None


def _ids(names: Sequence[str]) -> tuple[NodeId, ...]:
    """Names of users, as ids of nodes; raises `InvalidNodeId`."""
    return tuple(dict.fromkeys(node_id(name) for name in _split(names)))


def _split(names: Sequence[str]) -> tuple[str, ...]:
    """Names that may be separated by commas too."""
    return tuple(name.strip() for each in names for name in each.split(",") if name.strip())


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls:
    """The server's files, which need not be there yet; as they are found from the server's folder."""
    if (cert is None) != (key is None):
        raise UsageError("--cert and --key belong together")
    return Tls(*(str(path.expanduser().absolute()) if path else "" for path in (cert, key, ca)))


def _refuse_later(folder: SiteFolder, given: Mapping[str, object], instead: str) -> None:
    """What is said once is not said again."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is only for a new folder: {folder.files.path} is there; {instead}")


def _told(folder: SiteFolder, written: FolderWritten) -> dict[str, object]:
    """What is printed as JSON: no seeds."""
    files = {"folder": folder.files.path, "server": folder.files.server, "accounts": folder.files.accounts}
    return {**{name: str(path) for name, path in files.items()}, "users": written.users, "changed": written.changed}


def _show(folder: SiteFolder, written: FolderWritten, *, new: bool, clear: bool, told: int | None) -> None:
    rows = []
    for each in written.users:
        gone = each.what == "removed"
        key = each.key if Path(each.key).exists() else f"{each.key} (not there)"
        rows.append((each.name, each.role, each.what, *(("", "") if gone else (key, each.inbox_prefix))))
    titles = ("user", "role", "", "key", "inbox prefix")
    columns = zip(titles, zip(*rows, strict=True), strict=True)
    show(listing([Column(title, cells, least=LEAST_WIDTH) for title, cells in columns], sheet()))
    known = _known(folder)
    lines = []
    if not all(Path(each.key).exists() for each in written.users if each.what != "removed"):
        lines += ["Where a key that is not there was not moved, but is lost: --rotate makes another."]
    lines += _of_a_new_folder(folder, known) if new else []
    lines += _of_servers(folder, known, written, new=new, told=told)
    lines += _of_those_that_run(written.users, jwt=bool(known.system))
    if clear:
        tls = known.url.startswith("tls")
        so = "and the contexts ask for it: nobody gets in" if tls else "and all traffic goes in the clear"
        lines += [f"Without --cert and --key the server offers no TLS, {so}."]
    print(*lines, sep="\n")  # not broken: there are commands in them


def _of_a_new_folder(folder: SiteFolder, known: SiteRecord) -> list[str]:
    """How its server and its contexts are used."""
    if known.authority:
        push = f"cdm secure --out {folder.files.path} --push"
        lines = [f"servers:  {push}; a new one: nats-server -c {folder.files.server}"]
    else:
        lines = [f"server:   nats-server -c {folder.files.server}"]
    prefix = f" --prefix {known.prefix}" if known.prefix else ""
    lines += [f"contexts: XDG_CONFIG_HOME={folder.files.path} cdm init --context admin{prefix}"]
    if prefix:
        lines += ["Contexts hold no prefix: give it to each command, as --prefix or CDM_PREFIX."]
    return lines


def _of_servers(
    folder: SiteFolder, known: SiteRecord, written: FolderWritten, *, new: bool, told: int | None
) -> list[str]:
    """What those that run were told, or are to be told."""
    lines = []
    if told is not None:
        gone = f", of which nobody has {len(known.retired)} any more" if known.retired else ""
        lines += [f"The servers were told of {told} accounts{gone}."]
    elif any(each.name == SYSTEM and each.what == "rotated" for each in written.users) and not known.system_next:
        lines += [f"{folder.system(known).creds} was not there: it is another, {_restart(folder)}. Afterwards:"]
        lines += [f"  cdm secure --out {folder.files.path} --push"]
    elif known.system and not new:
        lines += [f"The servers that run do not know of this yet: cdm secure --out {folder.files.path} --push"]
    elif not new and written.changed:
        reload = "nats-server --signal reload && sleep 1 && nats-server --signal reload"
        lines += [f"{ACCOUNTS} is another. Copy {folder.files.accounts} to each server, and have it read anew, twice:"]
        lines += [f"  {reload}", "Where several servers run on a machine: --signal reload=PID, for each."]
    return lines


def _of_those_that_run(users: Sequence[UserWritten], *, jwt: bool) -> list[str]:
    """What is left to do at nodes that have other keys, or none any more."""
    lines = []
    changed = [each for each in users if each.role in ("node", "manager")]
    if rotated := [each.name for each in changed if each.what == "rotated"]:
        names = ", ".join(rotated)
        if jwt:
            lines += [f"Where {names} runs with a copy of its credentials, put the new ones in its place."]
            lines += ["They are read when it connects again, and its slices go on."]
        else:
            lines += [f"Once the servers have read it, stop {names}, and start it with the new key within its TTL"]
            lines += ["(--node-ttl): its slices start anew there. Drain it before to have them replaced first."]
    if removed := [each.name for each in changed if each.what == "removed"]:
        names = " ".join(removed)
        lines += [f"What still runs there goes on until its process is stopped. Afterwards: cdm node forget {names}"]
    return lines


def _warn(folder: SiteFolder, files: Sequence[Path | None]) -> None:
    """Tell of what is not as it should be, and does no harm yet."""
    for path in files:
        if path is not None and not path.expanduser().exists():
            remark(f"{path} is not there yet; the server needs it")
    for path in folder.files.exposed():
        remark(f"others may read {path}: chmod 600 {path}")
