"""Accounts as a nats-server reads them: text for its configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable

from cdm.secure.accounts import MOST_RESPONSES, RESPONSE_SECONDS, Account, Export, Import, User

WIDTH = 120

BATCHES = """\
limits {
  # Each open batch costs the server work. A node that holds as many open as there may be keeps the leader's from being
  # opened: that goes on with single writes meanwhile, and does so for no longer than batches may last.
  batch { max_inflight_per_stream: 50, max_inflight_total: 500, timeout: "2s" }
}
"""
"""Limits of a server's JetStream."""


def rendered(accounts: Iterable[Account], login: Callable[[User], str]) -> str:
    """The block ``accounts``.

    Args:
        accounts: all of them.
        login: how a user is known to the server, e.g. ``nkey: U…``.
    """
    blocks = "\n".join(_account(account, login) for account in accounts)
    return f"accounts {{\n{_indented(blocks)}}}\n"


def _account(account: Account, login: Callable[[User], str]) -> str:
    lines = [_comment(account.why), f'"{account.name}" {{\n']
    inner = []
    if account.consumers is not None:
        inner.append(
            f"# The most consumers that a stream may have\njetstream {{ max_consumers: {account.consumers} }}\n"
        )
    if limits := account.limits:
        inner.append(
            f"limits {{ max_connections: {limits.connections}, max_subscriptions: {limits.subscriptions}, "
            f"max_payload: {limits.payload} }}\n"
        )
    inner.append(f"users: [\n{_indented(''.join(_user(user, login) for user in account.users))}]\n")
    if account.exports:
        inner.append(f"exports: [\n{_indented(''.join(map(_export, account.exports)))}]\n")
    if account.imports:
        inner.append(f"imports: [\n{_indented(''.join(map(_import, account.imports)))}]\n")
    return "".join((*lines, _indented("".join(inner)), "}\n"))


def _user(user: User, login: Callable[[User], str]) -> str:
    publish = ""
    for grant in user.publish:
        publish += _comment(grant.why) + _subjects(grant.subjects)
    inner = f"publish: [\n{_indented(publish)}]\nsubscribe: [\n{_indented(_subjects(user.subscribe))}]\n"
    if user.responses:
        inner += _comment(user.responses)
        inner += f'allow_responses: {{ max: {MOST_RESPONSES}, expires: "{RESPONSE_SECONDS}s" }}\n'
    body = f"{login(user)}\npermissions {{\n{_indented(inner)}}}\n"
    return f"{_comment(user.why)}{{\n{_indented(body)}}}\n"


def _export(export: Export) -> str:
    kind = "stream" if export.stream else "service"
    many = ", response_type: stream" if export.many else ""
    takers = ", ".join(f'"{name}"' for name in export.accounts)
    return f'{{ {kind}: "{export.subject}"{many}, accounts: [{takers}] }}\n'


def _import(each: Import) -> str:
    kind, to = "stream" if each.stream else "service", f', to: "{each.to}"' if each.to else ""
    return f'{{ {kind}: {{ account: "{each.account}", subject: "{each.subject}" }}{to} }}\n'


def _subjects(subjects: Iterable[str]) -> str:
    """Quoted, as many to a line as there is room for."""
    # A no-break space keeps the quoted names whole.
    text = " ".join(f'"{subject}",' for subject in subjects)
    lines = textwrap.wrap(text, WIDTH - 12, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{line.rstrip(',')}\n" for line in lines)


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 14, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


HEAD = """\
# A nats-server for cdm on which everybody may do what is theirs, and no more.
#
# This is what `cdm secure --nodes node-1 --managers manager-1` writes, in one file and with variables in the place of
# keys. Use that command for a cluster of your own; this file is there to be read.
#
#   nats-server -c nats/secure.conf
#
# Nothing secret is in this file. What differs from site to site comes from the environment:
#
#   NATS_STORE            folder of JetStream
#   NATS_TLS_CERT, _KEY   the server's certificate and its key; NATS_TLS_CA: the CA that clients' certificates come from
#   ADMIN_NKEY, OPERATOR_NKEY, MANAGER_1_NKEY, NODE_1_NKEY
#                         public keys (U…) of `nats auth nkey gen user`; the seeds (SU…) stay where they are used
#
# Every user has an inbox of its own: nobody hears another's answers. Give it to cdm as --inbox-prefix, to `nats` in the
# context (inbox_prefix): _INBOX_admin, _INBOX_operator, _INBOX_manager-1, _INBOX_node-1.
#
# The operator and each node have accounts of their own. What they may do in the account of the buckets is imported
# from there, subject by subject: NATS then brings answers back to the account that asked, and nowhere else.
"""

ACCOUNTS_HEAD = """\
# Who may do what. Written by `cdm secure`, and written anew whenever a node is added or gets another key: include it in
# the configuration of each server, and have them read it again, twice (nats-server --signal reload): NATS gives a new
# account its imports at the second time only.
# Nothing secret is in this file: these are public keys.

"""

SERVER_HEAD = """\
# A nats-server for cdm. Written by `cdm secure` once, and yours from then on.

"""

TLS = """
tls {{
  cert_file: {cert}
  key_file: {key}
{ca}  # Clients need no certificate of their own; with true each must show one: cdm node --tlscert FILE --tlskey FILE
  verify: false
}}
"""

RESOLVER = """
# Accounts that this server was told of since it was set up; servers of one cluster tell each other.
resolver {{
  type: full
  dir: "{folder}"
  allow_delete: false
  interval: "2m"
}}
"""


def server(*, store: str, cert: str, key: str, ca: str, listen: str = "0.0.0.0:4222") -> str:
    """All of a server's configuration but its accounts; each argument as the configuration has it, or empty."""
    text = f'listen: "{listen}"\n\njetstream {{\n  store_dir: {store}\n{_indented(BATCHES)}}}\n'
    authority = f"  ca_file: {ca}\n" if ca else ""
    return text + (TLS.format(cert=cert, key=key, ca=authority) if cert else "")


def server_file(accounts: str, listen: str, *, store: str, cert: str, key: str, ca: str, resolver: str = "") -> str:
    """A server's own file, which includes that of the accounts.

    Args:
        accounts: name of that file.
        listen: address and port.
        store: folder of JetStream.
        cert: the server's certificate, or empty.
        key: its key, or empty.
        ca: that of the authority, or empty.
        resolver: folder of the accounts that the server is told of; empty: it is told of none.
    """
    quoted = {name: f'"{path}"' if path else "" for name, path in {"cert": cert, "key": key, "ca": ca}.items()}
    told = RESOLVER.format(folder=resolver) if resolver else ""
    return (
        f'{SERVER_HEAD}{server(store=chr(34) + store + chr(34), listen=listen, **quoted)}{told}\ninclude "{accounts}"\n'
    )
