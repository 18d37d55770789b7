"""What runs slices on a node. The interface between the agent and a runtime is `cdm.runtimes.interface`.

What that exports can be imported from here. It is imported when the first of it is asked for (PEP 562): a keeper, which
is in this package too, needs nothing of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdm.runtimes.interface import *  # noqa: F403
else:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        found = import_module("cdm.runtimes.interface")
        if name not in found.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(found, name)
