"""The checks of rollouts, made: against real HTTP servers, a real NATS service, and a server that speaks the query API
of Prometheus (no Prometheus runs here).
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from nats.aio.msg import Msg

from cdm import clock
from cdm.checks.answers import Answer
from cdm.checks.asking import Asker
from cdm.checks.checker import Checker
from cdm.checks.lanes import AT_ONCE, AT_ONCE_OF_ONE
from cdm.dispatch.messages import CheckResult, Message
from cdm.manager.active import Active
from cdm.manager.gates import Gate, Gates
from cdm.manager.outbox import Outbox
from cdm.model.artifact import Service
from cdm.model.check import Check, CheckOutcome, CheckRun, HttpCheck, NatsCheck, PrometheusCheck
from cdm.store.connection import connect
from cdm.wakeup import Wakeup
from tests.harness.nodes import Running, nodes_on
from tests.harness.secure import Certificates, fortress
from tests.harness.servers import FORGIVEN, NatsServer, free_port, raw_client
from tests.harness.sites import Request, Site, raw_site, site
from tests.harness.store import connected
from tests.harness.waiting import SLOWNESS, bounded, eventually, in_time

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

SHOP = Service("org.example", "shop")
P, F, E, N = CheckOutcome.PASS, CheckOutcome.FAIL, CheckOutcome.ERROR, CheckOutcome.NO_DATA
RUN = CheckRun((), "1", "1.1.0", "1.0.0", "rolling", 2)


@pytest.fixture
async def asker(server: NatsServer) -> AsyncIterator[Asker]:
    async with connected(server) as connection:
        yield Asker(connection)


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as made:
        yield made


async def ask(asker: Asker, check: Check, run: CheckRun = RUN, turn: int = 0) -> Answer:
    with bounded():
        return await asker.ask(SHOP, check, run, turn)


# HTTP


@pytest.mark.quick
async def test_a_page_passes_by_its_status(asker: Asker, web: Site) -> None:
    web.says("/health", "fine")
    web.says("/moved", status=302, Location="/health")
    web.says("/sick", "", status=503)
    assert await ask(asker, Check(http=f"{web.url}/health")) == Answer(P, "status 200")
    assert await ask(asker, Check(http=f"{web.url}/moved")) == Answer(P, "status 302")
    assert await ask(asker, Check(http=f"{web.url}/sick")) == Answer(F, "status 503")
    assert await ask(asker, Check(http=f"{web.url}/nowhere")) == Answer(F, "status 404")
    assert await ask(asker, Check(http=web.url)) == Answer(F, "status 404")
    assert [target for target, _ in web.asked] == ["/health", "/moved", "/sick", "/nowhere", "/"]


async def test_what_checks_need_is_not_imported_where_the_leader_renews_its_lease(
    server: NatsServer, web: Site
) -> None:
    """In a process of its own, as here all is imported by now: without compiled files it takes a tenth of a second."""
    web.says("/health", "1")
    done = await anyio.run_process([sys.executable, "-c", IMPORTS, server.url, web.url], stderr=None)
    told = json.loads(done.stdout)
    assert told["outcomes"] == [P, P, E, E, E]
    assert "httpcore2" in told["elsewhere"]
    assert told["on the loop"] == []


IMPORTS = """
import json, sys, threading

import anyio

from cdm.node.managing import Asker
from cdm.model.artifact import Service
from cdm.model.check import Check, CheckRun, PrometheusCheck
from cdm.store.access import Access
from cdm.store.connection import connect

found = {"on the loop": [], "elsewhere": [], "outcomes": []}

class Finder:
    def find_spec(self, name, path=None, target=None):
        on_loop = threading.current_thread() is threading.main_thread()
        found["on the loop" if on_loop else "elsewhere"].append(name)

async def main(server, web):
    async with connect(Access(servers=(server,)), name="test") as connection:
        asker = Asker(connection)
        await anyio.to_thread.run_sync(int)  # threads need modules, too, and a node has had some by now
        sys.meta_path.insert(0, Finder())
        run = CheckRun((), "1", "1.1.0", "1.0.0", "rolling", 2)
        for check in (
            Check(http=web + "/health"),
            Check(http=web + "/health", ok="== 1"),
            Check(http=web.replace("http:", "https:") + "/health", timeout=1.0),
            Check(prometheus=PrometheusCheck("http://127.0.0.1:1", "up"), ok="== 1"),
            Check(nats="nobody.answers", ok="== 1"),
        ):
            found["outcomes"].append(str((await asker.ask(Service("g", "n"), check, run, 0)).outcome))

