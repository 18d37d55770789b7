"""Managers make a node's consumer where the node may make none.

Whoever may make a consumer chooses where it delivers, and could have the server write to any subject of the buckets'
account. So a node in an account of its own asks on ``cdm.watch.{node}``; some manager answers, and its consumer, of the
node's own slices and nothing else, delivers to ``cdm.watch.{node}.{token}``, which the node's account imports. NATS
vouches for who asks: that subject is open to that node only. A node has two such consumers at most: its own, and that
of an agent which is not cdm's.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Annotated, Literal

import anyio
import anyio.abc
import msgspec
from msgspec import Meta, Struct

from cdm.errors import AccessDenied, BucketMissing, InvalidKey, NoResponders, RequestRefused, StoreBusy, StoreError
from cdm.log import Log
from cdm.model.artifact import NodeId
from cdm.model.keys import decode_node, encode_node
from cdm.model.problems import UNREADABLE
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.library import Msg
from cdm.store.listening import subscribed_in_time
from cdm.store.micro import EndpointTally
from cdm.store.source import Delivered, OwnSource
from cdm.store.wire import StreamState

log = Log("cdm.watch")

PATIENCE = 2.0
"""Seconds that a manager has to answer."""
AT_ONCE = 64
"""Nodes that one manager serves at the same time, each with one question."""
MANAGERS = "cdm-managers"
"""The queue in which managers take turns."""


class Question(Struct, frozen=True, omit_defaults=True):
    """What a node asks of a manager."""

    what: Literal["state", "subjects", "create", "progress", "delete"]
    token: Annotated[str, Meta(pattern=r"\Acdm-[0-9a-f]{1,32}\Z")] = ""
    """Of ``create``: last token of the subject to deliver to."""
    after: Annotated[int, Meta(ge=0)] | None = None
    """Of ``create``: begin behind this sequence."""
    heartbeat: Annotated[float, Meta(ge=0.5, le=60)] = 2.0
    """Of ``create``: seconds of silence after which the consumer sends a heartbeat."""
    reader: Literal["node", "agent"] = "node"
    """Whose consumer this is about: the node's, or that of an agent which is not cdm's."""


class LenderAnswer(Struct, frozen=True, omit_defaults=True):
    """What the manager answers."""

    state: StreamState | None = None
    subjects: frozenset[str] = frozenset()
    progress: Delivered | None = None
    error: str = ""
    """Why there is no answer; empty: there is."""
    missing: bool = False
    """Whether that is because there is no such bucket."""


def _stored_as(node: NodeId, reader: str = "node") -> str:
    return f"cdm-{reader}-{encode_node(node)}"


class Lent:
    """Consumers of one node's keys that managers make: a `cdm.store.source.ConsumerSource`.

    Args:
        connection: the node's.
        node: which node.
    """

    def __init__(self, connection: Connection, node: NodeId) -> None:
        self._connection = connection
        self._node = node
        self._subject = connection.subject("cdm", "watch", encode_node(node))

    async def state(self) -> StreamState:
        """The stream, without what it holds of others' keys."""
        answer = await self._ask(Question("state"))
        if answer.state is None:
            raise RequestRefused(f"a manager's answer at {self._subject} lacks the stream's state")
        return answer.state

    async def subjects(self) -> set[str]:
        """The subjects of the node's keys."""
        return set((await self._ask(Question("subjects"))).subjects)

    def stored_as(self, name: str) -> str:
        """The name is the node's."""
        return _stored_as(self._node)

    def inbox(self, name: str) -> str:
        """Beneath the subject at which managers are asked."""
        return f"{self._subject}.{name}"

    async def create(self, name: str, inbox: str, after: int | None, heartbeat: float) -> Delivered:
        """Have one made; it takes the place of the one before."""
        return self._progress(await self._ask(Question("create", name, after, heartbeat)))

    async def progress(self, name: str, timeout: float) -> Delivered:
        """How far it is."""
        return self._progress(await self._ask(Question("progress"), timeout))

    async def delete(self, name: str, timeout: float) -> None:
        """Have it deleted."""
        await self._ask(Question("delete"), timeout)

    def _progress(self, answer: LenderAnswer) -> Delivered:
        if answer.progress is None:
            raise RequestRefused(f"a manager's answer at {self._subject} lacks the consumer's progress")
        return answer.progress

    async def _ask(self, question: Question, timeout: float = PATIENCE) -> LenderAnswer:
        try:
            raw = await self._connection.request(self._subject, msgspec.json.encode(question), timeout=timeout)
        except NoResponders:
            raise StoreBusy(f"no manager answers at {self._subject}") from None
        try:
            answer = msgspec.json.decode(raw, type=LenderAnswer)
        except UNREADABLE as error:
            raise RequestRefused(f"a manager's answer at {self._subject} is not understood: {error}") from None
        if answer.missing:
            raise BucketMissing(answer.error)
        if answer.error:
            raise StoreBusy(f"the manager that was asked at {self._subject} could not help: {answer.error}")
        return answer


