"""The page in a real browser: what it shows, that what others wrote stays text, and that it keeps up."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import ConsoleMessage, Page, async_playwright

from tests.cli.test_cli import run
from tests.harness import forked
from tests.harness.processes import environment
from tests.harness.servers import FORGIVEN, NatsServer, free_port
from tests.harness.waiting import eventually, patience
from tests.harness.web import asked
from tests.harness.wire import Raw, raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=alert(1)>\u202e</script><script>alert(2)</script>"
NODES, SLICES = 300, 10_000
WORK = ("show", "paint")
"""What the page measures of its own work: the lists, and the map."""
NEXT = 0.1
"""Seconds within which a change of a large cluster is drawn."""


def is_complaint(said: ConsoleMessage) -> bool:
    """Whether it is an error; what a test tries itself is thrown where it tries it."""
    return said.type == "error" and "requires 'Trusted" not in said.text


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A window of a browser that complains here of everything that it would tell nobody."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"there is no browser ({', '.join(BROWSERS)})")
    complaints: list[str] = []
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=program, timeout=patience() * 1000)
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(patience() * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if is_complaint(said) else None)

        async def dismiss(dialog: Any) -> None:
            complaints.append(f"dialog: {dialog.message}")
            await dialog.dismiss()

        page.on("dialog", dismiss)
        yield page
        assert complaints == []
        await browser.close()


@asynccontextmanager
async def served(server: NatsServer, folder: Path) -> AsyncIterator[str]:
    """``cdm serve``, once it answers; where."""
    at = f"127.0.0.1:{free_port()}"
    with (folder / "serve.log").open("wb") as log:
        process = forked.started("serve", "--http", at, "--server", server.url, env=environment(), stderr=log)
    try:
        await eventually(lambda: b"serving HTTP" in (folder / "serve.log").read_bytes(), 30)
        assert (await asked(at, "/")).status == 200
        yield at
    finally:
        process.kill()
        process.wait(patience())


async def says(page: Page, selector: str, text: str) -> None:
    """Wait until an element says this."""
    await page.locator(selector, has_text=text).first.wait_for()


async def small(user: Raw) -> None:
    """Three nodes in two zones, a service, and a slice that somebody wrote who means no good."""
    for number, zone in enumerate("aab", 1):
        await user.put("nodes", f"n{number}", {"labels": {"zone": zone}, "ttl": 600, "capacity": 9, "incarnation": "x"})
        await user.put("slices", f"n{number}.g/web/1", {"state": "ACTIVE", "term": 1, "port": 8000})
    revision = await user.put("blueprints", "g/web/1", 3)
    status = {"condition": "Ready", "observed_revision": revision, "desired": 3, "active": 3}
    await user.put("status", "g/web/1", status)
    evil = "n1.=3Cscript=3Ealert=281=29=3C/=22onload=3Dx/=27=3E=3Cb=3E"
    await user.put("slices", evil, {"state": "FAILED", "term": 1, "reason": HOSTILE})
    await user.put("nodes", "=3Cb=3En4", {"labels": {"zone": f"z{HOSTILE[:40]}"}, "ttl": 600, "incarnation": "x"})


async def test_the_page_shows_a_cluster_and_what_others_wrote_stays_text(server: NatsServer, tmp_path: Path) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with AsyncExitStack() as stack:
        user = await stack.enter_async_context(raw(server))
        await small(user)
        at = await stack.enter_async_context(served(server, tmp_path))
        page = await stack.enter_async_context(browsing())  # ends first: a server that ends is complained of
        await page.goto(f"http://{at}/")
        await says(page, "#verdict", "Nobody leads")
        await says(page, "#sums", "4 nodes")
        await says(page, "#service-list", "3 of 3")
        await says(page, "#service-list h3", '<script>alert(1)<:"onload=x')

        # What changes is seen.
        await user.put("slices", "_leader", {"node": "n2", "term": 1})
        await says(page, "#sums", "leader n2")
        await user.put("slices", "n3.g/web/1", {"state": "ACTIVATING", "term": 1})
        await says(page, "#legend", "1 coming")
        await says(page, "#verdict", "Not well: 1 service")

        # The keyboard leads to what somebody wrote, and it is explained.
        await page.keyboard.press("m")
        await page.keyboard.press("Home")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        await says(page, "#details .reason", "onerror=alert(1)>\\u202e</script>")
        await says(page, "#details", "it failed, and is tried again, or replaced")
        assert "#slice/n1." in page.url
        await page.locator("#details a", has_text="node n1").click()
        await says(page, "#details", "2 of 9 slices")
        await page.keyboard.press("Escape")
        await page.locator("#details").wait_for(state="hidden")
        await page.locator("#service-list button", has_text="Ready").click()
        await says(page, "#details", "3 slices")
        await page.locator("#details button", has_text="Show the logs").click()
        await says(page, "#details .note", "its output is not kept by a node that is there")
        made = "document.querySelectorAll('main img, main script, main b b').length + document.scripts.length"
        assert await page.evaluate(made) == 1
        # Even a fault of the page's own could not make markup or a program of it.
        for attempt in ("document.body.innerHTML = '<b>'", "document.createElement('script').text = '1'"):
            tried = f"(() => {{ try {{ {attempt}; return 'done' }} catch {{ return 'refused' }} }})()"
            assert await page.evaluate(tried) == "refused", attempt

        await page.keyboard.press("/")
        await page.keyboard.type("n2")
        await says(page, "#services-title", "1")
        await page.keyboard.press("Escape")
        await page.keyboard.press("t")
        assert await page.evaluate("document.documentElement.dataset.theme") == "light"
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.wait_for_function("document.documentElement.scrollWidth === 390 && canvas.offsetWidth < 390")

        server.stop()
        await says(page, "#banner", "NATS is away since")


async def large(user: Raw) -> None:
    """300 nodes in three zones with 10,000 slices, written as fast as the server takes them."""
    client = user.client
    for number in range(NODES):
        value = {"labels": {"zone": "abc"[number % 3]}, "ttl": 600, "incarnation": "x"}
        await client.publish(f"$KV.nodes.node-{number}", json.dumps(value).encode())
    for number in range(SLICES):
        key = f"node-{number % NODES}.g/service-{number // NODES % 10}/1/{number // NODES // 10 + 1}"
        value = {"state": "FAILED" if number % 500 == 0 else "ACTIVE", "term": 1}
        await client.publish(f"$KV.slices.{key}", json.dumps(value).encode())
    await client.flush()


async def test_a_large_cluster_is_one_look(server: NatsServer, tmp_path: Path) -> None:
    assert run("init", "--server", server.url).returncode == 0
    async with AsyncExitStack() as stack:
        user = await stack.enter_async_context(raw(server))
        await large(user)
        at = await stack.enter_async_context(served(server, tmp_path))
        page = await stack.enter_async_context(browsing())
        await page.goto(f"http://{at}/")
        await says(page, "#sums", "10,000 slices")
        await says(page, "#legend", "20 failed")
        await page.evaluate("performance.clearMeasures()")
        for number in range(1, 11):
            await user.put("slices", f"node-{number}.g/service-0/1/1", {"state": "FAILED", "term": 1})
            await says(page, "#legend", f"{20 + number} failed")
        took = [
            await page.evaluate(f"performance.getEntriesByName('{each}').map((it) => it.duration)") for each in WORK
        ]
        # The quickest of several: what else the machine does must not count.
        assert sum(map(min, took)) < NEXT * 1000
        assert await page.evaluate("document.querySelectorAll('*').length") < 1_000
