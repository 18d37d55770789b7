"""The connection to systemd, over the machine's bus."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from dbus_fast import BusType, DBusError, InvalidAddressError, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from msgspec import Struct

from cdm.errors import CdmError

Properties = Mapping[str, tuple[str, Any]]
"""By name: the D-Bus signature, and the value."""

SYSTEMD, ROOT = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
MANAGER, UNIT, SERVICE = f"{SYSTEMD}.Manager", f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
ERROR = "org.freedesktop.DBus.Error"
GONE = (f"{SYSTEMD}.NoSuchUnit", f"{ERROR}.UnknownObject")
_UNFIT = (f"{ERROR}.InvalidArgs", f"{ERROR}.PropertyReadOnly", f"{SYSTEMD}.BadUnitSetting")
"""What systemd says of a unit's settings. All else may go well the next time: it does not reply while it is executed
anew, for instance, or /run is full."""
_AWAY = tuple(f"{ERROR}.{each}" for each in ("NoReply", "Timeout", "TimedOut", "NameHasNoOwner", "ServiceUnknown"))
"""What the bus says in place of one that does not answer."""
WATCHDOGS = "ServiceWatchdogs"
"""The property that tells whether systemd stops what it hears nothing of."""
EXITED = 1
"""What ``ExecMainCode`` is for a program that was not killed (CLD_EXITED)."""


class RefusedBySystemd(CdmError):
    """systemd did not do what it was asked for, or cannot be asked now."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        """The error's name on the bus; empty: there was no answer; or that of the property which is wrong."""

    @property
    def is_unfit(self) -> bool:
        """Whether a unit cannot be what it was to be, so that nothing of it was begun."""
        return self.name in _UNFIT

    @property
    def is_away(self) -> bool:
        """Whether systemd, or its bus, does not answer now."""
        return not self.name or self.name in _AWAY


class UnitState(Struct, frozen=True):
    """What systemd knows of a unit."""

    active: str
    """``activating``, ``active``, ``deactivating``, ``inactive`` or ``failed``."""
    ran: bool
    """Whether exec has succeeded."""
    pid: int
    """Of the program; 0: it has ended, or is not there yet."""
    result: str
    """``success``, or what ended it: ``exit-code``, ``signal``, ``oom-kill``, ``watchdog``, …"""
    status: int | None
    """The program's exit status, or minus the number of the signal that ended it; None: it has not ended."""

    @property
    def over(self) -> bool:
        """Whether no process of it lives, unless some cannot be ended."""
        return self.active in ("inactive", "failed")


def path_of(unit: str) -> str:
    """A unit's object on the bus."""
    escaped = "".join(each if each.isascii() and each.isalnum() else f"_{ord(each):02x}" for each in unit)
    return f"{ROOT}/unit/{escaped}"


