"""The TCP ports of slices: which must be free, which is chosen where any will do, and whether one is free."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Collection
from pathlib import Path

from cdm.errors import SliceFailed
from cdm.model.manifest import Http, Manifest, Tcp

AUTO_PORTS = range(20_000, 30_000)
"""What is chosen from where a manifest says ``"auto"``. Most systems give connections ports from 32,768 on, and
Kubernetes gives those from 30,000 on away without listening on them."""
FEWEST = 1000
"""If fewer of them are left, those that connections get are chosen from, too; and then the reserved ones."""
PORT_ATTEMPTS = 100
"""How many ports are looked at until one is free."""

_SYSTEM = Path("/proc/sys/net/ipv4")


def auto_ports(local: str = "", reserved: str = "") -> list[range]:
    """The ports that are chosen from, in order.

    A port that the system also gives to connections may be gone again by the time the program binds it, and one that
    its administrator reserved has another use.

    Args:
        local: the first and the last port that connections get, as ``ip_local_port_range`` of Linux has them; empty:
            unknown.
        reserved: ports and ranges of ports, as ``ip_local_reserved_ports`` has them.
    """
    allowed = [AUTO_PORTS]
    for each in reserved.strip().split(","):
        allowed = _without(allowed, _range(*each.split("-")))
    for left in (_without(allowed, _range(*local.split())), allowed):
        if sum(map(len, left)) >= FEWEST:
            return left
    return [AUTO_PORTS]


def _range(first: str = "", last: str | None = None, *_: str) -> range:
    """These ports; none where they cannot be read."""
    last = first if last is None else last
    return range(int(first), int(last) + 1) if first.isdecimal() and last.isdecimal() else range(0)


def _without(ports: list[range], others: range) -> list[range]:
    parts = []
    for each in ports:
        parts += [range(each.start, min(each.stop, others.start)), range(max(each.start, others.stop), each.stop)]
    return [each for each in parts if each]


def _any(ports: list[range]) -> int:
    """One of them, by chance."""
    place = random.randrange(sum(map(len, ports)))
    for each in ports[:-1]:
        if place < len(each):
            return each[place]
        place -= len(each)
    return ports[-1][place]


def fixed_ports(manifest: Manifest, before: int | None) -> set[int]:
    """The ports that must be free when the slice is started; ``before`` is the one that it had, and keeps."""
    checks = (manifest.readiness.check, manifest.liveness.check if manifest.liveness else None)
    ports = {check.port for check in checks if isinstance(check, (Tcp, Http))} | {before or manifest.port}
    return {port for port in ports if isinstance(port, int)}


def chosen_port(manifest: Manifest, taken: Collection[int], before: int | None) -> int | None:
    """The port that a slice is started with, which is free.

    Args:
        manifest: the slice's.
        taken: ports of this node's other slices.
        before: the port that the slice had before, and keeps; None: it had none.

    Raises:
        SliceFailed: it is not free.
    """
    wanted = manifest.port if before is None else before
    if wanted == "auto":
        ports = auto_ports(_told("ip_local_port_range"), _told("ip_local_reserved_ports"))
        for _ in range(PORT_ATTEMPTS):
            port = _any(ports)
            if port in taken:
                continue
            # Not every program takes a port whose connections were closed a moment ago.
            error = refusal(port, reuse=False)
            if error is None:
                return port
            if error.errno != errno.EADDRINUSE:
                raise SliceFailed(f"port {port}: {error.strerror}")
        raise SliceFailed(f"no TCP port is free: {PORT_ATTEMPTS} of {ports[0][0]} to {ports[-1][-1]} were tried")
    for port in sorted(fixed_ports(manifest, before)):
        # A check could not tell another program that listens there from ours.
        if port in taken:
            raise SliceFailed(f"port {port} is in use by another slice on this node")
        if error := refusal(port):
            raise SliceFailed(f"port {port}: {error.strerror}")
    return wanted


def refusal(port: int, *, reuse: bool = True) -> OSError | None:
    """How the system refuses to let a program listen on a port now; None: it does not.

    Args:
        port: the port.
        reuse: whether the program takes a port whose connections were closed a moment ago (``SO_REUSEADDR``).
    """
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            sock.bind(("", port))
    except OSError as error:
        return error
    return None


def _told(name: str) -> str:
    try:
        return (_SYSTEM / name).read_text()
    except OSError:
        return ""
