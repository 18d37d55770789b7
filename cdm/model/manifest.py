"""The manifest of an artifact: how its program is run."""

from __future__ import annotations

import signal
from contextlib import suppress
from enum import StrEnum, unique
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cdm.errors import InvalidManifest
from cdm.model.limits import Amount, Limits, Logs
from cdm.model.problems import UNREADABLE, explain, problem_with_encoding, without_mark
from cdm.model.secret import SecretRef

MAX_BYTES = 64 * 1024
"""Longest manifest that is read, in bytes; people type these."""

MAX_STORED = 1024 * 1024
"""Longest manifest as it is stored."""

IMAGE_LISTS = ("manifest.json", "index.json")
"""What one of is in every archive of images of containers."""

Seconds = Annotated[float, Meta(gt=0, le=86_400, description="seconds (more than 0, at most 86,400)")]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the name of a variable")]

Overridable = Annotated[
    str,
    Meta(pattern=r"^(?:args|env(?:\.[A-Za-z_][A-Za-z0-9_]*)?)\Z", description='"args", "env" or "env.NAME"'),
]
Variable = Annotated[str | SecretRef, Meta(description='a string or { secret = "NAME" }')]


@unique
class RestartPolicy(StrEnum):
    """When a program that ended by itself is restarted on the same node."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    """Only after an exit status other than 0, or a signal."""
    NEVER = "never"


class Up(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="up"):
    """Ready once the program has run for so many seconds."""

    seconds: Seconds = 1.0


class Tcp(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="tcp"):
    """Ready, or alive, if something accepts connections on the port."""

    port: Port | None = None
    """None: the port that the slice was given."""


class Http(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="http"):
    """Ready, or alive, if a GET of the path is answered with a status from 200 to 399."""

    path: str = "/"
    port: Port | None = None
    """None: the port that the slice was given."""


class Line(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="line"):
    """Ready once the program has written this line to its standard output."""

    text: str = "READY=1"


class Readiness(Struct, frozen=True, forbid_unknown_fields=True):
    """When a program that was started counts as ACTIVE. Without a check: as soon as it runs."""

    check: Up | Tcp | Http | Line | None = None
    timeout: Seconds = 60.0
    """Seconds after which a program that is not ready has failed."""
    interval: Seconds = 0.2


class Liveness(Struct, frozen=True, forbid_unknown_fields=True):
    """A check while a slice is ACTIVE. As many failures in a row count as a crash."""

    check: Tcp | Http
    interval: Seconds = 10.0
    timeout: Seconds = 5.0
    failures: Annotated[int, Meta(ge=1, le=100)] = 3


class Restart(Struct, frozen=True, forbid_unknown_fields=True):
    """What is tried on the node before the slice is FAILED."""

    policy: RestartPolicy = RestartPolicy.ALWAYS
    attempts: Amount = 3
    """Restarts in a row; a run that lasts for `stable` seconds starts the count anew."""
    backoff: Seconds = 0.5
    """Seconds before the first restart; doubled each time, up to `longest`."""
    longest: Seconds = 30.0
    stable: Seconds = 60.0


class Container(Struct, frozen=True, forbid_unknown_fields=True):
    """The artifact is the image of a container: its content is an archive as `docker save` writes it, unpacked."""

    port: Port | None = None
    """The port inside that the slice's port leads to; None: the same, which the program reads from `CDM_PORT`."""
    cpu: Annotated[float, Meta(gt=0, le=4096)] | None = None
    """Most processors that it may use at a time. None: no limit."""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How to run an artifact's program. Times in seconds, sizes in bytes."""

    entry: str = ""
    """The program, relative to the artifact's folder; empty: the artifact's only file. A name without a slash that is
    not in the folder is looked up on PATH. Files named .py and .pyz are run by the node's Python."""
    args: tuple[str, ...] = ()
    """Arguments; `${NAME}` is replaced by a variable of the slice's environment."""
    env: dict[Name, Variable] = {}
    """Variables; those that are secrets are read on the node."""
    directory: str = "."
    """Working directory, relative to the artifact's folder."""
    port: Port | Literal["auto"] | None = None
    """A TCP port, given to the program as `CDM_PORT`; "auto": a free one, kept while the slice is ACTIVE."""
    readiness: Readiness = Readiness()
    """When it counts as ACTIVE."""
    liveness: Liveness | None = None
    """How it is looked at while it is ACTIVE; None: it is not."""
    restart: Restart = Restart()
    """What is done on the node when it ended by itself."""
    stop_signal: str = "SIGTERM"
    """How it is asked to stop."""
    stop_grace: Seconds = 10.0
    """Seconds from the stop signal to SIGKILL."""
    limits: Limits = Limits()
    """What it may use."""
    logs: Logs = Logs()
    """How much of its output is kept."""
    container: Container | None = None
    """None: the artifact holds a program."""
    override: tuple[Overridable, ...] = ()
    """What blueprints may set where nodes run only what is signed: ``args``, ``env.NAME``, or ``env`` for any."""

    def __post_init__(self) -> None:
        if self.stop_signal not in signal.Signals.__members__:
            raise InvalidManifest(f"stop_signal: {self.stop_signal!r} is not a signal; write SIGTERM, SIGINT, …")
        for field, path in (("entry", self.entry), ("directory", self.directory)):
            if path.startswith("/") or ".." in path.split("/"):
                raise InvalidManifest(f"{field}: {path!r} must stay inside the artifact")
        # No program can be started with a NUL: refused here, before anything runs.
        texts = (("entry", self.entry), ("directory", self.directory), *(("args", each) for each in self.args))
        variables = ((f"env.{name}", value) for name, value in self.env.items() if isinstance(value, str))
        for field, text in (*texts, *variables):
            if "\0" in text:
                raise InvalidManifest(f"{field}: contains a NUL character")
        checks = (self.readiness.check, self.liveness.check if self.liveness else None)
        for field, path in (("entry", self.entry), ("directory", self.directory.removeprefix("."))):
            if self.container is not None and path:
                raise InvalidManifest(f"{field}: goes with programs; what a container runs says its image, and args")
        if self.port is None and any(isinstance(check, (Tcp, Http)) and check.port is None for check in checks):
            raise InvalidManifest('port: is required by the check; write a number or "auto"')

    @property
    def stored(self) -> bytes:
        """As it is stored: JSON that is the same for the same manifest, without what earlier versions do not know."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        for field in ("override", "container"):
            if fields[field] in ([], (), None):
                del fields[field]
        return msgspec.json.encode(fields, order="deterministic")

    @classmethod
    def restore(cls, raw: bytes) -> Manifest:
        """Read what `stored` was. Raises `InvalidManifest`: it is none, or a later version's."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except UNREADABLE as error:
            raise InvalidManifest(f"cannot be read: {error}") from None

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """Read TOML or JSON.

        Raises:
            InvalidManifest: names the field and what is wrong with it.
        """
        if len(raw) > MAX_BYTES:
            raise InvalidManifest(f"is {len(raw):,} bytes long; at most {MAX_BYTES:,} are read")
        if problem := problem_with_encoding(raw):
            raise InvalidManifest(problem)
        raw = without_mark(raw)
        language = "JSON" if raw.lstrip().startswith(b"{") else "TOML"
        try:
            if language == "JSON":
                return msgspec.json.decode(raw, type=cls)
            return msgspec.convert(_toml(raw), cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, InvalidManifest):
                raise error.__cause__ from None
            value: object = None
            with suppress(*UNREADABLE):  # msgspec stops at the first error, and there may be another behind it
                value = msgspec.json.decode(raw) if language == "JSON" else _toml(raw)
            raise InvalidManifest(str(explain(error, cls, value))) from None
        except RecursionError:
            raise InvalidManifest("is nested too deeply") from None
        except ValueError as error:  # of msgspec, tomllib and UTF-8
            problem = str(error).removeprefix("JSON is malformed: ")
            raise InvalidManifest(f"is not {language}: {problem}") from None


def _toml(raw: bytes) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  # slow to import, and most commands read no manifest

    return tomllib.loads(raw.decode())
