"""The part that manages, and that of a node which may come to it, imported where a node has them: agents do without.

A node of role auto that starts without a manager's slot is registered first, and imports it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from cdm.node.part import Ground

if TYPE_CHECKING:
    from cdm.node.candidacy import Candidacy
    from cdm.node.managing import Managing


def manager(ground: Ground) -> Managing:
    """Make it."""
    from cdm.node.managing import Managing  # noqa: PLC0415  # see the module's docstring

    return Managing(ground)


def candidacy(ground: Ground) -> Candidacy:
    """Make the part of a node that manages while it has a manager's slot."""
    from cdm.node.candidacy import Candidacy  # noqa: PLC0415  # see the module's docstring

    return Candidacy(ground)


async def imported() -> None:
    """Import it beforehand, in a thread: what the node does goes on meanwhile."""
    await anyio.to_thread.run_sync(_import)


def _import() -> None:
    import cdm.node.managing  # noqa: F401, PLC0415  # likewise
