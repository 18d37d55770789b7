"""What proxies and monitoring are answered, each in its own words. Pure.

Every answer is made once for each change, and each service's part of it once for each change of that service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from msgspec import json

from cdm.manager.cluster_view import ClusterView
from cdm.manager.endpoints import Endpoint
from cdm.manager.pools import Pools, whole_weights
from cdm.manager.service_view import Pool
from cdm.model.artifact import NodeId, Service
from cdm.model.host import is_host, is_ip, is_loopback, with_port
from cdm.model.node import LOST, Registration

TYPES = "type.googleapis.com/envoy.config"
ASSIGNMENT = f"{TYPES}.endpoint.v3.ClusterLoadAssignment"
CLUSTER = f"{TYPES}.cluster.v3.Cluster"
SOURCE = "cdm"
"""The name that Envoy's own configuration has to give to the cluster through which it asks for endpoints."""
REFRESH = "1s"
"""How often Envoy asks for the endpoints of each service; it adds a random time of up to the same."""
PATIENCE = "5s"
"""How long it waits for an answer."""
MOST_KEPT = 64
"""Answers to questions that are kept."""

Services = frozenset[str]
"""The services that are asked for, by name; empty: all."""
ALL: Services = frozenset()


class AnswerBody(NamedTuple):
    """A document, and what tells it from others."""

    body: bytes
    digest: str
    since: float | None
    """Since when a part of it is not what is there, in seconds on `cdm.clock`; None: all of it is."""
    stale: str
    """The services of which that holds, percent-encoded for a header, separated by commas."""


class Answers:
    """Makes the answers from the pools, and keeps them until they are others."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._made_at = -1
        self._names: Services = ALL
        self._kept: dict[tuple[str, Services | None], AnswerBody] = {}
        """By what is answered, and of which services; None: of all."""

    def clusters(self, services: Services = ALL) -> AnswerBody:
        """Envoy's clusters: one for each service."""
        return self._answer("clusters", services, _clusters)

    def assignments(self, services: Services = ALL) -> AnswerBody:
        """Envoy's endpoints of clusters."""
        return self._answer("endpoints", services, _assignments)

    def traefik(self, services: Services = ALL) -> AnswerBody:
        """Traefik's services."""
        return self._answer("traefik", services, _traefik)

    def catalogue(self, services: Services = ALL) -> AnswerBody:
        """The services with their endpoints, as ``cdm endpoints --json`` tells of each."""
        return self._answer("services", services, _catalogue)

    def targets(self, services: Services = ALL) -> AnswerBody:
        """What Prometheus is to scrape: all instances that serve, also those that are sent nothing at present."""

        def body(_pools: Mapping[Service, Pool]) -> bytes:
            found = ((service, each) for service, each in self._pools.serving() if _asked(services, service))
            nodes = self._pools.nodes
            return json.encode([_target(service, at, nodes) for service, some in found for at in some])

        # Nobody is to be told that what is gone is still there to be scraped.
        return self._answer("targets", services, body)._replace(since=None, stale="")

    def _answer(self, kind: str, services: Services, body: Callable[[Mapping[Service, Pool]], bytes]) -> AnswerBody:
        if self._made_at != self._pools.revision or len(self._kept) > MOST_KEPT:
            self._made_at = self._pools.revision
            self._names = frozenset(map(str, self._pools.pools))
            self._kept.clear()
        # Whatever else is asked for makes no other answer.
        which = services & self._names if services else None
        found = self._kept.get((kind, which))
        if found is None:
            pools = {each: pool for each, pool in self._pools.pools.items() if _asked(services, each)}
            stale = {each: pool.since for each, pool in pools.items() if pool.since is not None}
            made = body(pools)
            digest = hashlib.blake2b(made, digest_size=12).hexdigest()
            found = AnswerBody(
                made, digest, min(stale.values(), default=None), ", ".join(quote(str(each), safe=":") for each in stale)
            )
            self._kept[kind, services] = found
        return found


def _asked(services: Services, service: Service) -> bool:
    return not services or str(service) in services


# Envoy


def discovery(answer: AnswerBody, kind: str) -> bytes:
    """A response of Envoy's discovery: its version is the document's digest."""
    return b'{"version_info":"%s","resources":%s,"type_url":"%s"}' % (
        answer.digest.encode(),
        answer.body,
        kind.encode(),
    )


def _by_name(pool: Pool) -> bool:
    """Whether addresses have to be looked up: Envoy does not do that for what it discovers endpoint by endpoint."""
    return not all(is_ip(each.address) for each in pool.endpoints)


def _clusters(pools: Mapping[Service, Pool]) -> bytes:
    return json.encode([_cluster(service, pool) for service, pool in pools.items()])


