"""``cdm secure``: who may do what in NATS, as a server's configuration with a key for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter

from cdm.cli.connected import interruptible
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.cli.options import FLAG, check_prefix
from cdm.cli.parameters import Json
from cdm.cli.screen import Table, plain, print_json, wide_console
from cdm.errors import UsageError
from cdm.model.artifact import NodeId, node_id
from cdm.secure.folder import ACCOUNTS, SERVER, Changes, SiteFolder, Tls, UserWritten
from cdm.secure.telling import tell

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", metavar="NAME", show_default=False)]


def secure(
    *,
    nodes: Names = (),
    managers: Names = (),
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
    out
        The folder.
    rotate
        Users that get another key: nodes, managers, admin, operator.
    remove
        Nodes or managers that are to be no more.
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
    push
        Tell the servers that run of all accounts. For a folder of --jwt.
    force
        Overwrite accounts.conf though it was changed by hand.
    """
    check_prefix(prefix or "")
    folder = SiteFolder(out.expanduser())
    known = folder.read()
    if push and not (known and known.system):
        raise UsageError("--push is for a folder of --jwt whose servers run")
    changes = Changes(_ids(nodes), _ids(managers), _split(rotate), _split(remove))
    if known is None:
        tls = _tls(cert, key, ca)
        url = server or f"{'tls' if cert else 'nats'}://127.0.0.1:4222"
        place = str(Path(store or "/var/lib/nats").absolute())
        written = folder.create(changes, url=url, prefix=prefix or "", tls=tls, store=place, jwt=jwt)
    else:
        first = {"--server": server, "--cert": cert, "--key": key, "--ca": ca}
        _refuse_later(folder, {**first, "--store": store, "--prefix": prefix, "--jwt": jwt or None})
        written = folder.change(known, changes, force=force)
    told = _push(folder) if push else None
    if json:
        print_json({**_told(folder, written), "pushed": told})
    else:
        _show(
            folder,
            written,
            new=known is None,
            clear=known is None and cert is None,
            tokens=bool(known and known.system),
            told=told,
        )
    return 0


def _push(folder: SiteFolder) -> int:
    """Tell the servers of all accounts; returns of how many."""
    configure_logs(LogFormat.CONSOLE, LogLevel.WARNING)
    known = folder.read()
    assert known is not None
    access, tokens = folder.system(known), folder.tokens()

    async def run() -> int:
        return await tell(access, tokens)

    return anyio.run(interruptible, run)


def _ids(names: Sequence[str]) -> tuple[NodeId, ...]:
    """Ids of nodes; raises `InvalidNodeId`."""
    return tuple(dict.fromkeys(node_id(name) for name in _split(names)))


def _split(names: Sequence[str]) -> tuple[str, ...]:
    """Names that may be separated by commas too."""
    return tuple(name.strip() for each in names for name in each.split(",") if name.strip())


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls:
    """The server's files, which need not be there yet; as they are found from the server's folder."""
    if (cert is None) != (key is None):
        raise UsageError("--cert and --key belong together")
    return Tls(*(str(path.expanduser().absolute()) if path else "" for path in (cert, key, ca)))


def _refuse_later(folder: SiteFolder, given: Mapping[str, object]) -> None:
    """What is said once is not said again."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is only for a new folder: {folder.path} is there; edit {folder.path / SERVER}")


def _told(folder: SiteFolder, written: Sequence[UserWritten]) -> dict[str, object]:
    """What is printed as JSON: no seeds."""
    files = {"folder": folder.path, "server": folder.path / SERVER, "accounts": folder.path / ACCOUNTS}
    return {**{name: str(path) for name, path in files.items()}, "users": written}


def _show(
    folder: SiteFolder, written: Sequence[UserWritten], *, new: bool, clear: bool, tokens: bool, told: int | None
) -> None:
    console = wide_console()
    table = Table("user", "role", "", "key", "inbox prefix")
    for each in written:
        gone = each.what == "removed"
        cells = (each.name, each.role, each.what, *(("", "") if gone else (each.key, each.inbox_prefix)))
        table.add_row(*map(plain, cells))
    console.print(table)
    if new:
        console.print(f"server:   nats-server -c {folder.path / SERVER}")
        console.print(f"contexts: XDG_CONFIG_HOME={folder.path} cdm init --context admin")
    elif told is not None:
        console.print(f"The servers were told of {told} accounts.")
    elif tokens:
        console.print(f"The servers do not know of this yet: cdm secure --out {folder.path} --push")
    elif any(each.what != "kept" for each in written):
        console.print(
            f"Copy {folder.path / ACCOUNTS} to each server, and have it read anew, twice: nats-server --signal reload"
        )
    if clear:
        console.print("Without --cert and --key all traffic goes in the clear.")
