"""cdm: the ClusterDeploymentManager for NATS, as a library.

What is exported here decides and does no I/O: the typed keys and values, the messages, the router with its
`receiver` mark, and the manager itself, to be embedded or to be listened to. `cdm.node.node` wires them to NATS.
"""

from typing import TYPE_CHECKING

from cdm.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from cdm.api import *  # noqa: F403
else:
    from importlib import import_module
    from importlib.util import find_spec

    def __getattr__(name: str) -> object:
        """Import what is exported when the first of it is asked for (PEP 562): the command line need not wait."""
        if find_spec(f"{__name__}.{name}") is not None:
            raise AttributeError(f"module {name!r} is not imported yet")  # which makes Python import it
        try:
            return getattr(import_module("cdm.api"), name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("cdm.api").__all__})
