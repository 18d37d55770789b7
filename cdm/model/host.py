"""What can be the host of an address: a name, or an IP address."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address

_NAME = r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?"
_LONGEST = 253


def is_ip(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only a machine itself is reached there."""
    return host.rstrip(".").lower() == "localhost" or (is_ip(host) and ip_address(host).is_loopback)


def with_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(4096)
def is_host(text: str) -> bool:
    """Whether it is a host name or an IP address: nothing that means more in a URL or a configuration."""
    return (len(text) <= _LONGEST and re.fullmatch(_NAME, text) is not None) or ("%" not in text and is_ip(text))
