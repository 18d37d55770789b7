"""What JetStream's answers mean: its error codes as cdm's errors; and which servers have what cdm needs of it."""

from __future__ import annotations

import json
import re
from typing import Any

from cdm.errors import (
    BatchRefused,
    BucketMissing,
    Conflict,
    JetStreamAway,
    RequestRefused,
    StoreBusy,
    StoreError,
    Unsuitable,
)
from cdm.store.wire import is_leaders

MINIMUM_SERVER = (2, 12, 0)

_WRONG_LAST_SEQUENCE = 10071
_GUARDED_WRITE_IN_FLIGHT = 10164
_NO_ROOM_FOR_BATCH = (10210, 10176)
"""Too many batches are open; and that the server does not have all of a batch before its last message, which follows
from that, or from its having forgotten them: another server leads the stream now, or ten seconds have passed."""
_CLUSTER_UNAVAILABLE = (10008, 10009)
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_TOO_FEW_SERVERS = 10074
_JETSTREAM_OFF = (10039, 10076)


NAME_IN_USE = 10058
"""The server's code for a stream of that name whose configuration is not quite the same."""


def checked(answer: bytes) -> Any:
    """Decode an answer; raises the `StoreError` that its error means."""
    try:
        body = json.loads(answer)
    except ValueError:
        raise RequestRefused(f"the server's answer is not JSON: {answer[:80]!r}") from None
    if not isinstance(body, dict):
        raise RequestRefused(f"the server's answer is not what was asked for: {answer[:80]!r}")
    error = body.get("error")
    if not error:
        return body
    raise error_of(int(error.get("err_code", 0)), str(error.get("description", error)))


def acknowledged(answer: bytes) -> tuple[int, bool]:
    """What a stream says of a message: its sequence, and whether it was there before. Errors as of `checked`.

    Whoever may listen to the subject may answer as well, and say anything.
    """
    body = checked(answer)
    sequence = body.get("seq")
    if not isinstance(sequence, int):
        raise RequestRefused(f"no stream says that it stored the message: {answer[:80]!r}")
    return sequence, bool(body.get("duplicate"))


def error_of(code: int, text: str) -> StoreError:
    """The error that a code means; the text is the server's."""
    if code == _WRONG_LAST_SEQUENCE:
        return Conflict(text)
    if code in _NO_ROOM_FOR_BATCH:
        return BatchRefused(text)
    if code == _GUARDED_WRITE_IN_FLIGHT or code in _CLUSTER_UNAVAILABLE:
        return StoreBusy(text)
    if code == _NO_STREAM:
        return BucketMissing(text)
    if code == _TOO_FEW_SERVERS:
        return Unsuitable(f"the NATS server cannot keep so many replicas; see --replicas ({text})")
    if code in _JETSTREAM_OFF:
        return JetStreamAway(f"JetStream: {text}")
    return RequestRefused(text, code)


def of_leader(info: Any, bucket: str) -> Any:
    """An answer of ``STREAM.INFO``, as it is.

    Raises:
        StoreBusy: it is not that of the stream's leader: what that server holds may be old.
    """
    if not is_leaders(info):
        raise StoreBusy(f"no leader of the stream of {bucket} answers")
    return info


def no_message(error: RequestRefused) -> bool:
    """Whether a refusal says that there is no such message."""
    return error.code == _NO_MESSAGE


def problem_with_version(version: str) -> str:
    """Why a server of this version cannot do what the protocol needs; empty: it can."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers >= MINIMUM_SERVER:
        return ""
    wanted = ".".join(map(str, MINIMUM_SERVER))
    return f"is too old; cdm needs {wanted} or later (atomic batches, per-message TTL)"
