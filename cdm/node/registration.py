"""This node's own entry in ``nodes``: made by compare-and-set, kept alive by heartbeats, taken back at the end.

A node answers on ``cdm.node.{node}``. A process that starts under an id that is registered asks there first: an
answer means that the id is taken, 'no responders' that its holder died and the id is free at once.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec

from cdm import clock
from cdm.errors import AccessDenied, Conflict, NodeIdTaken, NoResponders, StoreBusy, StoreError, Uncertain
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, encode
from cdm.model.node import Registration
from cdm.model.problems import UNREADABLE
from cdm.store.bucket import Bucket, Stored
from cdm.store.connection import Connection
from cdm.store.responder import Identity, Responder
from cdm.store.wire import dump
from cdm.wakeup import Wakeup

log = Log("cdm.registration")

ASK_TIMEOUT = 1.0
LEAVE_ATTEMPTS = 3
RETRY_PAUSE = 0.2
UNREGISTERED_FOR = 5.0
"""Seconds between two warnings of a node that cannot register."""
CATCH_UP_PAUSE = 0.05
HEARTBEATS_PER_TTL = 4
"""A registration survives the loss of this many heartbeats less one."""
DEAF_AFTER = 0.5
"""Fraction of the TTL after which a bucket that takes no heartbeats counts as one that takes nobody's."""


def voice_of(connection: Connection, node: NodeId) -> str:
    """The core subject on which a node answers."""
    return connection.subject("cdm", "node", encode(NodeKey(node)))


async def ask(connection: Connection, node: NodeId) -> Identity:
    """Ask a node which process it is; an answer means that it lives and is connected.

    Raises:
        NoResponders: no process of that id is connected.
        Uncertain: it is connected and gave no answer, or the connection was lost.
    """
    return _identity(await connection.request(voice_of(connection, node), timeout=ASK_TIMEOUT))


