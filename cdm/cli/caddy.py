"""Tells Caddy of a service's endpoints: over its admin API, upstreams and weights in one change, or by files.

A change of its configuration has Caddy start its servers anew, and a request that one of those before reads at that
moment is dropped. A change of what files say is none of its configuration, and nothing is dropped.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread

from cdm.cli.feeding import NotTaken
from cdm.cli.turns import TurnFiles
from cdm.errors import UsageError
from cdm.manager.endpoints import Endpoint
from cdm.manager.pools import whole_weights

EVERY = 5.0
"""Seconds between two looks at what Caddy has: started anew it has what its own configuration says."""
PATIENCE = 10.0
"""Seconds that it has to answer."""
TRIES = 3
"""How often a change is made again that others got in the way of."""
WEIGHTED = "weighted_round_robin"
MOST = 8 * 1024 * 1024
"""Bytes of an answer that are read."""


class CaddyProxy:
    """A handler ``reverse_proxy`` in Caddy's configuration.

    Args:
        url: where it is in the admin API: ``http://127.0.0.1:2019/id/web`` where it has ``"@id": "web"``, or a path
            below ``/config/``.
        files: what says whose turn it is; None: the configuration does.

    Raises:
        UsageError: that is no such address, or no such folder.
    """

    every = EVERY

    def __init__(self, url: str, files: TurnFiles | None = None) -> None:
        if files is not None:
            _check(files.folder)
        try:
            parts = urlsplit(url)
            usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        path = parts.path.rstrip("/") if usable else ""
        if not usable or parts.query or parts.fragment or not path.startswith(("/id/", "/config/")):
            raise UsageError(
                f"--caddy {url!r} is no handler in Caddy's admin API: write http://127.0.0.1:2019/id/ID for one with "
                '"@id": "ID", or a path below /config/'
            )
        self._at = parts.netloc.rpartition("@")[2]
        self._path = path
        self._shown = url
        self._files = files

    async def tell(self, found: Sequence[Endpoint]) -> bool:
        """Have the handler send to these, and to no others."""
        return await anyio.to_thread.run_sync(self._tell, found, abandon_on_cancel=True)

    def _tell(self, found: Sequence[Endpoint]) -> bool:
        if self._files is None:
            return self._configure(found, None)
        try:
            files, changed = self._files.give(found)
        except OSError as error:
            raise NotTaken(f"{self._files.folder} cannot be written to: {error.strerror or error}") from None
        return self._configure(found, [f"{{file.{each}}}" for each in files]) or changed

    def _configure(self, found: Sequence[Endpoint], places: Sequence[str] | None) -> bool:
        """Have the configuration name these, or the places where they are read from; returns whether it did not."""
        for _ in range(TRIES):
            status, tag, body = self._ask("GET")
            if status != http.client.OK:
                raise NotTaken(f"Caddy has no {self._shown} ({status}): {_reason(body)}")
            try:
                handler = json.loads(body)
            except ValueError:
                handler = None
            if not isinstance(handler, dict) or handler.get("handler") != "reverse_proxy":
                raise NotTaken(f"{self._shown} is no handler reverse_proxy")
            wanted = with_upstreams(handler, found) if places is None else with_places(handler, places)
            if wanted == handler:
                return False
            status, _, body = self._ask("PATCH", json.dumps(wanted).encode(), tag)
            if status == http.client.OK:
                return True
            if status != http.client.PRECONDITION_FAILED:
                raise NotTaken(f"Caddy did not take it ({status}): {_reason(body)}")
        raise NotTaken("others change Caddy's configuration all the time")

    def _ask(self, method: str, body: bytes | None = None, tag: str = "") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self._at, timeout=PATIENCE)
        headers = {"Content-Type": "application/json", **({"If-Match": tag} if tag else {})}
        try:
            connection.request(method, self._path, body, headers if body is not None else {})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Etag", ""), answer.read(MOST)
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NotTaken(f"Caddy does not answer at {self._shown}: {why}") from None
        finally:
            connection.close()


def with_upstreams(handler: dict[str, Any], found: Sequence[Endpoint]) -> dict[str, Any]:
    """The handler with these upstreams and their weights.

    A policy of the user's own stays while all are to get the same.
    """
    weights = whole_weights(found)
    changed = with_places(handler, [each.authority for each in found])
    if len(set(weights)) > 1:
        changed["load_balancing"]["selection_policy"] = {"policy": WEIGHTED, "weights": weights}
    return changed


def with_places(handler: dict[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """The handler with upstreams at these places, all of which get the same."""
    known = {each.get("dial"): each for each in handler.get("upstreams") or () if isinstance(each, dict)}
    balancing = dict(handler.get("load_balancing") or {})
    policy = dict(balancing.get("selection_policy") or {})
    if policy.get("policy", WEIGHTED) == WEIGHTED:
        balancing["selection_policy"] = {"policy": "round_robin"}
    upstreams = [{**known.get(each, {}), "dial": each} for each in places]
    return {**handler, "upstreams": upstreams, "load_balancing": balancing}


def _check(folder: Path) -> None:
    """Raise `UsageError` where there can be no folder for files that Caddy reads."""
    if {"{", "}"} & set(str(folder)):
        raise UsageError(f"--files {folder}: its name must not have braces, which mean something to Caddy")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"--files {folder}: {error.strerror or error}") from None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, LookupError, TypeError):
        return body[:500].decode(errors="replace").strip()