anyio.run(main, *sys.argv[1:])
print(json.dumps(found))
"""


async def test_a_page_is_a_number_or_has_one(asker: Asker, web: Site) -> None:
    web.says("/rate", "0.02\n")
    web.says("/stats", json.dumps({"errors": {"rate": 0.001}}))
    assert await ask(asker, Check(http=f"{web.url}/rate", ok="< 0.01")) == Answer(F, "0.02 is not < 0.01", 0.02)
    in_json = Check(http=HttpCheck(f"{web.url}/stats", "errors.rate"), ok="< 0.01")
    assert await ask(asker, in_json) == Answer(P, "0.001 is < 0.01", 0.001)


async def test_the_request_tells_which_version_is_asked_for_and_nothing_that_is_secret(
    asker: Asker, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    web.says("/org.example/shop", "0")
    check = Check(http=f"{web.url}/{{group}}/{{name}}?version={{version}}&from={{from}}&step={{step}}", ok="== 0")
    assert (await ask(asker, check, replace(RUN, version="1.0&x=1"))).outcome is P
    target, headers = web.asked[0]
    assert target == "/org.example/shop?version=1.0%26x%3D1&from=1.0.0&step=2"
    assert headers["Host"] == web.url.removeprefix("http://")
    assert headers["User-Agent"].startswith("cdm/")
    assert headers.keys() == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


async def test_each_new_instance_is_asked_in_its_turn(asker: Asker) -> None:
    check = Check(http="http://{instance}/health")
    assert await ask(asker, check) == Answer(N, "no data: no new instance serves yet")
    with site() as good, site() as bad:
        good.says("/health")
        bad.says("/health", status=500)
        run = replace(RUN, instances=(("127.0.0.1", good.port), ("127.0.0.1", bad.port)))
        first, second = (f"GET http://127.0.0.1:{each.port}/health" for each in (good, bad))
        assert [await ask(asker, check, run, turn) for turn in range(3)] == [
            Answer(P, "status 200", asked=first),
            Answer(F, "status 500", asked=second),
            Answer(P, "status 200", asked=first),
        ]
        metrics = Check(prometheus=PrometheusCheck("http://{instance}", "up"), ok="== 1")
        answer = await ask(asker, metrics, run, 1)
        assert answer.asked == f"Prometheus query up at 127.0.0.1:{bad.port}"


async def test_a_loop_of_redirects_is_not_followed(asker: Asker, web: Site) -> None:
    web.says("/loop", status=302, Location="/loop")
    assert await ask(asker, Check(http=f"{web.url}/loop", ok="< 1")) == Answer(
        E, "status 302, which leads to /loop: write that address"
    )
    assert len(web.asked) == 1


def drips(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Goes on for ever, in little pieces."""

    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(head)
        while True:
            time.sleep(0.05)
            sock.sendall(drop)

    return answer


