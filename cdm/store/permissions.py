"""Which permissions a user lacks, and who has to hear of it.

The server names the subject that it refused, and not the message. So whoever waits for an answer says beforehand which
subjects the request went to, and is told when one of them is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from cdm import clock
from cdm.errors import AccessDenied, afresh
from cdm.log import Log
from cdm.store.access import Access

log = Log("cdm.nats")

COMPLAINT_INTERVAL = 30.0
"""Seconds between two log lines about the same missing permission."""
COMPLAINTS = 100
"""How many missing permissions are remembered for that."""
WITHDRAWN = 5.0
"""Seconds for which it is remembered what was waited for, and is not any more: its refusal may be on the way."""


class Permissions:
    """What the server refused to one connection.

    Args:
        access: who the user is.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._waiting: dict[asyncio.Future[None], Collection[str]] = {}
        """Those who wait for what they sent: what fails when it is refused, and the subjects."""
        self._unheard: dict[str, AccessDenied] = {}
        """Subscriptions that were refused on the connection that is up, by subject."""
        self._complained: dict[str, float] = {}
        """When each missing permission was last logged, or told to somebody, the longest ago first."""
        self._withdrawn: dict[str, float] = {}
        """Until when nobody wants to know that a subject was refused."""

    def denied(self, kind: str, subject: str) -> None:
        """The server refused a subject; ``kind`` is ``publish`` or ``subscription``."""
        what = "publish" if kind == "publish" else "subscribe"
        remedy = "grant it to this user, see nats/secure.conf, or `cdm secure --out SITE` after an upgrade"
        call = subject.removeprefix(self._access.api)
        if call.startswith((".STREAM.CREATE.", ".STREAM.UPDATE.")):
            remedy = f"have somebody who may do so run `cdm init`, or {remedy}"
        elif call.startswith(".STREAM.INFO.KV_"):
            remedy = (
                "is --prefix right? A user of a node that only runs slices is for `cdm node` without --role, or with "
                f"--role agent; else {remedy}"
            )
        if what == "subscribe" and self._is_inbox(subject):
            remedy = f"choose another --inbox-prefix, or {remedy}"
        error = AccessDenied(f'permission denied: {what} "{subject}" ({self._access.who}); {remedy}')
        if what == "subscribe":
            self._unheard[subject] = error
        told = False
        for refusal, subjects in self._waiting.items():
            if not refusal.done() and (subject in subjects if what == "publish" else self._is_inbox(subject)):
                refusal.set_exception(error)
                told = True
        if told:
            self._is_news(error)  # the request may have been put twice: what was told need not be logged, too
        elif what == "publish" and clock.now() >= self._withdrawn.get(subject, float("-inf")):
            self.complain(error)

    @contextmanager
    def refusal(self, subjects: Collection[str]) -> Iterator[asyncio.Future[None]]:
        """A future that fails once a message to one of the subjects is refused, or no answers are delivered."""
        refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[refusal] = subjects
        try:
            yield refusal
        except (asyncio.CancelledError, AccessDenied):
            self._withdraw(subjects)
            raise
        finally:
            del self._waiting[refusal]
            if not refusal.cancel():
                refusal.exception()  # whoever left for another reason did not look at it

    def _withdraw(self, subjects: Collection[str]) -> None:
        """Whoever waited was told of something else, or told to stop: that these are refused, too, is no news."""
        now = clock.now()
        self._withdrawn = {subject: until for subject, until in self._withdrawn.items() if until > now}
        self._withdrawn |= dict.fromkeys(subjects, now + WITHDRAWN)

    def check_subscribed(self, subject: str) -> None:
        """Raise `AccessDenied` where the subscription was refused."""
        if subject in self._unheard:
            raise afresh(self._unheard[subject])

    def check_inbox(self) -> None:
        """Raise `AccessDenied` where answers are not delivered."""
        for subject, error in self._unheard.items():
            if self._is_inbox(subject):
                raise afresh(error)

    def reconnecting(self) -> None:
        """Subscriptions are about to be made anew, and may be refused or not."""
        self._unheard.clear()

    def complain(self, error: AccessDenied) -> None:
        """Log that a permission is missing, but not every time: it may be missing for long."""
        if self._is_news(error):
            log.error(str(error))

    def _is_news(self, error: AccessDenied) -> bool:
        """Whether nobody heard of it lately; from now on somebody has."""
        text, now = str(error), clock.now()
        if now < self._complained.get(text, float("-inf")) + COMPLAINT_INTERVAL:
            return False
        self._complained.pop(text, None)  # the newest comes last
        self._complained[text] = now
        if len(self._complained) > COMPLAINTS:
            del self._complained[next(iter(self._complained))]
        return True

    def _is_inbox(self, subject: str) -> bool:
        return subject.startswith(self._access.inbox_prefix + ".")
