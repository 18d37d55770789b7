"""What the engine is asked for: a container, as the API describes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cdm.model.keys import encode
from cdm.model.limits import Limits
from cdm.runtimes import Work
from cdm.runtimes.keeper.protocol import MARK
from cdm.runtimes.process.command import expanded

OWNER = "cdm.runtime"
"""The label by which a runtime knows its own containers: its token."""
KEY = "cdm.key"
"""The label with the slice's key."""
SHARES = 1024
"""Of the processors, for each core that a slice reserves."""
NANO = 1_000_000_000


class Asked(NamedTuple):
    """What a container is made of, beside its work."""

    image: str
    run: str
    """The container's name."""
    owner: str
    """The runtime's token."""
    port: int | None
    """Of this machine."""
    secrets: Mapping[str, str]
    """Variables."""


def port_inside(work: Work, port: int | None) -> int | None:
    """The port that the program listens on, where the slice has one."""
    container = work.manifest.container
    return container.port if port is not None and container is not None and container.port is not None else port


def configuration(work: Work, asked: Asked) -> dict[str, Any]:
    """The body of the request that creates it.

    Raises:
        SliceFailed: its arguments name a variable that there is not.
    """
    manifest, key = work.manifest, work.key
    inside = port_inside(work, asked.port)
    environment = {
        "CDM_NODE": str(key.node),
        "CDM_ARTIFACT": str(key.artifact),
        "CDM_ORDINAL": str(key.ordinal),
        "CDM_SLICE": str(key).removeprefix("slices/"),
        **({"CDM_PORT": str(inside)} if inside is not None else {}),
        MARK: asked.run,
        **{name: value for name, value in manifest.env.items() if isinstance(value, str)},
        **asked.secrets,
    }
    arguments = [expanded(each, environment, asked.secrets) for each in manifest.args]
    published = {} if inside is None else {f"{inside}/tcp": [{"HostPort": str(asked.port)}]}
    return {
        "Image": asked.image,
        **({"Cmd": arguments} if arguments else {}),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {
            OWNER: asked.owner,
            KEY: encode(key),
            "cdm.node": str(key.node),
            "cdm.slice": str(key).removeprefix("slices/"),
        },
        "ExposedPorts": {name: {} for name in published},
        "StopSignal": manifest.stop_signal,
        "StopTimeout": max(1, round(manifest.stop_grace)),
        "HostConfig": {
            "PortBindings": published,
            "RestartPolicy": {"Name": "no"},  # that is the runtime's
            "Init": True,  # who hands signals on and reaps, so that programs need not know that they are the first
            "SecurityOpt": ["no-new-privileges"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": str(manifest.logs.max_bytes), "max-file": "2"}},
            **_limits(work),
        },
    }


def _limits(work: Work) -> dict[str, Any]:
    limits, container = work.manifest.limits, work.manifest.container
    found: dict[str, Any] = {"Ulimits": _ulimits(limits), "CpuShares": round(SHARES * (work.cores or 1.0)) or 2}
    if limits.memory is not None:
        found |= {"Memory": limits.memory, "MemorySwap": limits.memory}
    if limits.processes is not None:
        found["PidsLimit"] = limits.processes
    if container is not None and container.cpu is not None:
        found["NanoCpus"] = round(container.cpu * NANO)
    return found


def _ulimits(limits: Limits) -> list[dict[str, Any]]:
    wanted = (("nofile", limits.open_files), ("cpu", limits.cpu_seconds), ("fsize", limits.file_size))
    return [{"Name": name, "Soft": most, "Hard": most} for name, most in wanted if most is not None]


def unenforced(work: Work, engine: Mapping[str, Any]) -> str | None:
    """Which limit the engine cannot enforce, by what it tells of itself; None: all can be."""
    limits, container = work.manifest.limits, work.manifest.container
    wanted = (
        ("limits.memory", limits.memory, "MemoryLimit"),
        ("limits.processes", limits.processes, "PidsLimit"),
        ("container.cpu", container.cpu if container is not None else None, "CpuCfsQuota"),
    )
    for name, most, there in wanted:
        if most is not None and engine.get(there) is False:
            return f"{name} cannot be enforced on this node: its container engine cannot"
    return None
