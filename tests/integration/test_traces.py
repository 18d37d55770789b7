"""Traces of what is deployed, sent by whoever leads to a real receiver of OTLP."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cdm.model.artifact import NodeId
from cdm.model.node import Role
from cdm.model.status import Condition
from cdm.node.settings import NodeSettings
from tests.harness.agents import agents
from tests.harness.nodes import nodes_on
from tests.harness.servers import NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import raw

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cdm.traces.sending import traced

pytestmark = pytest.mark.anyio


@contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """A receiver of OTLP on the loopback: where, and the spans that it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            told = [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
            assert self.path == "/v1/traces"
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            spans.extend(told)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_blueprint_is_followed_from_its_put_until_it_is_served(server: NatsServer) -> None:
    with receiver() as (url, spans):
        async with (
            raw(server) as user,
            nodes_on(server) as nodes,
            agents(server, "n1", seen=nodes.heard),
            traced(NodeSettings(NodeId("n1")), url) as settings,
        ):
            await nodes.start("n1", told=settings.told, role=Role.AUTO)
            headers = {"Cdm-By": "alice"}
            revision = await user.put("blueprints", "g/web/1", {"instances": 2, "min_healthy": 0}, headers)

            managing = (await nodes.leader()).managing  # which a node of role auto has a moment after its registration

            def told() -> bool:
                """Whether the leader has seen that it is served, and has told all that it noted."""
                status = managing.manager.cluster.statuses.get("g/web/1")
                ready = status is not None and status.condition is Condition.READY
                return ready and not managing.manager.journal.waiting and not managing._event_writer._writing

            await eventually(told, what="all is told")
    by_name: dict[str, list[Any]] = defaultdict(list)
    for span in spans:
        by_name[span.name].append(span)
    assert {name: len(each) for name, each in by_name.items()} == {
        "serve g:web:1": 1,
        "start g:web:1 on n1": 2,
        "put to LOAD": 2,
        "LOAD to LOADED": 2,
        "LOADED to ACTIVE": 2,
    }
    (root,) = by_name["serve g:web:1"]
    assert len({span.trace_id for span in spans}) == 1
    assert {span.parent_span_id for span in by_name["start g:web:1 on n1"]} == {root.span_id}
    said = {each.key: each.value for each in root.attributes}
    assert (said["cdm.by"].string_value, said["cdm.blueprint"].int_value) == ("alice", revision)
    for slice_ in by_name["start g:web:1 on n1"]:
        stages = sorted(
            (span for span in spans if span.parent_span_id == slice_.span_id),
            key=lambda span: span.start_time_unix_nano,
        )
        assert [span.name for span in stages] == ["put to LOAD", "LOAD to LOADED", "LOADED to ACTIVE"]
        assert stages[0].start_time_unix_nano == slice_.start_time_unix_nano == root.start_time_unix_nano
        assert stages[-1].end_time_unix_nano == slice_.end_time_unix_nano <= root.end_time_unix_nano