class Lender:
    """Answers nodes that ask for a consumer of their own slices.

    Args:
        slices: the bucket.
    """

    def __init__(self, slices: Bucket) -> None:
        self._slices = slices
        self._connection = slices.connection
        about = "consumers for nodes that may make none"
        self.tally = EndpointTally("watch", self._connection.subject("cdm", "watch", "*"), MANAGERS, about)
        """What nodes asked of this manager."""
        self._served: set[NodeId] = set()
        """Nodes whose question is being answered."""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(self) -> None:
        """LenderAnswer until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            await self._listen()

    async def _listen(self) -> None:
        connection, subject = self._connection, self.tally.subject
        subscribe = partial(connection.subscribe, subject, self._on_question, MANAGERS)
        try:
            subscription = await subscribed_in_time(connection, subject, subscribe)
        except AccessDenied as error:
            # With permissions of earlier versions nodes have no accounts of their own, and ask nobody.
            log.info("nodes in accounts of their own are not served", reason=str(error))
            return
        try:
            await anyio.sleep_forever()
        finally:
            # Whoever asks and is heard by nobody waits.
            with anyio.CancelScope(shield=True):
                await connection.unsubscribe(subscription)

    async def _on_question(self, message: Msg) -> None:
        if self._tasks is None or not self._connection.may_answer(message.reply):
            return
        try:
            node = decode_node(message.subject.rpartition(".")[2])
        except InvalidKey:
            return
        if node in self._served or len(self._served) >= AT_ONCE:
            await self._answer(message.reply, LenderAnswer(error="another question is being answered"))
            return
        self._served.add(node)
        self._tasks.start_soon(self._serve, node, message.reply, message.data)

    async def _serve(self, node: NodeId, to: str, raw: bytes) -> None:
        try:
            with self.tally.timed():
                try:
                    answer = await self._look(node, msgspec.json.decode(raw, type=Question))
                except UNREADABLE as error:
                    answer = LenderAnswer(error=f"the question is not understood: {error}")
                except StoreError as error:
                    answer = LenderAnswer(error=str(error), missing=isinstance(error, BucketMissing))
                await self._answer(to, answer)
            if answer.error:
                self.tally.failed(answer.error)
        finally:
            self._served.discard(node)

    async def _look(self, node: NodeId, question: Question) -> LenderAnswer:
        source = OwnSource(self._slices, self._slices.subject(f"{encode_node(node)}.>"))
        name = _stored_as(node, question.reader)
        match question.what:
            case "state":
                state = await source.state()
                told = StreamState(
                    state.created, state.last, state.clock, replicas=state.replicas, consumers=state.consumers
                )
                return LenderAnswer(told)
            case "subjects":
                return LenderAnswer(subjects=frozenset(await source.subjects()))
            case "create":
                with suppress(RequestRefused):  # most often there is none
                    await source.delete(name, PATIENCE)
                inbox = self._connection.subject("cdm", "watch", encode_node(node), question.token or "cdm-0")
                return LenderAnswer(progress=await source.create(name, inbox, question.after, question.heartbeat))
            case "progress":
                return LenderAnswer(progress=await source.progress(name, PATIENCE))
            case "delete":
                await source.delete(name, PATIENCE)
                return LenderAnswer()

    async def _answer(self, to: str, answer: LenderAnswer) -> None:
        try:
            await self._connection.publish(to, msgspec.json.encode(answer))
        except StoreError as error:
            log.debug("a node's question was not answered", reason=str(error))
