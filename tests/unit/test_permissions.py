"""Who hears of a permission that is missing, and how often it is logged."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from cdm.errors import AccessDenied
from cdm.store import permissions as module
from cdm.store.access import Access
from cdm.store.permissions import COMPLAINT_INTERVAL, COMPLAINTS, WITHDRAWN, Permissions

pytestmark = pytest.mark.anyio


class Complaints:
    """What was logged, and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.logged: list[str] = []
        monkeypatch.setattr("cdm.clock.now", lambda: self.now)
        monkeypatch.setattr(module, "log", self)

    def error(self, text: str, **_: Any) -> None:
        self.logged.append(text)


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Complaints:
    return Complaints(monkeypatch)


def test_the_same_complaint_is_logged_once_an_interval(complaints: Complaints) -> None:
    permissions = Permissions(Access())
    for _ in range(10 * int(COMPLAINT_INTERVAL)):
        permissions.complain(AccessDenied("denied"))
        complaints.now += 1
    assert len(complaints.logged) == 10


def test_no_more_complaints_are_remembered_than_were_made_lately(complaints: Complaints) -> None:
    permissions = Permissions(Access())
    for number in range(3 * COMPLAINTS):
        permissions.complain(AccessDenied("again and again"))
        permissions.complain(AccessDenied(f"denied {number}"))
        complaints.now += COMPLAINT_INTERVAL
    assert len(permissions._complained) == COMPLAINTS
    assert complaints.logged.count("again and again") == 3 * COMPLAINTS
    complaints.now -= 1
    permissions.complain(AccessDenied(f"denied {3 * COMPLAINTS - 1}"))
    assert complaints.logged.count(f"denied {3 * COMPLAINTS - 1}") == 1


async def test_a_refusal_reaches_those_whose_subject_it_names(complaints: Complaints) -> None:
    permissions = Permissions(Access(inbox_prefix="_INBOX_me"))
    with permissions.refusal({"a"}) as one, permissions.refusal({"b"}) as other:
        permissions.denied("publish", "a")
        assert one.done()
        assert not other.done()
        permissions.denied("subscription", "_INBOX_me.x.*")
        with pytest.raises(AccessDenied, match=r"_INBOX_me\.x.*choose another --inbox-prefix"):
            other.result()
    with pytest.raises(AccessDenied):
        permissions.check_inbox()
    permissions.reconnecting()
    permissions.check_inbox()
    assert complaints.logged == []
    permissions.denied("publish", "nobody waits for this")
    assert len(complaints.logged) == 1


@pytest.mark.parametrize("why", [asyncio.CancelledError, AccessDenied])
async def test_what_nobody_waits_for_any_more_is_not_logged(complaints: Complaints, why: type[BaseException]) -> None:
    """Of several requests that are made together the first one that is refused ends them all."""
    permissions = Permissions(Access())
    with pytest.raises(why), permissions.refusal({"a", "b"}):
        raise why
    with suppress(TimeoutError), permissions.refusal({"c"}):
        raise TimeoutError
    for subject in ("a", "b"):
        permissions.denied("publish", subject)
    assert complaints.logged == []
    permissions.denied("publish", "c")
    assert len(complaints.logged) == 1, "it was waited for until the time was over"
    complaints.now += WITHDRAWN
    permissions.denied("publish", "a")
    assert len(complaints.logged) == 2


async def test_a_request_that_was_put_twice_is_refused_twice_and_told_once(complaints: Complaints) -> None:
    permissions = Permissions(Access())
    with permissions.refusal({"a"}) as refusal:
        permissions.denied("publish", "a")
        assert refusal.done()
    permissions.denied("publish", "a")
    assert complaints.logged == []
    complaints.now += COMPLAINT_INTERVAL
    permissions.denied("publish", "a")
    assert len(complaints.logged) == 1


def test_a_refusal_that_is_told_again_and_again_gathers_nothing(complaints: Complaints) -> None:
    """It is kept for as long as the connection is up, and would keep each place where it was raised."""
    permissions = Permissions(Access(inbox_prefix="_INBOX_me"))
    permissions.denied("subscription", "_INBOX_me.>")
    permissions.denied("subscription", "cdm.node.n1")
    lengths = set()
    for _ in range(3):
        for check in (permissions.check_inbox, partial(permissions.check_subscribed, "cdm.node.n1")):
            with pytest.raises(AccessDenied, match="permission denied: subscribe") as caught:
                check()
            lengths.add(len(caught.traceback))
    assert lengths == {2}
