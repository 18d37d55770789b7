"""Sends spans by OTLP over HTTP, from a thread of its own: nothing ever waits for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b

from anyio import CancelScope, to_thread
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from cdm import clock
from cdm.log import Log, Ration
from cdm.manager.journal import Note
from cdm.node.settings import NodeSettings
from cdm.traces.journeys import Journeys, JourneySpan
from cdm.version import VERSION

log = Log("cdm.traces")

PATIENCE = 2.0
"""Seconds that whoever collects spans has to answer."""
COMPLAINT_INTERVAL = 60.0
"""Seconds between two lines that say that nobody takes spans."""


@asynccontextmanager
async def traced(settings: NodeSettings, url: str) -> AsyncIterator[NodeSettings]:
    """Settings of a node that has what it sees while it leads sent there, for the time of the ``with`` block."""
    exporter = OTLPSpanExporter(f"{url}/v1/traces", timeout=PATIENCE)
    sender = SpanSender(exporter, settings.node, f"{settings.prefix}_cdm" if settings.prefix else "cdm")
    try:
        yield replace(settings, told=sender.take)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(sender.close)


class SpanSender:
    """Has spans sent.

    Args:
        exporter: sends them; it is called in another thread.
        node: who saw it.
        cluster: which cluster, behind the prefix where there is one.
    """

    def __init__(self, exporter: SpanExporter, node: str, cluster: str) -> None:
        _listen()
        self._ids = _GivenIds()
        resource = Resource.create({"service.name": cluster, "service.version": VERSION, "service.instance.id": node})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("cdm", VERSION)
        self._journeys = Journeys()

    def take(self, note: Note, epoch: float) -> None:
        """Take in what happened; ``epoch``: the server's clock less that of the note."""
        for span in self._journeys.take(note, epoch):
            self._send(span)

    def close(self) -> None:
        """Send what is left, but not for long."""
        self._provider.force_flush(int(PATIENCE * 1000))
        self._provider.shutdown()

    def _send(self, span: JourneySpan) -> None:
        self._ids.trace, self._ids.span = _number(span.trace, 16), _number(f"{span.trace}/{span.about}", 8)
        parent = _number(f"{span.trace}/{span.parent}", 8)
        context = SpanContext(self._ids.trace, parent, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        within = trace.set_span_in_context(NonRecordingSpan(context)) if span.parent else Context()
        made = self._tracer.start_span(
            span.name, within, attributes=span.attributes, start_time=int(span.start * 1e9), record_exception=False
        )
        if span.failed:
            made.set_status(Status(StatusCode.ERROR, span.failed))
        made.end(int(span.end * 1e9))


class _GivenIds(IdGenerator):
    """The ids follow from what spans are about, so that two leaders do not tell of two things."""

    trace = span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


def _number(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big")


class _Complaints(logging.Handler):
    """What the library logs goes into the node's log, but not every time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._ration = Ration(1, COMPLAINT_INTERVAL)

    def emit(self, record: logging.LogRecord) -> None:
        if self._ration.take(clock.now()):
            log.warning("traces are not sent; all else goes on", reason=record.getMessage()[:500])


def _listen() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(each, _Complaints) for each in library.handlers):
        library.addHandler(_Complaints())
        library.propagate = False
