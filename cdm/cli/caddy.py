"""Tells Caddy of a service's endpoints, over its admin API: upstreams and weights in one change."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread

from cdm.cli.feeding import NotTaken
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

    Raises:
        UsageError: that is no such address.
    """

    every = EVERY

    def __init__(self, url: str) -> None:
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

    async def tell(self, found: Sequence[Endpoint]) -> bool:
        """Have the handler send to these, and to no others."""
        return await anyio.to_thread.run_sync(self._tell, found, abandon_on_cancel=True)

    def _tell(self, found: Sequence[Endpoint]) -> bool:
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
            wanted = with_upstreams(handler, found)
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
    known = {each.get("dial"): each for each in handler.get("upstreams") or () if isinstance(each, dict)}
    upstreams = [{**known.get(each.authority, {}), "dial": each.authority} for each in found]
    changed = {**handler, "upstreams": upstreams}
    balancing = dict(handler.get("load_balancing") or {})
    policy = dict(balancing.get("selection_policy") or {})
    if len(set(weights)) > 1:
        balancing["selection_policy"] = {"policy": WEIGHTED, "weights": weights}
    elif policy.get("policy", WEIGHTED) == WEIGHTED:
        balancing["selection_policy"] = {"policy": "round_robin"}
    return {**changed, "load_balancing": balancing}


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, LookupError, TypeError):
        return body[:500].decode(errors="replace").strip()
