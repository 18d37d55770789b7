"""A release through real proxies, set up as the documents say: no request fails, and a canary gets its share."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.docs.documents import commands
from tests.harness.processes import environment
from tests.harness.releases import Site, site
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.visitors import Visitor, visiting
from tests.harness.waiting import eventually, patience
from tests.proxies.shown import PATH, Shown

pytestmark = [pytest.mark.proxies, pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

INSTANCES = 10
REQUESTS = 4000
SHARE = 0.1
DEVIATIONS = 5
"""A fair draw is off by more of its standard deviations once in two million times."""
SKEW = 0.01
"""Part of the requests by which taking turns may be off: those sent before Envoy has heard of the canary, or of one who
went meanwhile."""


class Proxies:
    """The proxies, and what tells them, which run in one folder. Made by `proxies`."""

    def __init__(self, place: Site, folder: Path) -> None:
        self._place = place
        self._folder = folder
        folder.mkdir()
        self._running: list[subprocess.Popen[bytes]] = []
        self.visitors: dict[str, Visitor] = {}

    def start(self) -> None:
        """Start all of them; they wait for each other."""
        serves = f"127.0.0.1:{free_port()}"
        shown = Shown(self._folder, self._place.service.replace("/", ":"), serves)
        lines = {"serve": f"{commands('Serving')[1]} --http {serves}", "envoy": shown.envoy()}
        lines["caddy"], lines["caddy-told"] = shown.caddy()
        lines["caddy-anew"], lines["caddy-anew-told"] = shown.caddy_anew()
        lines["nginx"], lines["nginx-told"] = shown.nginx()
        lines["haproxy"], lines["haproxy-told"] = shown.haproxy()
        # These want the file that is made for them.
        for name, file in (("nginx", "slice.conf"), ("haproxy", "slice.cfg")):
            lines[name] = f'/bin/sh -c "while [ ! -s {file} ]; do sleep 0.1; done; exec {lines[name]}"'
        # Where its configuration is changed, Caddy drops what it reads at that moment, as the documents say.
        self.visitors = {name: Visitor(port, again=name == "caddy-anew") for name, port in shown.ports.items()}
        for name, line in lines.items():
            self._start(name, line)

    def _start(self, name: str, line: str) -> None:
        env = {**environment(), "NATS_URL": self._place.server.url, "PATH": PATH, "HOME": str(self._folder)}
        with (self._folder / f"{name}.log").open("wb") as log:
            made = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {line}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self._folder,
            )
        self._running.append(made)

    async def answer(self) -> None:
        """Wait until each is answered."""
        for name, visitor in self.visitors.items():

            async def answers(visitor: Visitor = visitor) -> bool:
                return not (await visitor.once()).startswith("(")

            await eventually(answers, 30, f"{name} answers", pause=0.1)

    async def all_are_answered(self, version: str, times: int = 1) -> None:
        """Wait until each has been answered so often by this version."""

        def few() -> list[str]:
            return [name for name, visitor in self.visitors.items() if visitor.answers[version] < times]

        await eventually(lambda: not few(), 20, f"all are answered by {version}")

    def end(self) -> None:
        """End them all."""
        for each in reversed(self._running):
            each.terminate()
        for each in self._running:
            try:
                each.wait(patience())
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait(patience())

    def logs(self) -> str:
        """What they wrote, for the one who reads of a failure."""
        return "\n".join(f"== {each.name}\n{each.read_text()[-1500:]}" for each in sorted(self._folder.glob("*.log")))


@asynccontextmanager
async def proxies(place: Site, folder: Path) -> AsyncIterator[Proxies]:
    """All proxies, which send to the service; they are there."""
    made = Proxies(place, folder)
    try:
        made.start()
        try:
            await made.answer()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{made.logs()}") from error
        yield made
    finally:
        made.end()


async def test_a_canary_gets_its_share_and_a_release_fails_no_request(server: NatsServer, tmp_path: Path) -> None:
    async with site(server, tmp_path, managers=("m1",)) as place:
        place.wanted = INSTANCES
        await place.release("1", drain_delay=5)
        async with proxies(place, tmp_path / "proxies") as made, visiting(*made.visitors.values()):
            await place.push("2")
            steps = [{"weight": int(100 * SHARE)}, {"pause": "approve"}]
            settings = {"from": "1", "kind": "canary", "steps": steps, "max_surge": INSTANCES // 2}
            await place.put("2", rollout=settings, drain_delay=5)
            await place.reaches("paused", 60)
            await made.all_are_answered("2")
            drawn = await made.visitors["envoy"].ask_often(REQUESTS, 16)
            deviation = (REQUESTS * SHARE * (1 - SHARE)) ** 0.5
            print(f"{drawn['2']} of {drawn.total()} requests went to the canary")
            assert abs(drawn["2"] - REQUESTS * SHARE) < DEVIATIONS * deviation + SKEW * REQUESTS, drawn

            await place.put("2", rollout={**settings, "approved": 1}, drain_delay=5)
            await place.reaches("complete", 60)
            await place.serves("2", 60)
            for visitor in made.visitors.values():
                visitor.answers.clear()
            await made.all_are_answered("2", 5)
            failed = {name: visitor.failures[:5] for name, visitor in made.visitors.items() if visitor.failures}
            assert not failed, "\n".join([made.logs(), *place.story()])
            asked = {name: f"{visitor.asked}, {visitor.dropped} again" for name, visitor in made.visitors.items()}
            print(f"requests: {asked}; failed: none")
            assert all(set(visitor.answers) == {"2"} for visitor in made.visitors.values())