class Presence:
    """Keeps one node registered.

    Args:
        nodes: the bucket.
        node: this node's id.
        registration: what it says of itself; ``ttl`` and ``incarnation`` must be set.
        on_taken: told False when the bucket has taken no heartbeat for a while, and True when it does again. Others
            cannot be heard either then, although the connection is up: a cluster of servers may be electing.
        on_beat: told of every heartbeat that was taken when it had been sent, in seconds on `cdm.clock`.
    """

    def __init__(
        self,
        nodes: Bucket,
        node: NodeId,
        registration: Registration,
        on_taken: Callable[[bool], None] | None = None,
        on_beat: Callable[[float], None] | None = None,
    ) -> None:
        self._nodes = nodes
        self._on_beat = on_beat
        self._on_taken = on_taken
        self._taken = True
        self._taken_at = clock.now()
        self._left_at = float("-inf")
        self._connection = nodes.connection
        self._key = NodeKey(node)
        self._node = node
        self._registration = registration
        self._payload = dump(registration)
        assert registration.ttl is not None
        self._ttl = registration.ttl
        self._revision = 0
        self._leaving = False
        self._voice: Responder | None = None
        self._signal = Wakeup()
        self._connection.listen(self._on_connection)

    async def register(self) -> None:
        """Enter the node.

        Raises:
            NodeIdTaken: a living process is registered under this id.
            AccessDenied: this user may not register it.
        """
        complain_at = clock.now() + UNREGISTERED_FOR
        while True:
            try:
                stored = await self._nodes.read_near(self._key)
                if stored is not None and stored.payload is not None and not self._is_ours(stored):
                    await self._refuse_if_alive(stored.payload)
                await self._raise_voice()
                await self._put(stored.revision if stored else 0)
                return
            except Conflict:
                # Somebody registered in between: find out who, without hearing one's own answer.
                await self._drop_voice()
            except AccessDenied:
                raise
            except StoreError as error:
                say = log.debug
                if clock.now() >= complain_at:
                    complain_at, say = clock.now() + UNREGISTERED_FOR, log.warning
                say("not registered yet; trying again", reason=str(error))
                await anyio.sleep(RETRY_PAUSE)

    async def run(self) -> None:
        """Heartbeat until cancelled.

        Raises:
            NodeIdTaken: another process took the id while this one could not be heard.
        """
        while True:
            with anyio.move_on_after(self._ttl / HEARTBEATS_PER_TTL):
                await self._signal.wait()
            if self._connection.is_up and not self._leaving:
                await self._beat()

    async def leave(self) -> None:
        """Take the registration back, if it is this process's, for good; never raises a `StoreError`."""
        self._leaving = True
        try:
            await self._take_back()
        except StoreError as error:
            log.warning("registration not taken back; it expires", reason=str(error))
        await self._drop_voice()

    async def _take_back(self) -> None:
        for _ in range(LEAVE_ATTEMPTS):
            try:
                await self._nodes.delete(self._key, expect=self._revision, timeout=ASK_TIMEOUT)
                return
            except Conflict:
                # A heartbeat was on its way: delete what it wrote, if it is still ours.
                stored = await self._nodes.read_near(self._key, timeout=ASK_TIMEOUT)
                if stored is None or not self._is_ours(stored):
                    return
                if stored.revision <= self._revision:
                    await anyio.sleep(CATCH_UP_PAUSE)  # a replica that is behind
                self._revision = max(stored.revision, self._revision)

    async def _beat(self) -> None:
        try:
            await self._put(self._revision)
        except (Conflict, Uncertain):
            # Before anything else: when the bucket is back, others' registrations expire before they are renewed.
            self._judge_silence()
            await self._find_out()
        except StoreError as error:
            await self._again_soon(error)

    def _judge_silence(self) -> None:
        if self._taken and clock.now() - self._taken_at >= DEAF_AFTER * self._ttl:
            self._taken = False
            log.warning("no heartbeat is taken; nobody is given up")
            if self._on_taken:
                self._on_taken(False)

    async def _find_out(self) -> None:
        """The registration is not as it was left: expired, deleted, or somebody else's."""
        try:
            stored = await self._nodes.read_near(self._key, timeout=self._patience)
            if self._leaving:
                return
            # A value that names no process is somebody's slip of the hand, to be written over.
            holder = _incarnation(stored.payload) if stored and stored.payload else ""
            if holder in ("", self._registration.incarnation):
                await self._put(stored.revision if stored else 0)
                return
            if stored is not None and stored.revision < self._revision:
                raise StoreBusy("a replica that is behind shows who was registered before")
        except StoreError as error:
            await self._again_soon(error)
            return
        raise NodeIdTaken(f"another process has registered as node {self._node!r} while this one was not heard")

    async def _again_soon(self, error: StoreError) -> None:
        if isinstance(error, AccessDenied):
            self._connection.complain(error)
        log.debug("no heartbeat", reason=str(error))
        self._judge_silence()
        if (
            not self._taken
            and isinstance(error, (StoreBusy, Uncertain))
            and clock.now() - self._left_at >= self._patience
        ):
            # A server that is cut off from its peers keeps its clients. Elsewhere this node may be heard in time.
            self._left_at = clock.now()
            await self._connection.leave_server()
        await anyio.sleep(RETRY_PAUSE)
        self._signal.set()

    async def _put(self, expect: int) -> None:
        sent = clock.now()
        self._revision = await self._nodes.put(
            self._key, self._payload, expect=expect, ttl=self._ttl, timeout=self._patience
        )
        if self._on_beat:
            self._on_beat(sent)
        self._taken_at = clock.now()
        if not self._taken:
            self._taken = True
            if self._on_taken:
                self._on_taken(True)

    @property
    def _patience(self) -> float:
        return max(self._ttl / HEARTBEATS_PER_TTL, 0.5)

    def _is_ours(self, stored: Stored) -> bool:
        return stored.payload is not None and _incarnation(stored.payload) == self._registration.incarnation

    async def _refuse_if_alive(self, payload: bytes) -> None:
        try:
            answer = await ask(self._connection, self._node)
        except NoResponders:
            log.info("taking the place of a process that died", node=self._node)
            return
        except Uncertain:
            raise NodeIdTaken(
                f"node id {self._node!r} is registered to a process that does not answer but is connected; "
                f"stop it, choose another --id, or wait {self._ttl:g} s for its registration to expire"
            ) from None
        raise NodeIdTaken(
            f"node id {self._node!r} is taken by a living process "
            f"(incarnation {answer.incarnation or _incarnation(payload) or 'unknown'}); choose another --id"
        )

    async def _raise_voice(self) -> None:
        if self._voice is None:
            identity = Identity(self._node, self._registration.incarnation)
            self._voice = await Responder.start(self._connection, voice_of(self._connection, self._node), identity)

    async def _drop_voice(self) -> None:
        if self._voice is not None:
            await self._voice.stop()
            self._voice = None

    def _on_connection(self, up: bool) -> None:
        # TTLs ran on while the connection was down: be heard at once.
        if up:
            self._signal.set()


def _incarnation(raw: bytes) -> str:
    """Which process a registration is of; empty where it does not say."""
    return _identity(raw).incarnation


def _identity(raw: bytes) -> Identity:
    """Which process a registration or an answer is of; empty where it does not say."""
    try:
        return msgspec.json.decode(raw, type=Identity)
    except UNREADABLE:
        return Identity()
