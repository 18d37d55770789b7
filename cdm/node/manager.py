"""The part that manages, imported when a node is to have it: agents do without, and have a tenth more memory to spare.

Most nodes of role auto are agents, too. One that is promoted imports it then, unless what is installed by then is not
of the version that runs.
"""

from __future__ import annotations

import runpy
import sys
from typing import TYPE_CHECKING

import anyio.to_thread

from cdm import version
from cdm.node.part import Ground

if TYPE_CHECKING:
    from cdm.node.managing import Managing


def manager(ground: Ground) -> Managing:
    """Make it."""
    from cdm.node.managing import Managing  # noqa: PLC0415  # see the module's docstring

    return Managing(ground)


async def imported() -> None:
    """Import it beforehand, in a thread: what the node does goes on meanwhile."""
    await anyio.to_thread.run_sync(_import)


def _import() -> None:
    import cdm.node.managing  # noqa: F401, PLC0415  # likewise


def is_at_hand() -> bool:
    """Whether it is imported, or what would be is of the version that runs."""
    if "cdm.node.managing" in sys.modules:
        return True
    try:
        return bool(runpy.run_path(version.__file__)["VERSION"] == version.VERSION)
    except Exception:  # noqa: BLE001  # there is anything, or nothing, by now
        return False
