"""Endpoints over HTTP, and as a proxy is told of them: real processes on a store that is filled by hand."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cli.test_cli import run
from tests.docs.documents import adapted, commands
from tests.harness import forked
from tests.harness.forked import Child
from tests.harness.paths import ROOT
from tests.harness.processes import environment
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.terminal import terminal
from tests.harness.waiting import bounded, eventually, patience
from tests.harness.web import WebAnswer, asked
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


@pytest.fixture
async def user(server: NatsServer) -> AsyncIterator[Raw]:
    """Somebody who writes into a cluster with two nodes, each with an instance of acme:web."""
    assert run("init", "--server", server.url).returncode == 0
    async with raw(server) as user:
        await user.put("blueprints", "acme/web/1", 2)
        for number in (1, 2):
            await user.put("nodes", f"n{number}", {"address": f"10.0.0.{number}", "ttl": 2})
            await serve(user, f"n{number}.acme/web/1", 8000 + number)
        yield user


async def serve(user: Raw, name: str, port: int) -> None:
    await user.stubborn("slices", name, {"state": "ACTIVE", "address": "10.0.0.9", "port": port})


@asynccontextmanager
async def started(folder: Path, server: NatsServer, *command: str) -> AsyncIterator[tuple[Child, Path]]:
    """A command that runs, and the file of its output."""
    output = folder / f"{command[0]}.log"
    with output.open("wb") as told:
        process = forked.started(*command, "--server", server.url, env=environment(), stdout=told, stderr=told)
    try:
        yield process, output
    finally:
        process.kill()
        process.wait(patience())


@asynccontextmanager
async def serving(folder: Path, server: NatsServer) -> AsyncIterator[str]:
    """``cdm serve``, which has listed everything; where it is."""
    at = f"127.0.0.1:{free_port()}"
    async with started(folder, server, "serve", "--http", at) as (_, output):

        async def listed() -> bool:
            return (await asked(at, "/v1/services")).status == 200

        await eventually(lambda: "serving HTTP" in output.read_text(), 30)
        await eventually(listed, what="it has listed everything")
        yield at


def ports(answer: WebAnswer) -> list[int]:
    (service,) = answer.json["services"]
    return [each["port"] for each in service["endpoints"]]


@pytest.mark.quick
async def test_what_proxies_ask_is_answered_and_what_is_wrong_is_told(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    async with serving(tmp_path, server) as at:

        async def fresh() -> WebAnswer | None:
            answer = await asked(at, "/v1/services")
            return answer if answer.headers["age"] == "0" else None

        first = await eventually(fresh)
        assert first is not None
        assert ports(first) == [8001, 8002]
        assert first.headers["content-type"] == "application/json"
        same = await asked(at, "/v1/services", headers={"If-None-Match": first.headers["etag"]})
        assert (same.status, same.body) == (304, b"")

        envoy = await asked(at, "/v3/discovery:endpoints", {"resource_names": ["acme:web"], "node": {"id": "x"}})
        assert len(envoy.json["resources"][0]["endpoints"][0]["lb_endpoints"]) == 2
        known = {"resource_names": ["acme:web"], "version_info": envoy.json["version_info"]}
        assert (await asked(at, "/v3/discovery:endpoints", known)).status == 304
        assert (await asked(at, "/v3/discovery:clusters", {})).json["resources"][0]["name"] == "acme:web"
        assert "acme:web" in (await asked(at, "/v1/traefik")).json["http"]["services"]
        assert [each["targets"] for each in (await asked(at, "/v1/sd/prometheus?service=acme:web")).json] == [
            ["10.0.0.9:8001"],
            ["10.0.0.9:8002"],
        ]
        assert (await asked(at, "/v1/sd/prometheus?service=acme:none")).json == []

        wrong: list[tuple[str, Any, int]] = [
            ("/v1/services?wait=soon&index=x", None, 400),
            ("/v1/services?index=x&wait=" + "9" * 400, None, 200),  # another index is answered at once
            ("/v3/discovery:endpoints", ["no", "object"], 400),
            ("/v3/discovery:endpoints", {"resource_names": [1]}, 400),
            ("/v3/discovery:endpoints", {"resource_names": ["x" * 1_100_000]}, 413),
            ("/v3/discovery:endpoints", None, 405),
            ("/v1/../../etc/passwd", None, 404),
            ("/v1/services/%00", None, 404),
            (f"/v1/services?{'service=x&' * 5_000}", None, 200),
        ]
        for path, body, status in wrong:
            assert (await asked(at, path, body)).status == status, path[:80]


@pytest.mark.quick
async def test_who_waits_for_news_hears_of_them_and_of_nothing_else(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    async with serving(tmp_path, server) as at:
        index = (await asked(at, "/v1/services?service=acme:web")).json["index"]
        heard: list[WebAnswer] = []

        async def wait() -> None:
            heard.append(await asked(at, f"/v1/services?service=acme:web&index={index}&wait=10m"))

        async with anyio.create_task_group() as tasks:
            with bounded():
                tasks.start_soon(wait)
                assert (await asked(at, f"/v1/services?service=acme:web&index={index}&wait=100ms")).json[
                    "index"
                ] == index
                await serve(user, "n1.acme/other/1", 9000)
                await eventually(lambda: other(at), what="the other service is known")
                assert not heard
                await serve(user, "n2.acme/web/1/1", 8003)
        assert ports(heard[0]) == [8001, 8002, 8003]


async def other(at: str) -> bool:
    return len((await asked(at, "/v1/services")).json["services"]) == 2


async def test_the_last_good_answer_stands_while_nats_is_away_and_where_none_serves(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    async with serving(tmp_path, server) as at:
        for number in (1, 2):
            await user.put("slices", f"n{number}.acme/web/1", {"state": "UNLOAD", "after": 5})

        async def stale() -> bool:
            return (await asked(at, "/v1/services")).headers.get("cdm-stale") == "acme:web"

        await eventually(stale, what="none serves")
        answer = await asked(at, "/v1/services")
        assert ports(answer), "the last ones that served"
        assert not answer.json["services"][0]["current"]
        assert (await asked(at, "/v1/sd/prometheus")).json == []
        await serve(user, "n2.acme/web/1/1", 8003)

        async def current() -> bool:
            return ports(await asked(at, "/v1/services")) == [8003]

        await eventually(current, what="another one serves")
        server.kill()

        async def aged() -> bool:
            answer = await asked(at, "/v1/services")
            assert ports(answer) == [8003]
            return int(answer.headers["age"]) >= 1

        await eventually(aged, what="the answer tells its age")
        await server.restart()

        async def young() -> bool:
            return (await asked(at, "/v1/services")).headers["age"] == "0"

        await eventually(young, 30, "NATS is heard again")
        async with raw(server) as again:
            await again.stubborn("blueprints", "acme/web/1", 0)
            await again.stubborn("slices", "n2.acme/web/1/1", {"state": "UNLOAD"})

        async def empty() -> bool:
            return ports(await asked(at, "/v1/services")) == []

        await eventually(empty, what="none is wanted, and none is told")


async def test_before_nats_was_heard_nothing_is_known(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as told:
        nowhere = f"nats://127.0.0.1:{free_port()}"
        process = forked.started("serve", "--http", at, "--server", nowhere, env=environment(), stderr=told)
    try:
        await eventually(lambda: "cannot connect to NATS" in (tmp_path / "log").read_text(), 30)
        for path, body in (("/v1/services", None), ("/v1/traefik", None), ("/v3/discovery:endpoints", {})):
            answer = await asked(at, path, body)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert b"not known yet" in answer.body
    finally:
        process.kill()
        process.wait(patience())


async def test_the_commands_of_the_documents(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    install, serve_it = commands("Serving")
    (extra,) = re.findall(r"^python -m pip install '\.\[(\w+)\]'$", install)
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    port = str(free_port())
    own = {"8280": port, "org.example:slice": "acme:web"}
    ask, wait = (
        adapted(each, {shown: used for shown, used in own.items() if shown in each}) for each in commands("A catalogue")
    )
    async with terminal(tmp_path, NATS_URL=server.url, CDM_HTTP=f"127.0.0.1:{port}") as shell:
        await shell.start(serve_it, "serve")

        async def known() -> Any:
            told = await shell.type(ask)
            return json.loads(told) if "index" in told else None

        told = await eventually(known, 30)
        assert [each["port"] for each in told["services"][0]["endpoints"]] == [8001, 8002]
        await serve(user, "n2.acme/other/1", 8003)
        assert "8003" in await shell.good(adapted(wait, {"INDEX": told["index"]}))
        await shell.good("kill $serve; wait $serve")


# A file, and a command


@pytest.mark.quick
async def test_a_file_is_written_at_each_change_and_a_command_that_fails_is_tried_again(
    server: NatsServer, user: Raw, tmp_path: Path
) -> None:
    template, made, runs, fine = (tmp_path / name for name in ("web.tmpl", "web.conf", "runs", "fine"))
    template.write_text("pool {{service}} of {{count}}\nserver {{endpoint}};\n{{none}}server none;\nend\n")
    command = f"cat {made} >> {runs}; [ -e {fine} ] || {{ echo no such proxy >&2; exit 7; }}"
    follow = ("endpoints", "acme:web", "--template", str(template), "--out", str(made), "--exec", command)
    async with started(tmp_path, server, *follow) as (process, output):
        await eventually(lambda: "trying again in" in output.read_text())
        assert "cdm: --exec ended with 7: no such proxy; trying again in 1 s\n" in output.read_text()
        fine.touch()
        await eventually(lambda: "acme:web: 2 instances" in output.read_text())
        assert made.read_text() == "pool acme:web of 2\nserver 10.0.0.9:8001;\nserver 10.0.0.9:8002;\nend\n"

        count = runs.read_text().count("pool")
        await user.put("nodes", "n1", {"address": "10.0.0.1", "ttl": 2})
        await serve(user, "n2.acme/other/1", 9000)
        await serve(user, "n2.acme/web/1/1", 8003)
        await eventually(lambda: "acme:web: 3 instances" in output.read_text())
        assert runs.read_text().count("pool") == count + 1, "only after a change of this service"

        for name in ("n1.acme/web/1", "n2.acme/web/1", "n2.acme/web/1/1"):
            await user.put("slices", name, {"state": "UNLOAD"})
        await eventually(lambda: "no instance of acme:web serves, though some are wanted" in output.read_text())
        assert "server none" not in made.read_text()
        await user.put("blueprints", "acme/web/1", 0)
        await eventually(lambda: "acme:web: 0 instances" in output.read_text())
        assert made.read_text() == "pool acme:web of 0\nserver none;\nend\n"
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.poll() is not None, what="it ends")
        assert process.returncode == 0


async def test_a_command_that_cannot_be_run_is_tried_again(server: NatsServer, user: Raw, tmp_path: Path) -> None:
    template, made, runs, scratch = (tmp_path / name for name in ("web.tmpl", "web.conf", "runs", "scratch"))
    template.write_text("server {{endpoint}};\n")
    scratch.mkdir()
    command = [sys.executable, "-m", "cdm", "endpoints", "acme:web", "--server", server.url]
    command += ["--template", str(template), "--out", str(made), "--exec", f"echo told >> {runs}"]
    output, env = tmp_path / "output", {**environment(), "TMPDIR": str(scratch)}
    with output.open("wb") as told:
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, env=env)
    try:
        await eventually(lambda: "acme:web: 2 instances" in output.read_text(), 20)
        scratch.rename(tmp_path / "away")
        await serve(user, "n2.acme/web/1/1", 8003)
        await eventually(lambda: "trying again in" in output.read_text() or process.returncode is not None, 20)
        assert "cdm: --exec cannot be run: No such file or directory; trying again in 1 s\n" in output.read_text()
        (tmp_path / "away").rename(scratch)
        await eventually(lambda: "acme:web: 3 instances" in output.read_text(), 40)
        assert runs.read_text().splitlines() == ["told"] * 2
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.quick
def test_options_that_make_no_sense_together_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("{{endpoint}}")
    bad.write_text("x\n{{enpoint}}\n")
    wrong: dict[tuple[str, ...], str] = {
        ("--template", str(good)): "--template needs --out FILE",
        ("--out", "x"): "are about the file that is made from --template",
        ("--exec", "true"): "are about the file that is made from --template",
        ("--template", str(good), "--out", str(good)): "--out is the template itself",
        ("--template", str(tmp_path / "none"), "--out", "x"): "No such file",
        ("--template", str(bad), "--out", "x"): "line 2: there is no {{enpoint}} (did you mean endpoint?)",
        ("--template", str(good), "--out", "x", "--watch"): "leave them out with --template or --caddy",
        ("--caddy", "http://127.0.0.1:2019/id/x", "--exec", "true"): "choose one of them",
        ("--files", "x"): "--files is about what Caddy is told",
        ("--caddy", "http://127.0.0.1:2019/id/x", "--files", "{x}"): "its name must not have braces",
        ("--caddy", "http://127.0.0.1:2019/id/x", "--files", str(good)): "File exists",
        **{
            ("--caddy", url): "is no handler in Caddy's admin API"
            for url in ("x", "https://h/id/x", "http://h", "http://h/load", "http://h:0/id/x", "http://h/id/x?y")
        },
    }
    for options, told in wrong.items():
        refused = run("endpoints", "acme:web", *options)
        assert refused.returncode == 2, options
        assert told in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert json.dumps(sorted(each.name for each in tmp_path.iterdir())) == '["bad", "good"]'
