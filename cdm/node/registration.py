"""This node's own entry in ``nodes``: made by compare-and-set, kept alive by heartbeats, taken back at the end.

A node answers on ``cdm.node.{node}``. A process that starts under an id that is registered asks there first: an
answer means that the id is taken, 'no responders' that its holder died and the id is free at once. A node that finds
another process in the place of its own registration asks there too, and ends only if that process answers.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping

import anyio
from msgspec.structs import replace

from cdm import clock
from cdm.errors import AccessDenied, Conflict, NodeIdTaken, NoResponders, StoreBusy, StoreError, Uncertain, Unreachable
from cdm.log import Lasting, Log
from cdm.model.artifact import NodeId
from cdm.model.keys import NodeKey, encode
from cdm.model.node import HEARTBEATS_PER_TTL, Registration, Vitals
from cdm.node.acceptance import Acceptance
from cdm.node.beats import Beats
from cdm.store.bucket import Bucket, Stored
from cdm.store.connection import Connection
from cdm.store.micro import EndpointTally
from cdm.store.responder import Identity, Responder, identity_of
from cdm.store.wire import dump
from cdm.wakeup import Wakeup

log = Log("cdm.registration")

ASK_TIMEOUT = 1.0
"""Seconds that a node has to answer."""
ASK_ATTEMPTS = 2
"""How often a process is asked before it counts as one that gives no answer."""
LEAVE_ATTEMPTS = 3
HEARTBEAT_RETRY_PAUSE = 0.2
"""Seconds after which a registration or a heartbeat that was not accepted is sent again."""
UNTOLD = 5.0
"""Seconds for which a node tries to register before it warns that it cannot."""
CATCH_UP_PAUSE = 0.05
"""Seconds given to a replica that is behind."""
DEAF_AFTER = 0.5
"""Fraction of the TTL after which a bucket that accepts no heartbeats of this node counts as accepting nobody's."""


def answers_on(connection: Connection, node: NodeId) -> str:
    """The core subject on which a node answers."""
    return connection.subject("cdm", "node", encode(NodeKey(node)))


async def ask(connection: Connection, node: NodeId, asker: str = "") -> Identity:
    """Ask a node which process it is; an answer means that it lives and is connected.

    Args:
        connection: a connection.
        node: which node.
        asker: the incarnation of the process that asks, which does not answer itself.

    Raises:
        NoResponders: no process of that id is connected.
        Uncertain: it is connected, was asked `ASK_ATTEMPTS` times, and gave no answer.
        Unreachable: the connection was lost, or the server itself says nothing.
    """
    left = ASK_ATTEMPTS
    while True:
        left -= 1
        try:
            answer = await connection.request(answers_on(connection, node), asker.encode(), timeout=ASK_TIMEOUT)
            return identity_of(answer)
        except Uncertain:
            try:
                await connection.flush()
            except Uncertain:
                raise Unreachable("the NATS server says nothing") from None
            if not left:
                raise


