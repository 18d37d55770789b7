"""Mends what is safe to mend: the settings of buckets, as every node that may change them does when it starts.

Nothing else is. Keys that cannot be read may be of a later version; how many replicas there are to be, and which nodes
are to come back, somebody has to decide.
"""

from __future__ import annotations

from collections.abc import Iterable

from cdm.doctor.finding import Finding, FindingKind
from cdm.errors import StoreError
from cdm.store.bucket import buckets
from cdm.store.connection import Connection


async def mend(connection: Connection, findings: Iterable[Finding]) -> list[str]:
    """Mend what can be mended of these, and tell of each what came of it; never raises a `StoreError`."""
    by_name = {bucket.name: bucket for bucket in buckets(connection).values()}
    told = []
    for finding in findings:
        bucket = by_name.get(finding.where)
        if not finding.fixable or bucket is None:
            continue
        try:
            if finding.kind is FindingKind.CHANGEOVER:
                await bucket.change_over()
            else:
                await bucket.ensure(create=False)
            told.append(f"{bucket.name}: mended: {finding.what}")
        except StoreError as error:
            told.append(f"{bucket.name}: not mended: {error}")
    return told