class SystemdBus:
    """Calls of systemd. They raise `RefusedBySystemd`.

    Args:
        changed: called with the path of a unit on the bus whose state changed.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._bus: MessageBus | None = None

    async def connect(self) -> None:
        """Connect, also again."""
        self.disconnect()
        try:
            bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError, DBusError, InvalidAddressError) as error:
            raise RefusedBySystemd("", f"the machine's bus cannot be reached: {error}") from None
        bus.add_message_handler(self._on_message)
        self._bus = bus
        await self._manager("Subscribe")
        if not (await self.properties())[WATCHDOGS]:  # slices would not be stopped in time
            raise RefusedBySystemd(WATCHDOGS, "systemd's watchdogs are off: systemctl service-watchdogs yes")

    def disconnect(self) -> None:
        """End the connection."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.disconnect()

    async def lost(self) -> None:
        """Wait until the connection is lost."""
        if self._bus is not None:
            with contextlib.suppress(OSError, EOFError, DBusError):
                await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    async def properties(self, unit: str | None = None, interface: str = MANAGER) -> dict[str, Any]:
        """Those of a unit, or of systemd itself."""
        path = ROOT if unit is None else path_of(unit)
        found = (await self._call(path, PROPERTIES, "GetAll", "s", interface))[0]
        return {name: each.value for name, each in found.items()}

    async def state(self, unit: str) -> UnitState | None:
        """What is known of a unit; None: there is none of this name."""
        try:
            of_unit, found = await self.properties(unit, UNIT), await self.properties(unit, SERVICE)
        except RefusedBySystemd as error:
            if error.name in GONE:
                return None
            raise
        code, status = found["ExecMainCode"], found["ExecMainStatus"]
        ended = (status if code == EXITED else -status) if code and not found["MainPID"] else None
        ran = bool(of_unit["ActiveEnterTimestampMonotonic"])
        active = of_unit["ActiveState"]
        if of_unit["LoadState"] == "not-found" and active == "inactive":  # else it runs, and its description is lost
            return None
        if active == "inactive" and of_unit["Job"][0]:  # it has not begun with it
            active = "activating"
        return UnitState(active, ran, found["MainPID"], found["Result"], ended)

    async def units(self, pattern: str) -> list[str]:
        """The names of the units that are loaded."""
        found = await self._manager("ListUnitsByPatterns", "asas", [], [pattern])
        return [each[0] for each in found[0]]

    async def processes(self, unit: str) -> list[int]:
        """The pids of what runs of a unit."""
        try:
            return [pid for _, pid, _ in (await self._manager("GetUnitProcesses", "s", unit))[0]]
        except RefusedBySystemd as error:
            if error.name in GONE:
                return []
            raise

    async def begin(self, unit: str, properties: Properties) -> None:
        """Start a transient unit; returns when that is under way."""
        told = [[name, Variant(signature, value)] for name, (signature, value) in properties.items()]
        await self._manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", told, [])

    async def stop(self, unit: str) -> None:
        """Begin to stop a unit in its own way."""
        await self._about("StopUnit", "ss", unit, "replace")

    async def kill(self, unit: str, number: int) -> None:
        """Signal all processes of a unit."""
        await self._about("KillUnit", "ssi", unit, "all", number)

    async def forget(self, unit: str) -> None:
        """Let go of a unit of which nothing runs."""
        await self._about("ResetFailedUnit", "s", unit)
        with contextlib.suppress(RefusedBySystemd):  # another connection may have begun it
            await self._manager("UnrefUnit", "s", unit)

    async def follow(self, unit: str, *, on: bool) -> None:
        """Be told, or not any more, when a unit's state changes."""
        rule = f"type='signal',sender='{SYSTEMD}',path='{path_of(unit)}',interface='{PROPERTIES}'"
        bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        await self._call(bus[1], bus[2], "AddMatch" if on else "RemoveMatch", "s", rule, destination=bus[0])

    async def _about(self, member: str, signature: str, *body: Any) -> None:
        """Ask for something that is in order where there is no such unit, or nothing of it runs."""
        try:
            await self._manager(member, signature, *body)
        except RefusedBySystemd as error:
            if error.name not in (*GONE, "org.freedesktop.systemd1.NoSuchProcess"):
                raise

    async def _manager(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        return await self._call(ROOT, MANAGER, member, signature, *body)

    async def _call(
        self, path: str, interface: str, member: str, signature: str, *body: Any, destination: str = SYSTEMD
    ) -> list[Any]:
        message = Message(destination, path, interface, member, signature=signature, body=list(body))
        try:
            if self._bus is None:
                raise EOFError("not connected")  # noqa: TRY301  # as when it ends meanwhile
            answer = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise RefusedBySystemd("", f"systemd cannot be asked: {error}") from None
        assert answer is not None
        if answer.message_type is MessageType.ERROR:
            raise RefusedBySystemd(answer.error_name or "", f"systemd refuses: {(answer.body or [''])[0]}")
        found: list[Any] = answer.body
        return found

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.interface == PROPERTIES and message.path:
            self._changed(message.path)