def pours(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Goes on for ever, as fast as it is read."""

    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(head)
        while True:
            sock.sendall(drop)

    return answer


def says(text: bytes) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(text)

    return answer


def is_silent(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LATE = "no answer within 0.5 s"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(is_silent, LATE, id="silent"),
        pytest.param(drips(b"HTTP/1.1 2", b""), LATE, id="half a line"),
        pytest.param(drips(OK, b"X: y\r\n"), LATE, id="headers in drops"),
        pytest.param(drips(OK + b"Content-Length: 9999\r\n\r\n", b"1"), LATE, id="body in drops"),
        pytest.param(drips(CHUNKED, b"1\r\n1\r\n"), LATE, id="chunks in drops"),
        pytest.param(drips(OK + b"\r\n", b"1"), LATE, id="body without an end in drops"),
        pytest.param(pours(OK, b"X: y\r\n" * 100), None, id="headers without an end"),
        pytest.param(pours(b"", b"x" * 1000), None, id="a line without an end"),
        pytest.param(pours(OK + b"\r\n", b"1" * 10_000), "the answer is longer than 64 KiB", id="body without an end"),
        pytest.param(
            pours(CHUNKED, b"1\r\n1\r\n" * 99), "the answer is longer than 64 KiB", id="chunks without an end"
        ),
        pytest.param(
            pours(CHUNKED + b"ffffffff\r\n", b"1" * 999), "the answer is longer than 64 KiB", id="a huge chunk"
        ),
        pytest.param(says(b""), None, id="closes"),
        pytest.param(says(b"220 mail.example ESMTP\r\n"), None, id="another protocol"),
        pytest.param(says(b"\x15\x03\x03\x00\x02\x02\x46"), None, id="TLS"),
        pytest.param(says(b"HTTP/1.1 2xx OK\r\n\r\n"), None, id="no status"),
        pytest.param(says(OK + b"Content-Length: -1\r\n\r\n"), None, id="a negative length"),
        pytest.param(says(OK + b"Content-Length: 10\r\n\r\n0"), None, id="a body that is cut off"),
        pytest.param(says(CHUNKED + b"zz\r\n"), None, id="a chunk without a length"),
        pytest.param(says(OK + b"a\0b: c\r\n\r\n0"), None, id="a header that is none"),
        pytest.param(
            says(OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"),
            "the answer is no number: '\ufffd\\x08'",
            id="compressed, though not asked for",
        ),
    ],
)
async def test_a_server_that_answers_badly_says_nothing(
    asker: Asker, answer: Callable[[socket.socket], None], reason: str | None
) -> None:
    with raw_site(answer) as url, bounded(5):
        found = await ask(asker, Check(http=url, ok="< 1", timeout=0.5 if reason == LATE else 60.0))
    assert found.outcome is E
    assert found.reason
    assert reason is None or found.reason == reason


async def test_a_body_that_nobody_needs_is_not_read(asker: Asker) -> None:
    with raw_site(pours(OK + b"\r\n", b"1" * 10_000)) as url:
        assert await ask(asker, Check(http=url)) == Answer(P, "status 200")


@pytest.mark.quick
async def test_where_nobody_answers_it_is_told_in_the_systems_words(asker: Asker) -> None:
    assert await ask(asker, Check(http=f"http://127.0.0.1:{free_port()}/")) == Answer(E, "Connection refused")
    assert await ask(asker, Check(http="http://a..b/")) == Answer(E, "a..b cannot be the name of a host")
    unknown = await ask(asker, Check(http="http://no-such-host.invalid/", timeout=20.0))
    assert unknown.outcome is E
    assert unknown.reason


async def test_a_name_may_have_several_addresses(asker: Asker, web: Site) -> None:
    web.says("/health")
    assert await ask(asker, Check(http=f"http://localhost:{web.port}/health")) == Answer(P, "status 200")


async def test_names_that_nobody_resolves_hold_up_nothing_else(
    asker: Asker, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up that hangs is made here: there is no name server that could be told to."""
    over, real = threading.Event(), socket.getaddrinfo
    looked_up: list[str] = []

    def hanging(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith(".invalid"):
            looked_up.append(host)
            over.wait(60)
            raise OSError("nobody says")
        return real(host, *args, **options)

    web.says("/health")
    await ask(asker, Check(http=f"{web.url}/health"))  # the first one imports what it takes
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    try:
        found: list[Answer] = []

        async def ask_one(number: int) -> None:
            found.append(await ask(asker, Check(http=f"http://h{number % 40}.invalid/", timeout=0.3)))

        async with anyio.create_task_group() as tasks:
            for number in range(80):
                tasks.start_soon(ask_one, number)
            assert await ask(asker, Check(http=f"{web.url}/health")) == Answer(P, "status 200")
            # The names of everybody else are looked up in other threads.
            await anyio.getaddrinfo("localhost", 80)
        assert {each.reason for each in found} == {"no answer within 0.3 s"}
        assert 1 <= len(looked_up) <= 8, "those that wait for their turn, and those that had none before they were late"
    finally:
        over.set()
    await eventually(lambda: not any("look-up" in each.name for each in threading.enumerate()))
    monkeypatch.undo()
    assert await ask(asker, Check(http=f"http://localhost:{web.port}/health")) == Answer(P, "status 200")


async def test_certificates_are_checked(asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs")
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca))

    def tls(certificates: Certificates) -> Callable[[socket.socket], socket.socket]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.cert, certificates.key)
        return lambda sock: context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    with site(tls(ours)) as good, site(tls(theirs)) as bad:
        for each in (good, bad):
            each.says("/health")
        assert await ask(asker, Check(http=f"https://localhost:{good.port}/health")) == Answer(P, "status 200")
        refused = await ask(asker, Check(http=f"https://localhost:{bad.port}/health"))
        assert refused.outcome is E
        assert "certificate" in refused.reason
        assert bad.asked == []
    with raw_site(is_silent) as silent:
        never = Check(http=silent.replace("http://127.0.0.1", "https://localhost"), timeout=0.5)
        assert await ask(asker, never) == Answer(E, LATE)
    with site() as plain:
        assert (await ask(asker, Check(http=plain.url.replace("http:", "https:")))).outcome is E


