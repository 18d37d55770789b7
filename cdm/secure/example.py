"""``nats/secure.conf``: the configuration of a small site, to be read; what ``python -m cdm.secure.example`` writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdm.model.artifact import NodeId, node_id
from cdm.secure.accounts import User
from cdm.secure.configuration import HEAD, rendered, server
from cdm.secure.members import Members
from cdm.secure.permissions import accounts


def example(
    nodes: Sequence[NodeId], managers: Sequence[NodeId], prefix: str = "", readers: Sequence[NodeId] = ()
) -> str:
    """A server's configuration with variables in the place of keys."""
    settings = {name: f"$NATS_{name.upper()}" for name in ("store",)}
    tls = {name: f"$NATS_TLS_{name.upper()}" for name in ("cert", "key", "ca")}
    site = Members(tuple(nodes), tuple(managers), prefix, tuple(readers))
    return f"{HEAD}\n{server(**settings, **tls)}\n{rendered(accounts(site), _login)}"


def variable(user: str) -> str:
    """The variable that holds a user's public key."""
    return f"{user.upper().replace('-', '_')}_NKEY"


def _login(user: User) -> str:
    return f"nkey: ${variable(user.name)}"


if __name__ == "__main__":
    sys.stdout.write(example([node_id("node-1")], [node_id("manager-1")]))