class Presence:
    """Keeps one node registered.

    Args:
        nodes: the bucket.
        node: this node's id.
        registration: what it says of itself; ``ttl`` and ``incarnation`` must be set.
        on_accepting: told False when the bucket has accepted no heartbeat for a while, and True when it does again:
            the connection may be up, and a cluster of servers be electing.
        on_beat: told of every accepted heartbeat when it had been sent, in seconds on `cdm.clock`.
        address: tells where its slices are reached, which may be another after a reconnect.
        says: tells fields of the registration that may be others at each heartbeat.
        load: tells how busy the machine is; None: nobody does.
        vitals: tells how the node is; None: nobody does.
        on_succession: told, before any heartbeat that follows, that this process is registered where others may have
            been, and until when NATS may have heard one of these, in seconds on `cdm.clock`. What is told last holds.
    """

    def __init__(
        self,
        nodes: Bucket,
        node: NodeId,
        registration: Registration,
        on_accepting: Callable[[bool], None] | None = None,
        on_beat: Callable[[float], None] | None = None,
        address: Callable[[], str | None] = lambda: None,
        says: Callable[[], Mapping[str, object]] = dict,
        load: Callable[[], float | None] | None = None,
        vitals: Callable[[], Vitals] | None = None,
        on_succession: Callable[[float], None] = lambda _: None,
    ) -> None:
        if registration.ttl is None:
            raise ValueError("a registration that is kept alive must have a TTL")
        self._nodes = nodes
        self._node = node
        self._key = NodeKey(node)
        self._incarnation = registration.incarnation
        self._registration = registration
        self._payload = dump(registration)
        self._address = address
        self._says = says
        self._load = load
        self._vitals = vitals
        self._ttl = registration.ttl
        self._beats = Beats(self._ttl, random.SystemRandom().random)
        self._on_beat = on_beat
        self._on_succession = on_succession
        self._accepting = Acceptance(DEAF_AFTER * self._ttl, on_accepting)
        self._left_server_at = float("-inf")
        self._revision = 0
        """Of the registration as this process wrote it last."""
        self._leaving = False
        self._stored = b""
        """What this process put last, as far as it was acknowledged."""
        self._stored_anew = anyio.Event()
        """Set when what the registration is to say is stored."""
        self._responder: Responder | None = None
        self.tally = EndpointTally("node", answers_on(nodes.connection, node), about="which process has this id")
        """Who asked whether this node is there."""
        self._sooner = Wakeup()
        """A heartbeat may be due sooner than it was."""
        self._connection = nodes.connection
        self._connection.listen(self._on_connection)

    @property
    def is_registered(self) -> bool:
        """Whether this process has registered, whatever became of that since."""
        return self._revision > 0

    async def register(self) -> None:
        """Enter the node.

        Raises:
            NodeIdTaken: a living process is registered under this id.
            AccessDenied: this user may not register it.
        """
        warn_at = clock.now() + UNTOLD
        waits = Lasting(log, "registered at last")
        before: Stored | None = None
        while True:
            try:
                stored = await self._nodes.read_near(self._key)
                if stored is None or not self._is_ours(stored):  # else an acknowledgement was lost
                    before = stored
                    if stored is not None and stored.payload is not None:
                        await self._stop_answering()  # an earlier try may have failed: one's own answer is nobody's
                        await self._refuse_if_alive(stored.payload)
                await self._start_answering()
                await self._put(stored.revision if stored else 0, succeeds=True)
                await self._tell_of(before)
                waits.over(clock.now())
                return
            except Conflict:
                pass  # somebody registered in between
            except AccessDenied:
                raise
            except StoreError as error:
                if (now := clock.now()) >= warn_at:
                    waits.goes_on(now, "not registered yet; trying again", reason=str(error))
                await anyio.sleep(HEARTBEAT_RETRY_PAUSE)

    async def run(self) -> None:
        """Heartbeat until cancelled.

        Raises:
            NodeIdTaken: another process took the id while this one could not be heard.
        """
        self._beats.begin(clock.now())
        while True:
            while (pause := self._beats.due - clock.now()) > 0:
                with anyio.move_on_after(pause):
                    await self._sooner.wait()
            self._beats.beat(clock.now())
            if self._connection.is_up and not self._leaving:
                await self._beat()

    def beat_at_once(self) -> None:
        """Something else is to be said than before."""
        self._beats.at_once(clock.now())
        self._sooner.set()

    async def take_no_more(self, *, leaving: bool = False) -> None:
        """Register a capacity of 0 from now on, and wait until that is stored; `run` does it, with its next heartbeat.

        Managers of every version place nothing on such a node, and leave alone what it has; with ``leaving`` those that
        know it have that replaced elsewhere. Does not wait where there is no connection.
        """
        self._registration = replace(self._registration, capacity=0, leaving=leaving or self._registration.leaving)
        self._payload = dump(self._registration)
        if self._stored == self._payload:
            return
        self._stored_anew = anyio.Event()
        self.beat_at_once()
        if self._connection.is_up:
            await self._stored_anew.wait()

    async def leave(self) -> None:
        """Take the registration back, if it is this process's, for good; never raises a `StoreError`."""
        self._leaving = True
        try:
            await self._take_back()
        except StoreError as error:
            log.warning("registration not taken back; it expires", reason=str(error))
        await self._stop_answering()

    async def lapse(self) -> None:
        """Beat no more, and let the registration expire."""
        self._leaving = True
        await self._stop_answering()

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
            self._accepting.judge()
            await self._find_out()
        except StoreError as error:
            await self._again_soon(error)

    async def _find_out(self) -> None:
        """The registration is not as it was left: expired, deleted, or somebody else's."""
        try:
            stored = await self._nodes.read_near(self._key, timeout=self._patience)
            if self._leaving:
                return
            # A value that names no process was put there by mistake, and is written over.
            holder = identity_of(stored.payload).incarnation if stored and stored.payload else ""
            if holder in ("", self._incarnation):
                await self._put(stored.revision if stored else 0, succeeds=holder == "")
                return
            if stored is not None and stored.revision < self._revision:
                raise StoreBusy("a replica that is behind shows who was registered before")
            if not await self._is_answered():
                log.warning("registration was overwritten, and nobody answers; registering anew", incarnation=holder)
                await self._put(stored.revision if stored else 0, succeeds=True)
                return
        except StoreError as error:
            await self._again_soon(error)
            return
        raise NodeIdTaken(f"another process registered as node {self._node!r} while this one could not be heard")

    async def _is_answered(self) -> bool:
        """Whether another process answers as this node; raises a `StoreError` where nobody can tell."""
        try:
            await ask(self._connection, self._node, self._incarnation)
        except (NoResponders, Uncertain):
            return False
        return True

    async def _again_soon(self, error: StoreError) -> None:
        if isinstance(error, AccessDenied):
            self._connection.complain(error)
        log.debug("heartbeat not accepted", reason=str(error))
        self._accepting.judge()
        if (
            not self._accepting
            and isinstance(error, (StoreBusy, Uncertain))
            and clock.now() - self._left_server_at >= self._patience
        ):
            # A server that is cut off from its peers keeps its clients. By another one this node may be heard in time.
            self._left_server_at = clock.now()
            await self._connection.leave_server()
        await anyio.sleep(HEARTBEAT_RETRY_PAUSE)
        self.beat_at_once()

    async def _tell_of(self, before: Stored | None) -> None:
        """Tell when the process was heard last that was registered before, where that can be known.

        Its registration and this one were stored by the same clock: so much earlier than this one it was heard.
        """
        now = clock.now()
        if before is None or before.payload is None:
            return
        with contextlib.suppress(StoreError):
            own = await self._nodes.read_near(self._key, timeout=self._patience)
            if own is not None and own.revision == self._revision:
                self._on_succession(now - max(own.at - before.at, 0.0))

    async def _put(self, expect: int, *, succeeds: bool = False) -> None:
        self._describe()
        sent, payload = clock.now(), self._payload
        self._revision = await self._nodes.put(self._key, payload, expect=expect, ttl=self._ttl, timeout=self._patience)
        self._stored = payload
        self._beats.accepted(sent)
        if succeeds:
            self._on_succession(clock.now())
        if payload == self._payload:
            self._stored_anew.set()
        if self._on_beat:
            self._on_beat(sent)
        self._accepting.confirm()

    def _describe(self) -> None:
        """Say what may be another at each heartbeat."""
        described = self._registration
        if (said := replace(described, **self._says())) != described:
            described = said
        if (address := self._address()) not in (None, described.address):
            described = replace(described, address=address)
        if self._load and (load := self._load()) != described.load:
            described = replace(described, load=load)
        if self._vitals:
            described = replace(described, vitals=self._vitals())
        if described is not self._registration:
            self._registration = described
            self._payload = dump(described)

    @property
    def _patience(self) -> float:
        """Seconds to wait for an answer of the bucket."""
        return max(self._ttl / HEARTBEATS_PER_TTL, 0.5)

    def _is_ours(self, stored: Stored) -> bool:
        return stored.payload is not None and identity_of(stored.payload).incarnation == self._incarnation

    async def _refuse_if_alive(self, payload: bytes) -> None:
        try:
            answer = await ask(self._connection, self._node)
        except NoResponders:
            log.info("taking the place of a process that has ended", node=self._node)
            return
        except Uncertain:
            raise NodeIdTaken(
                f"node id {self._node!r} is registered to a process that does not answer but is connected; "
                f"stop it, choose another --id, or wait {self._ttl:g} s for its registration to expire"
            ) from None
        raise NodeIdTaken(
            f"node id {self._node!r} is taken by a living process "
            f"(incarnation {answer.incarnation or identity_of(payload).incarnation or 'unknown'}); choose another --id"
        )

    async def _start_answering(self) -> None:
        if self._responder is None:
            identity = Identity(self._node, self._incarnation)
            self._responder = await Responder.start(
                self._connection, answers_on(self._connection, self._node), identity, self.tally
            )

    async def _stop_answering(self) -> None:
        if self._responder is not None:
            await self._responder.stop()
            self._responder = None

    def _on_connection(self, up: bool) -> None:
        if up:
            self._beats.connected(clock.now())
            self._sooner.set()
