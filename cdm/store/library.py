"""The client library for NATS, as the rest of this package imports it: less large than it would be by itself.

It asks importlib.metadata for its own version, which brings along the parsers of mails, zip archives and CSV: more than
all the rest of it, 1.6 MiB for as long as a node runs, and half the time that its import takes.
"""

from __future__ import annotations

from pathlib import Path

from cdm.sparing import without

with without("importlib.metadata"):
    import nats.aio.client
    import nats.errors
    from nats.aio.client import PING_PROTO, Srv
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.errors import ProtocolError
    from nats.protocol.parser import PERMISSIONS_ERR, Parser

__all__ = ["PERMISSIONS_ERR", "PING_PROTO", "Msg", "Parser", "ProtocolError", "Srv", "Subscription", "nats"]

UNKNOWN = "0.0.0"
"""What it says of itself where it cannot know."""


def _version() -> str:
    """Its version, as the folder is named in which its installation is described."""
    found = next(Path(nats.__file__).parents[1].glob("nats_py-*.dist-info"), None)
    return found.stem.partition("-")[2] if found is not None else UNKNOWN


if nats.aio.client.__version__ == UNKNOWN:
    nats.aio.client.__version__ = _version()  # which servers are told, and show
