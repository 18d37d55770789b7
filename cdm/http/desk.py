"""What the parts of HTTP are given, and what they add: each has a module with a function ``section``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cdm.dispatch.messages import Message
from cdm.http.sight import Sight

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from cdm.node.node import Node
    from cdm.store.connection import Connection
    from cdm.store.watch import Watch


class Desk:
    """What handlers have at hand."""

    def __init__(self) -> None:
        self.sight = Sight()
        """The cluster as it is known here."""
        self.connection: Connection | None = None
        """To NATS; None: there was none so far."""
        self.node: Node | None = None
        """The node that this runs in; None: it is not there yet, or this is ``cdm serve``."""
        self.watches: dict[str, Watch] = {}
        """What the sight is fed by, by bucket; empty: nothing so far."""


class Section(NamedTuple):
    """What one part adds. None of it can harm a node: what is raised is logged."""

    routes: Sequence[BaseRoute] = ()
    takers: Sequence[Callable[[Message], None]] = ()
    """Called with each message of the buckets, after the sight has taken it in; they must be quick."""
    work: Sequence[Callable[[], Coroutine[Any, Any, object]]] = ()
    """What runs for as long as HTTP is served."""
