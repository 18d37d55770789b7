"""What there is to measure of this process: its node, its mirrors, its event loop."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from cdm import clock
from cdm.http.beat import Beat
from cdm.http.desk import Desk
from cdm.http.families import counter, counters, gauge, gauges, histogram, ones
from cdm.leader.writer import OUTCOMES
from cdm.manager.active import Active
from cdm.model.slice import TRANSITIONS, Writer
from cdm.node.managing import Managing
from cdm.version import VERSION

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from cdm.node.node import Node

_BUCKET = ("bucket",)
_KINDS = (*(state for state, row in TRANSITIONS.items() if row.writer is Writer.LEADER), None)
"""Of commands; None: deletes of slices' keys."""


def process_families(desk: Desk, beat: Beat) -> Iterator[Metric]:
    """All of them."""
    yield gauges("build_info", "1; the version of cdm that this process runs.", ("version",), ones({(VERSION,)}))
    connection = desk.connection
    yield gauge("nats_connected", "1 while there is a connection to NATS.", connection is not None and connection.is_up)
    yield histogram("event_loop_lag", "By how much the event loop was late, looked at four times a second.", beat.late)
    yield from _mirrors(desk)
    if desk.node is not None:
        yield from _node(desk.node)


def _mirrors(desk: Desk) -> Iterator[Metric]:
    """A node's own mirrors, which it acts on, or else those that this tells from."""
    watches = dict(desk.watches if desk.node is None else desk.node.watches)
    lags = {(name,): watch.lag for name, watch in watches.items()}
    about = "1 where the mirror is complete, and hears of changes."
    yield gauges("mirror_live", about, _BUCKET, ((name, lag.live) for name, lag in lags.items()))
    about = "Messages that it has yet to take in, at least."
    yield gauges("mirror_lag_messages", about, _BUCKET, ((name, lag.messages) for name, lag in lags.items()))
    about = "How old what the mirror shows may be; not told: nothing was read yet."
    seconds = ((name, lag.seconds if lag.seconds < inf else None) for name, lag in lags.items())
    yield gauges("mirror_lag_seconds", about, _BUCKET, seconds)
    about = "How often the watch went on behind the last message that it knew."
    yield counters("watch_resumes_total", about, _BUCKET, (((name,), each.resumes) for name, each in watches.items()))
    about = "How often the watch read the whole bucket."
    yield counters("watch_listings_total", about, _BUCKET, (((name,), each.listings) for name, each in watches.items()))


def _node(node: Node) -> Iterator[Metric]:
    yield counter("messages_total", "Messages that were routed, most of them updates of buckets.", node.routed)
    tallies = [node.presence.tally, *(tally for part in node.everything for tally in part.tallies)]
    about = "Requests over NATS that were answered, by what was asked."
    yield counters("requests_total", about, ("endpoint",), (((each.name,), each.requests) for each in tallies))
    about = "Those that failed."
    yield counters("request_errors_total", about, ("endpoint",), (((each.name,), each.errors) for each in tallies))
    if managing := next((part for part in node.everything if isinstance(part, Managing)), None):
        yield from _managing(managing)


def _managing(managing: Managing) -> Iterator[Metric]:
    election, pace, state, now = managing.election, managing.manager.pace, managing.manager.state, clock.now()
    leads = isinstance(state, Active)
    yield gauge("leads", "1 while this process leads.", leads)
    yield counter("terms_won_total", "Terms that this process began to lead.", election.won_terms)
    about = "Terms that the server ended: it refused a write (the fence), or the lease was another's, or gone."
    yield counter("terms_lost_total", about, election.lost_terms)
    yield histogram("round", "Time from the beginning of a round until nothing was left to be decided.", pace.rounds)
    about = "Time since the latest round was over; not told by a process that does not lead, or has made none."
    over = pace.over_at if leads else None
    yield gauge("last_round_age_seconds", about, None if over is None else now - over)
    yield counter("deciding_seconds_total", "Time that was spent on deciding.", pace.deciding)
    about = "Artifacts that are to be decided about."
    yield gauge("undecided_artifacts", about, state.backlog if isinstance(state, Active) else 0)
    yield gauge("unwritten_commands", "Commands that wait to be written.", managing.writer.waiting)
    about = "Commands, by kind and by what became of them: stored, refused, unknown, dropped."
    # All that there may be, from the beginning: of what appears with its first count nobody can tell the increase.
    outcomes = (
        ((kind or "delete", each), managing.writer.outcomes[kind, each]) for kind in _KINDS for each in OUTCOMES
    )
    yield counters("commands_total", about, ("kind", "outcome"), outcomes)
    yield gauge("untold_events", "Events that wait to be told.", managing.manager.journal.waiting)
