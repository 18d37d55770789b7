"""The part that manages, imported where a node may come to have it: agents do without.

A node of role auto that starts without a manager's slot is registered first, and imports it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

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
