"""What a cloud says of the instance that this process runs on: provider, region, zone and type, as labels.

AWS, Google Cloud, Azure and Hetzner answer on the same address, each on paths of its own. All are asked side by side,
once; the first whose answer has the form that it documents is believed. Nothing else in cdm knows clouds.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module

import anyio
import msgspec
from anyio import to_thread
from msgspec import Struct, field

from cdm.log import Log

log = Log("cdm.metadata")

ADDRESS = "http://169.254.169.254"
"""Where clouds answer."""
PATIENCE = 2.0
"""Seconds that all answers together may take."""
MAX_ANSWER = 64 * 1024
"""Longest answer that is read, in bytes."""
_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ZONE_OF_GOOGLE = re.compile(r"projects/[^/]+/zones/(([a-z0-9-]+)-[a-z0-9]+)")

Ask = Callable[[str, str, Mapping[str, str]], Awaitable[str]]
"""Sends a request by its method, path and headers. Raises `_NoAnswerError`."""


class _NoAnswerError(Exception):
    """There is no answer, or not the one that this cloud gives."""


class _Ec2(Struct, frozen=True):
    """The instance identity document."""

    region: str
    zone: str = field(name="availabilityZone")
    type: str = field(name="instanceType", default="")


class _Azure(Struct, frozen=True):
    """The part ``compute`` of the instance's metadata."""

    location: str
    zone: str = ""
    """A number; empty where the region has no zones, or the instance is in none."""
    type: str = field(name="vmSize", default="")


async def metadata_labels(address: str = ADDRESS, patience: float = PATIENCE) -> dict[str, str]:
    """The labels ``provider``, ``region``, ``zone`` and ``instance-type`` as far as the cloud tells; never raises.

    Args:
        address: where it is asked: the beginning of a URL.
        patience: seconds after which there are none.
    """
    found: dict[str, str] = {}
    problems: dict[str, str] = {}
    web = await to_thread.run_sync(import_module, "cdm.checks.web")
    client = web.WebClient()

    async def ask(method: str, path: str, headers: Mapping[str, str]) -> str:
        try:
            answer = await client.request(method, f"{address}{path}", patience, MAX_ANSWER, headers)
        except (*web.WEB_ERRORS, ValueError) as error:
            raise _NoAnswerError(str(error) or type(error).__name__) from None
        if answer.status != 200 or not answer.body:
            raise _NoAnswerError(f"status {answer.status}")
        return str(answer.body.decode(errors="replace")).strip()

    async def look(provider: str, read: Callable[[Ask], Awaitable[dict[str, str]]]) -> None:
        try:
            labels = await read(ask)
        except (_NoAnswerError, msgspec.DecodeError) as error:
            problems[provider] = str(error)
            return
        if not found:
            found["provider"] = provider
            found.update((name, value) for name, value in labels.items() if _VALUE.fullmatch(value))
        tasks.cancel_scope.cancel()

    with anyio.move_on_after(patience):
        async with anyio.create_task_group() as tasks:
            for provider, read in CLOUDS.items():
                tasks.start_soon(look, provider, read)
    if found:
        log.info("labels from instance metadata", **found)
    else:
        problems = {provider: problems.get(provider, f"no answer in {patience:g} s") for provider in CLOUDS}
        log.warning("no labels from instance metadata: no cloud answers", address=address, **problems)
    return found


async def _aws(ask: Ask) -> dict[str, str]:
    token = await ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    if not token.isascii() or not token.isprintable():
        raise _NoAnswerError("no token")
    told = await ask("GET", "/latest/dynamic/instance-identity/document", {"X-aws-ec2-metadata-token": token})
    instance = msgspec.json.decode(told, type=_Ec2)
    return {"region": instance.region, "zone": instance.zone, "instance-type": instance.type}


async def _gcp(ask: Ask) -> dict[str, str]:
    headers = {"Metadata-Flavor": "Google"}
    zone = _ZONE_OF_GOOGLE.fullmatch(await ask("GET", "/computeMetadata/v1/instance/zone", headers))
    if zone is None:
        raise _NoAnswerError("no zone")
    kind = await ask("GET", "/computeMetadata/v1/instance/machine-type", headers)
    return {"region": zone[2], "zone": zone[1], "instance-type": kind.rpartition("/")[2]}


async def _azure(ask: Ask) -> dict[str, str]:
    told = await ask("GET", "/metadata/instance/compute?api-version=2021-02-01", {"Metadata": "true"})
    instance = msgspec.json.decode(told, type=_Azure)
    # Zones are numbered in each region: with the region's name they differ from those of others.
    zone = f"{instance.location}-{instance.zone}" if instance.zone else ""
    return {"region": instance.location, "zone": zone, "instance-type": instance.type}


async def _hetzner(ask: Ask) -> dict[str, str]:
    region = await ask("GET", "/hetzner/v1/metadata/region", {})
    zone = await ask("GET", "/hetzner/v1/metadata/availability-zone", {})
    if not _VALUE.fullmatch(region) or not _VALUE.fullmatch(zone):
        raise _NoAnswerError("no region and zone")
    return {"region": region, "zone": zone}


CLOUDS: dict[str, Callable[[Ask], Awaitable[dict[str, str]]]] = {
    "aws": _aws,
    "gcp": _gcp,
    "azure": _azure,
    "hetzner": _hetzner,
}
"""Values of the label ``provider``, and how each is asked."""
