"""Whether an instance that went would leave its place to another one of its service. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from cdm.allocation.case import Case
from cdm.allocation.neighbours import Neighbours
from cdm.allocation.site import Freed
from cdm.allocation.sites import holds
from cdm.model.artifact import NodeId


def leaves_room(case: Case, node: NodeId, held: Freed) -> bool:
    """Whether another instance of the service, if it were gone, would leave its place to one of this version.

    Args:
        case: the facts; the other instance is none of `Case.mine`.
        node: where the other one is.
        held: what it holds there.
    """
    site = case.sites.all.get(node)
    if site is None or not site.open or not holds(case.rules.require, site.labels):
        return False
    service, of_service = str(case.artifact.service), dict(case.of_service)
    if service in of_service:
        of_service[service] = {**of_service[service], node: max(of_service[service].get(node, 0) - 1, 0)}
    beside = {**case.beside, node: max(case.beside.get(node, 0) - 1, 0)}
    # What is being stopped will be gone by then.
    leaving = {each: counts for each, counts in case.leaving.items() if each != service}
    rest = replace(case, beside=beside, of_service=of_service, leaving=leaving, retried={**case.retried, node: held})
    return Neighbours(rest).allow(site) and rest.room(site) > 0
