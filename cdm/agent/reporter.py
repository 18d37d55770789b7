"""Writes to a slice's key what its node does about it, and how long that may take."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from cdm import clock
from cdm.agent.elsewhere import folder_told
from cdm.agent.holding import Holding
from cdm.agent.known import Current, Stale
from cdm.agent.own_key import OwnKey
from cdm.agent.program import Program
from cdm.agent.reports import HeldUp, report
from cdm.agent.shared import Shared
from cdm.errors import Conflict, SliceFailed, StoreError
from cdm.log import Log
from cdm.model.slice import SliceState
from cdm.wakeup import Wakeup

log = Log("cdm.agent")

RETRY_PAUSE = 0.5
"""Seconds after which a write that was not stored, or a stop that failed, is tried again."""
PROMPT = 1.0
"""Seconds after which a deadline that was told before the work began is told again: it counts from when it is told."""


class Reporter:
    """Reports one slice's states, each as an answer to the revision of its key that is known.

    Args:
        shared: the node's.
        key: the slice's.
        program: what the runtime has of it.
        holding: whether it is held back.
        news: set when there is something to look at.
        wake: called when the key was written, which is news, too.
    """

    def __init__(
        self,
        shared: Shared,
        key: OwnKey,
        program: Program,
        holding: Holding,
        news: Wakeup,
        wake: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._key = key
        self._program = program
        self._holding = holding
        self._news = news
        self._wake = wake

    async def report(
        self, state: SliceState | None, error: SliceFailed | None = None, *, wait: HeldUp | None = None
    ) -> bool:
        """Write a state, by compare-and-set on the revision that it answers. Returns whether it was stored.

        Args:
            state: which; None: delete the key.
            error: why it is FAILED.
            wait: what it waits for.
        """
        known = self._key.known
        if isinstance(known, Stale):
            await self.pause()  # the mirror tells first whether there is such a key
        if not isinstance(known, Current):
            return False
        said = None
        if state is not None:
            folder = folder_told(known.value, state, self._holding.doubt is not None, self._shared.own)
            said = report(known.value, state, self._program, folder, error, wait)
        try:
            if await self._key.write(known, said):
                self._wake()
        except Conflict:
            # The leader wrote in between: the mirror tells of it, if it has not yet.
            if self._key.known is known:
                await self.pause()
        except StoreError as problem:
            log.debug("not reported yet", slice=str(self._program.key), reason=str(problem))
            await self.pause()
        else:
            say = log.warning if error else log.info
            say(str(state or "unloaded"), slice=str(self._program.key), reason=said.reason if said else None)
            return True
        return False

    async def tell_on(self, state: SliceState | None, wait: HeldUp | None = None) -> bool:
        """Report again the state that work was begun for. Returns whether it was stored.

        A command that came meanwhile cancels that work, but a task that was about to go on does go on until it waits:
        without the look at the key it would answer the command with a state that nobody asked for any more.
        """
        return self._key.state is state and self._holding.doubt is None and await self.report(state, wait=wait)

    async def counts_from_now(self, state: SliceState | None) -> bool:
        """Tell the deadline, unless it was told just now. Returns whether that holds."""
        known = self._key.known
        if not isinstance(known, Current) or state is None or self._key.state is not state:
            return False
        just_now = self._key.is_told and clock.now() - self._key.told.at < PROMPT
        named = known.value.folder == folder_told(known.value, state, False, self._shared.own)
        if just_now and named and known.value.deadline == self._program.deadline(state):
            return True
        return await self.tell_on(state)

    async def pause(self) -> None:
        """Wait for news, but not for ever."""
        with anyio.move_on_after(RETRY_PAUSE):
            await self._news.wait()