async def test_checks_that_are_broken_off_leave_no_socket(
    asker: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert, certificates.key)
    rng = random.Random(1)

    def target(link: Path) -> str:
        try:
            return link.readlink().name
        except OSError:  # closed meanwhile, by a thread of the servers
            return ""

    def ours() -> int:
        """Sockets that lead to one of the two servers."""
        ports = {f":{port:04X}" for port in (secure.port, plain.port)}
        table = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        inodes = {line.split()[9] for line in table if line.split()[2][8:] in ports}
        links = [target(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(name.startswith("socket:[") and name[8:-1] in inodes for name in links)

    async def ask_a_while(check: Check, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await asker.ask(SHOP, check, RUN, 0)

    def slow(request: Request) -> None:
        time.sleep(0.02)
        request.say(200, b"0" * 1000, {})

    wrap = partial(context.wrap_socket, server_side=True, do_handshake_on_connect=False)
    with site(wrap) as secure, site() as plain:
        for each in (secure, plain):
            each.pages["/"] = slow
        checks = [Check(http=plain.url, ok="< 1"), Check(http=f"https://localhost:{secure.port}/", ok="< 1")]
        assert [(await ask(asker, check)).outcome for check in checks] == [P, P]
        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(ask_a_while, rng.choice(checks), rng.uniform(0.0, 0.2))
                await anyio.sleep(rng.uniform(0.0, 0.005))
        await eventually(lambda: not ours(), what="no socket is left")


# Prometheus


@pytest.mark.quick
async def test_a_query_is_put_to_prometheus(asker: Asker, web: Site) -> None:
    samples = {'sum(errors{version="1.1.0"})': ["0.002"], "idle": [], "nan": ["NaN"], "many": ["1", "2"]}
    web.measures(lambda query: samples[query])

    async def query(text: str, ok: str = "< 0.01") -> Answer:
        return await ask(asker, Check(prometheus=PrometheusCheck(web.url, text), ok=ok, timeout="30500ms"))

    assert await query('sum(errors{version="{version}"})') == Answer(P, "0.002 is < 0.01", 0.002)
    assert await query('sum(errors{version="{version}"})', "> 1") == Answer(F, "0.002 is not > 1", 0.002)
    assert (await query("idle")).outcome is N
    assert (await query("nan")).outcome is N
    assert (await query("many")).outcome is E
    assert web.asked[0][0].startswith("/api/v1/query?query=sum%28errors%7Bversion%3D%221.1.0%22%7D%29&timeout=30.5")


async def test_prometheus_may_be_below_a_path_and_say_what_is_wrong(asker: Asker, web: Site) -> None:
    refusal = {"status": "error", "errorType": "bad_data", "error": "1:4: parse error: unexpected end of input"}
    web.says("/prometheus/api/v1/query", json.dumps(refusal), status=400)
    for base in (f"{web.url}/prometheus", f"{web.url}/prometheus/"):
        found = await ask(asker, Check(prometheus=PrometheusCheck(base, "sum("), ok="< 1"))
        assert found == Answer(E, "Prometheus refuses the query: 1:4: parse error: unexpected end of input")
    assert (await ask(asker, Check(prometheus=PrometheusCheck(web.url, "up"), ok="< 1"))).outcome is E


# NATS


@pytest.mark.quick
async def test_a_service_is_asked_over_nats(server: NatsServer, asker: Asker) -> None:
    heard: list[Any] = []

    async def respond(message: Msg) -> None:
        heard.append(json.loads(message.data))
        await message.respond(answers.pop(0))

    answers = [b"ok", b'{"ok": false, "reason": "3 orders are stuck"}', b"null", b"9", b"x" * 70_000]
    async with raw_client(server.url) as service:
        await service.subscribe("shop.health.>", cb=respond)
        await service.flush()
        check = Check(nats="{name}.health.{version}")
        assert await ask(asker, check) == Answer(P, "ok")
        assert await ask(asker, check) == Answer(F, "3 orders are stuck")
        assert await ask(asker, check) == Answer(N, "no data")
        assert await ask(asker, replace(check, ok="< 5")) == Answer(F, "9 is not < 5", 9.0)
        assert await ask(asker, check) == Answer(E, "the answer is longer than 64 KiB")
    assert heard[0] == {
        "service": "org.example:shop",
        "group": "org.example",
        "name": "shop",
        "version": "1.1.0",
        "from": "1.0.0",
        "phase": "rolling",
        "step": 2,
    }


async def test_nobody_answers_over_nats(server: NatsServer, asker: Asker) -> None:
    async def ignore(_: Msg) -> None: ...

    async with raw_client(server.url) as service:
        await service.subscribe("silent", cb=ignore)
        await service.flush()
        assert await ask(asker, Check(nats="nobody")) == Answer(E, "nobody answers at nobody")
        assert await ask(asker, Check(nats="silent", timeout=0.3)) == Answer(E, "no answer within 0.3 s")
    server.kill()
    assert (await ask(asker, Check(nats="silent", timeout=0.5))).outcome is E


@pytest.mark.parametrize(
    ("subject", "version"),
    [
        ("cdm.node.n1", "1"),
        ("cdm.leader.1", "1"),
        ("{version}.API.STREAM.DELETE.KV_slices", "$JS"),
        ("{version}.slices._term", "$KV"),
        ("{version}.x", "_INBOX"),
        ("{version}.node.n1", "cdm"),
        ("a.{version}", ">"),
        ("a.{version}", "*"),
        ("a.{version}", "1..2"),
        ("a.{version}", ".1"),
    ],
)
async def test_who_writes_blueprints_cannot_speak_for_the_manager(
    server: NatsServer, asker: Asker, subject: str, version: str
) -> None:
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    async with raw_client(server.url) as witness:
        for each in ("$JS.API.STREAM.DELETE.>", "$KV.>", "cdm.>", "a.>", "_INBOX.x"):
            await witness.subscribe(each, cb=hear)
        await witness.flush()
        found = await ask(asker, Check(nats=subject), replace(RUN, version=version))
        assert found.outcome is E
        assert found.reason != f"nobody answers at {subject}"
        await witness.flush()
    assert heard == []


async def test_subjects_under_the_clusters_prefix_are_cdms_own(server: NatsServer) -> None:
    async with connected(server, prefix="blue") as connection:
        found = await ask(Asker(connection), Check(nats="blue.cdm.node.n1"))
        assert found == Answer(E, "nothing is asked at blue.cdm.node.n1: it is a subject of NATS, or of cdm")
        assert await ask(Asker(connection), Check(nats="blue.shop")) == Answer(E, "nobody answers at blue.shop")


async def test_a_manager_that_may_not_ask_says_which_permission_it_lacks(tmp_path: Path) -> None:
    async with fortress(tmp_path) as made, connect(made.access("manager-1"), name="test") as connection:
        found = await ask(Asker(connection), Check(nats="shop.health"))
        assert found.outcome is E
        assert found.reason.startswith('permission denied: publish "shop.health"')


# Again and again


class Bench:
    """A `Checker` at work, and what it said. Made by `bench`."""

    def __init__(self, asker: Asker) -> None:
        self.said: list[CheckResult] = []
        self._ready = Wakeup()
        self.outbox = Outbox(lambda: None, lambda: None, on_checks=self._ready.set)
        self.gates = Gates(self.outbox)
        self.checker = Checker(self.outbox, self._ready, asker, self._take)

    def _take(self, message: Message) -> None:
        assert isinstance(message, CheckResult)
        self.said.append(message)
        self.gates.hear(message)

    def gate(self, service: Service = SHOP) -> Gate:
        return self.gates.judge(service, self.said[-1].at if self.said else 0.0).gate


@asynccontextmanager
async def bench(asker: Asker) -> AsyncIterator[Bench]:
    made = Bench(asker)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.checker.run)
        yield made
        tasks.cancel_scope.cancel()


def run(*checks: Check, series: str = "1") -> CheckRun:
    return replace(RUN, checks=checks, series=series)


@pytest.mark.quick
async def test_checks_are_made_until_they_pass_or_fail(asker: Asker, web: Site) -> None:
    web.says("/health")
    async with bench(asker) as made:
        began = clock.now()
        made.gates.begin(SHOP, run(Check(http=f"{web.url}/health", interval=1.0, count=3)))
        await eventually(lambda: made.gate() is Gate.PASS)
        assert made.said[2].at - began >= 1.9, "two intervals"
        web.says("/health", status=500)
        await eventually(lambda: made.gate() is Gate.FAIL)
        assert made.gates.judge(SHOP, made.said[-1].at).reason == (
            f"GET {web.url}/health: status 500 (2 failing answers, 1 tolerated)"
        )


async def test_what_is_not_wanted_any_more_is_not_asked_and_not_told(asker: Asker, web: Site) -> None:
    hold, begun = threading.Event(), threading.Event()

    def slow(request: Request) -> None:
        begun.set()
        hold.wait(30)
        request.say(200, b"", {})

    web.pages["/slow"] = slow
    web.says("/health")
    async with bench(asker) as made:
        made.gates.begin(SHOP, run(Check(http=f"{web.url}/slow", timeout=30.0)))
        await eventually(begun.is_set)
        made.gates.begin(SHOP, run(Check(http=f"{web.url}/health", interval=1.0), series="2"))
        await eventually(lambda: made.said)
        hold.set()
        made.outbox.clear()
        await anyio.sleep(0.1)
        asked = len(web.asked)
        await anyio.sleep(1.5)
        assert len(web.asked) == asked
        assert {each.series for each in made.said} == {"2"}


async def test_another_step_is_asked_about_at_once_and_what_is_told_changes_without_a_pause(
    asker: Asker, web: Site
) -> None:
    web.says("/health")
    check = Check(http=f"{web.url}/health?{{phase}}", interval=3_600.0)
    async with bench(asker) as made:
        made.gates.begin(SHOP, run(check))
        await eventually(lambda: len(made.said) == 1)
        made.gates.begin(SHOP, replace(run(check), phase="paused"))
        await anyio.sleep(0.2)
        assert len(made.said) == 1
        made.gates.begin(SHOP, replace(run(check, series="2"), phase="paused"))
        await eventually(lambda: len(made.said) == 2)
    assert [target for target, _ in web.asked] == ["/health?rolling", "/health?paused"]


async def test_whatever_is_wanted_and_not_wanted_any_more_in_the_end_the_last_word_counts(
    asker: Asker, web: Site
) -> None:
    web.says("/health")
    rng = random.Random(2)
    services = [Service("g", f"s{number}") for number in range(5)]
    checks = [Check(http=f"{web.url}/health?{number}", interval=3_600.0) for number in range(3)]
    async with bench(asker) as made:
        for _ in range(400):
            service = rng.choice(services)
            if rng.random() < 0.3:
                made.gates.end(service)
            else:
                some = rng.sample(checks, rng.randint(0, 3))
                made.gates.begin(service, run(*some, series=str(rng.randint(0, 2))))
            if rng.random() < 0.5:
                await anyio.sleep(rng.choice([0, 0, 0.001, 0.02]))
        made.said.clear()
        for number, service in enumerate(services):
            made.gates.begin(service, run(*checks[: number % 3], series="last"))
        wanted = {(service, number) for at, service in enumerate(services) for number in range(at % 3)}
        await eventually(lambda: {(each.service, each.index) for each in made.said if each.series == "last"} == wanted)
        await anyio.sleep(0.2)
        told = Counter((each.service, each.index) for each in made.said if each.series == "last")
        assert told == dict.fromkeys(wanted, 1)
        assert len(made.checker._running) == len(wanted)
        made.outbox.clear()
        await eventually(lambda: not made.checker._running)


async def test_hanging_endpoints_hold_up_neither_the_loop_nor_other_checks(asker: Asker, web: Site) -> None:
    web.says("/health")
    gaps: list[float] = []

    async def feel() -> None:
        while True:
            began = time.monotonic()
            await anyio.sleep(0.01)
            gaps.append(time.monotonic() - began)

    with raw_site(is_silent) as silent:
        async with bench(asker) as made, anyio.create_task_group() as tasks:
            await ask(asker, Check(http=f"{web.url}/health"))  # imports what it takes
            tasks.start_soon(feel)
            for number in range(200):
                service = Service("g", f"s{number}")
                made.gates.begin(service, run(*[Check(http=silent, interval=1.0, timeout=20.0)] * 5))
            await anyio.sleep(0.5)
            made.gates.begin(SHOP, run(Check(http=f"{web.url}/health", interval=1.0, count=2)))
            await in_time(lambda: made.gate() is Gate.PASS, 3.0)
            made.outbox.clear()
            tasks.cancel_scope.cancel()
    assert sorted(gaps)[len(gaps) // 2] < 0.1 * SLOWNESS


async def test_thousands_of_checks_do_not_open_thousands_of_connections(asker: Asker) -> None:
    def slow(request: Request) -> None:
        time.sleep(0.02)
        request.say(200, b"", {})

    with site() as first, site() as second, site() as third, site() as fourth, site() as fifth:
        sites = (first, second, third, fourth, fifth)
        for each in sites:
            each.pages["/"] = slow
        async with bench(asker) as made:
            for number in range(500):
                checks = [Check(http=each.url, interval=3_600.0, timeout=60.0) for each in sites]
                made.gates.begin(Service("g", f"s{number}"), run(*checks))
            await eventually(lambda: len(made.said) == 2_500, within=60)
        assert Counter(each.outcome for each in made.said) == {P: 2_500}
        assert max(each.most_at_once for each in sites) <= AT_ONCE_OF_ONE
        assert sum(each.most_at_once for each in sites) <= AT_ONCE + AT_ONCE_OF_ONE


async def test_what_goes_wrong_in_unforeseen_ways_is_an_error_of_that_check(
    asker: Asker, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdm.checks import web as client  # noqa: PLC0415

    async def broken(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(client.WebClient, "get", broken)
    async with bench(asker) as made:
        made.gates.begin(SHOP, run(Check(http=web.url, interval=1.0)))
        await eventually(lambda: len(made.said) == 2)
    assert made.said[0].outcome is E
    assert made.said[0].reason == "the check cannot be made: a fault of ours"


# On a node


@pytest.mark.quick
async def test_the_leader_makes_the_checks_and_a_new_one_begins_anew(server: NatsServer, web: Site) -> None:
    web.says("/health")
    wanted = run(Check(http=f"{web.url}/health", interval=1.0, count=2), Check(nats=NatsCheck("shop.lag"), ok="< 5"))

    def reason(running: Running) -> str:
        state = running.managing.manager.state
        assert isinstance(state, Active)
        return state.gates.judge(SHOP, clock.now()).reason

    def begin(running: Running) -> None:
        state = running.managing.manager.state
        assert isinstance(state, Active)
        state.gates.begin(SHOP, wanted)

    settled = "check 2, NATS request shop.lag: nobody answers at shop.lag; 0 of 3 passes"
    async with nodes_on(server, lease_ttl=20.0, node_ttl=20.0) as nodes:  # who leads loses it by dying alone
        await nodes.start("n1", "n2")
        first = await nodes.leader()
        begin(first)
        await eventually(lambda: reason(first) == settled)
        await first.crash()
        second = await nodes.leader(above=first.active)
        begin(second)
        assert reason(second) == (
            f"check 1, GET {web.url}/health: no result yet; check 2, NATS request shop.lag: no result yet"
        )
        await eventually(lambda: reason(second) == settled)
        await second.stop()
        asked = len(web.asked)
        assert second.managing.outbox.checks == {}
        nodes.unharmed()
        await anyio.sleep(2.5)  # more than two intervals
        assert len(web.asked) <= asked + 1
