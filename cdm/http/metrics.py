"""What monitoring scrapes, and whether this process is well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from anyio import to_thread
from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdm import clock
from cdm.http.beat import Beat
from cdm.http.cluster_metrics import cluster_families
from cdm.http.desk import Desk, Section
from cdm.http.families import gauge
from cdm.http.lives import Lives
from cdm.http.process_metrics import process_families
from cdm.http.readiness import problems
from cdm.http.recovery import Recovery
from cdm.store.progress import Lag
from cdm.store.watch import Watch

LONGEST_AGE = 30.0
"""Seconds without news after which a process tells nothing of the cluster."""


def section(desk: Desk) -> Section:
    """``/metrics``, ``/livez`` and ``/readyz``."""
    monitoring = Monitoring(desk)
    routes = [
        Route("/metrics", monitoring.metrics),
        Route("/livez", monitoring.livez),
        Route("/readyz", monitoring.readyz),
    ]
    return Section(routes, (monitoring.lives.take,), (monitoring.beat.run, monitoring.recovery.run))


class Monitoring:
    """What this process counts itself, and its answers."""

    def __init__(self, desk: Desk) -> None:
        self.lives = Lives()
        self.beat = Beat()
        self.recovery = Recovery(self.beat, lambda: (watch for _, watch in self._watches()))
        self._desk = desk
        self._process = ProcessCollector(namespace="cdm", registry=None)

    async def metrics(self, request: Request) -> Response:
        """Everything that there is to measure, in a form that the scraper knows."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        found = _Collected(self._families())
        # Thousands of lines take their time to be written, and a leader's event loop has other things to do.
        text = await to_thread.run_sync(encode, found)
        return Response(text, media_type=kind)

    async def livez(self, _request: Request) -> Response:
        """That there is an answer is the answer: an event loop that hangs gives none."""
        return PlainTextResponse("alive\n")

    async def readyz(self, _request: Request) -> Response:
        """Whether this process knows the newest of what it tells, and acts on."""
        desk, node = self._desk, self._desk.node
        connection, now = desk.connection, clock.now()
        mirrors: dict[str, Lag] = {}
        for name, watch in self._watches():
            mirrors[name] = max(mirrors.get(name, watch.lag), watch.lag, key=lambda lag: lag.seconds)
        still = self.beat.standstill(now)
        found = list(
            problems(
                connected=None if connection is None else connection.is_up,
                registered=node is None or node.presence.is_registered,
                mirrors=mirrors,
                still=still,
                recovered=still is None or self.recovery.is_from(still),
                now=now,
            )
        )
        if found:
            return PlainTextResponse("".join(f"not ready: {each}\n" for each in found), 503)
        return PlainTextResponse("ready\n")

    def _watches(self) -> Iterator[tuple[str, Watch]]:
        """Those that this process acts by, and those that it tells from; a bucket may have one of each."""
        if self._desk.node is not None:
            yield from self._desk.node.watches.items()
        if not self._desk.sight.problem:
            yield from self._desk.watches.items()

    def _families(self) -> Iterator[Metric]:
        desk = self._desk
        yield from process_families(desk, self.beat)
        yield from self._process.collect()
        now, sight = clock.now(), desk.sight
        yield gauge(
            "cluster_known", "1 where all buckets are followed: what is told here is the newest.", sight.is_live
        )
        yield gauge("cluster_age_seconds", "For how long changes may not have been heard.", sight.age(now))
        # Several processes tell the same: one that knows nothing, or what was, must not be mistaken for one that does.
        if sight.listed and sight.age(now) < LONGEST_AGE:
            yield from cluster_families(sight, self.lives, now)


class _Collected(Collector):
    """What was collected on the event loop, for a thread that writes it."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        """All of it."""
        return self._families
