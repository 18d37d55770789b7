"""Where a node's slices are reached, as it tells others."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from cdm.model.host import is_loopback


class OwnAddress:
    """The address that was chosen, or else this machine's own on its connection to NATS.

    A node that finds NATS by the loopback interface may find another server, elsewhere, later on: an address at which
    others reach it is not given up for one at which only this machine does.

    Args:
        chosen: by the operator; None: none was.
        connected: tells this machine's address on the connection; None: there is no connection at present.
    """

    def __init__(self, chosen: str | None, connected: Callable[[], str | None]) -> None:
        self._chosen = chosen
        self._connected = connected
        self._told: str | None = None
        """What the connection told last: every step of every slice asks."""
        self._found: str | None = None

    def __call__(self) -> str | None:
        """The address; None: there was no connection yet that has one."""
        if self._chosen is not None:
            return self._chosen
        told = self._connected()
        if told is not None and told != self._told:
            self._told, found = told, _plain(told)
            if self._found is None or not is_loopback(found):
                self._found = found
        return self._found


def _plain(address: str) -> str:
    """An address of IPv4 as such, though the socket is one of IPv6."""
    mapped = getattr(ip_address(address), "ipv4_mapped", None)
    return address if mapped is None else str(mapped)
