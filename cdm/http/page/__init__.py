"""The page that shows the cluster in a browser, and only shows it."""

from __future__ import annotations

from cdm.http.desk import Desk, Section
from cdm.http.page.asking import Inquiries
from cdm.http.page.feed import Feed
from cdm.http.page.happenings import Happenings
from cdm.http.page.routes import routes


def section(desk: Desk) -> Section:
    """What it adds."""
    happenings = Happenings(desk)
    feed = Feed(desk, happenings)
    return Section(routes(feed, Inquiries(desk, feed)), (feed.take,), (happenings.run,))
