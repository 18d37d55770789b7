"""Which contents something in the cluster still names: the slices, and the records of rollouts.

Both are in ``slices``, and more may name contents there one day. So a value is not decoded: every digest that occurs in
it counts as named, whatever version of cdm wrote it, and in whichever field.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import msgspec

from cdm.dispatch.messages import Message, ValuePut
from cdm.errors import BucketMissing, StoreError, innermost
from cdm.model.keys import SLICES, Key
from cdm.store.bucket import Bucket
from cdm.store.connection import Connection
from cdm.store.snapshot import listed
from cdm.store.stalls import while_it_comes

PATIENCE = 30.0
"""Seconds without anything that comes after which reading is given up."""
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class RawKey(Key, frozen=True):
    """A key of ``slices`` of whichever kind, with whatever it holds."""

    value_type: ClassVar[type[Any]] = msgspec.Raw
    name: str


_RAW = SLICES._replace(kinds=(RawKey,), decode=RawKey)


async def named_contents(connection: Connection) -> frozenset[str]:
    """The digests of all contents that are named: none, where there is no such bucket.

    Raises:
        StoreError: not everything could be read; what was read says nothing then.
    """
    named: set[str] = set()

    def take(message: Message) -> None:
        came()
        if isinstance(message, ValuePut):
            named.update(digest.decode() for digest in _DIGEST.findall(bytes(message.value)))

    bucket, failed = Bucket(connection, _RAW), None
    try:
        async with while_it_comes(f"bucket {bucket.name}", PATIENCE) as came:
            await listed(bucket, take)
    except* StoreError as errors:
        failed = _first(errors)
    # Not from within: early releases of Python 3.11 make a group of what is raised there.
    if isinstance(failed, BucketMissing):
        return frozenset()
    if failed is not None:
        raise failed
    return frozenset(named)


def _first(group: BaseExceptionGroup[StoreError]) -> StoreError:
    error = innermost(group)
    assert isinstance(error, StoreError)
    return error
