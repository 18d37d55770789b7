"""What monitoring scrapes, and whether this process is well."""

from __future__ import annotations

from cdm.http.desk import Desk, Section


def section(desk: Desk) -> Section:
    """What it adds."""
    del desk
    return Section()