def _cluster(service: Service, pool: Pool) -> dict[str, Any]:
    found: dict[str, Any] = {"@type": CLUSTER, "name": str(service), "connect_timeout": "1s"}
    if _by_name(pool):
        return {**found, "type": "STRICT_DNS", "load_assignment": _assignment(service, pool.endpoints)}
    source = {
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": [SOURCE],
        "refresh_delay": REFRESH,
        "request_timeout": PATIENCE,
    }
    config = {"resource_api_version": "V3", "api_config_source": source}
    return {**found, "type": "EDS", "eds_cluster_config": {"eds_config": config}}


def _assignments(pools: Mapping[Service, Pool]) -> bytes:
    """Where nothing is known to have served what is wanted, nothing is said: Envoy goes on with what it has."""
    known = ((service, pool) for service, pool in pools.items() if pool.endpoints or not pool.wanted)
    return json.encode(
        [{"@type": ASSIGNMENT, **_assignment(service, _numeric(pool.endpoints))} for service, pool in known]
    )


def _numeric(found: Sequence[Endpoint]) -> list[Endpoint]:
    return [each for each in found if is_ip(each.address)]


def _assignment(service: Service, found: Sequence[Endpoint]) -> dict[str, Any]:
    members = [_member(each, weight) for each, weight in zip(found, whole_weights(found), strict=True)]
    return {"cluster_name": str(service), "endpoints": [{"lb_endpoints": members}] if members else []}


def _member(each: Endpoint, weight: int) -> dict[str, Any]:
    address = {"socket_address": {"address": each.address, "port_value": each.port}}
    told = {"filter_metadata": {"envoy.lb": {"node": each.node, "version": each.version}}}
    return {"endpoint": {"address": address}, "load_balancing_weight": weight, "metadata": told}


# Traefik


def _traefik(pools: Mapping[Service, Pool]) -> bytes:
    """Weights only where they differ: earlier releases of Traefik do not know them. No empty mapping: it takes none."""
    services = {str(service): {"loadBalancer": {"servers": _servers(pool)}} for service, pool in pools.items()}
    return json.encode({"http": {"services": services}} if services else {})


def _servers(pool: Pool) -> list[dict[str, Any]]:
    weights = whole_weights(pool.endpoints)
    differ = len(set(weights)) > 1
    return [
        {"url": f"http://{each.authority}", **({"weight": weight} if differ else {})}
        for each, weight in zip(pool.endpoints, weights, strict=True)
    ]


# Others


def _catalogue(pools: Mapping[Service, Pool]) -> bytes:
    return json.encode(
        [
            {"service": str(service), "endpoints": pool.endpoints, "current": pool.since is None}
            for service, pool in pools.items()
        ]
    )


def scraped(view: ClusterView) -> AnswerBody:
    """What Prometheus is to scrape of the nodes themselves: those that serve HTTP where others reach it.

    Nodes that are lost are told of until they are forgotten, so that monitoring sees that they do not answer.
    """
    lost = {node: put.value.registration for node, put in view.seen.items() if put.value.gone == LOST}
    known = {**lost, **{node: put.value for node, put in view.nodes.items()}}
    found = [(node, each, at) for node, each in sorted(known.items()) if (at := _authority(each)) is not None]
    return _whole(json.encode([_node_target(*each) for each in found]))


def _authority(node: Registration) -> str | None:
    """Where others reach the node's HTTP; None: nowhere, or what it says is no address."""
    at = node.http
    address = at and (at.address or node.address)
    if at is None or not address or not is_host(address) or not 0 < at.port < 2**16:
        return None
    if is_loopback(address) and not is_loopback(node.address or ""):
        return None  # only its own machine reaches it
    return with_port(address, at.port)


def _node_target(node: NodeId, said: Registration, authority: str) -> dict[str, Any]:
    secure = {"__scheme__": "https"} if said.http and said.http.tls else {}
    labels = {"__meta_cdm_node": node, "__meta_cdm_role": said.role, **secure, **dict(_labels(said.labels))}
    return {"targets": [authority], "labels": labels}


def _whole(body: bytes) -> AnswerBody:
    return AnswerBody(body, hashlib.blake2b(body, digest_size=12).hexdigest(), None, "")


def _target(service: Service, at: Endpoint, nodes: Mapping[NodeId, Registration]) -> dict[str, Any]:
    labels = {
        "__meta_cdm_service": str(service),
        "__meta_cdm_group": service.group,
        "__meta_cdm_name": service.name,
        "__meta_cdm_version": at.version,
        "__meta_cdm_node": at.node,
        **dict(_labels(nodes[at.node].labels)),
    }
    return {"targets": [at.authority], "labels": labels}


def _labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A node's labels, under names that Prometheus takes."""
    for name, value in labels.items():
        plain = "".join(each if each.isascii() and (each.isalnum() or each == "_") else "_" for each in name)
        yield f"__meta_cdm_node_label_{plain}", value
