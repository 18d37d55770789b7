"""All nodes, and which of them fit: what rules say of labels is worked out once, and kept while nodes change.

What changes all the time, how much is on a node, costs one assignment. What changes rarely, labels and whether a node
is open, is followed in every list that is kept.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from cdm.allocation.evenly import Ranking
from cdm.allocation.site import Site, overdrawn
from cdm.model.artifact import NodeId
from cdm.model.condition import LabelCondition
from cdm.model.rules import Preference

PREFERRED_BITS = 24
"""In the number that nodes are ranked by, the bits that slices take; what is preferred stands above them."""
KEPT = 1_000
"""Most lists of each kind that are kept; the one that was asked for longest ago goes first."""

REMEMBERED = 10_000
"""Most changes that are remembered for those that keep nodes in order."""

Require = tuple[LabelCondition, ...]
K = TypeVar("K")
V = TypeVar("V")

Domain = str | None
"""A value of a label; None: it is not there."""


class Sites:
    """The nodes, in any order.

    Args:
        sites: those that there are.
    """

    def __init__(self, sites: Iterable[Site] = ()) -> None:
        self._sites: dict[NodeId, Site] = {}
        self.fixed = 0
        """How often anything changed but how much is on a node, as long as that is no more than may be, and what it
        could take."""
        self._gone: dict[NodeId, Mapping[str, str]] = {}
        self._fitting: dict[Require, list[NodeId]] = {}
        self._domains: dict[tuple[Require, str], Counter[Domain]] = {}
        self._scores: dict[tuple[Preference, ...], dict[NodeId, int]] = {}
        self._ranked: dict[tuple[Require, tuple[Preference, ...], str | None], _Ranked] = {}
        self._changed: list[NodeId] = []
        """Nodes that changed, in order, for those that keep them in order."""
        for site in sites:
            self.put(site)

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        """Those that are not dead, in name order."""
        return iter([self._sites[node] for node in sorted(self._sites)])

    def copy(self) -> Sites:
        """The same nodes, to be changed apart from these."""
        found = Sites(self._sites.values())
        found._gone.update(self._gone)
        return found

    @property
    def all(self) -> Mapping[NodeId, Site]:
        """Those that are not dead, by node."""
        return self._sites

    def put(self, site: Site) -> None:
        """The node is there, or something about it changed."""
        node = site.node
        old = self._sites.get(node)
        self._sites[node] = site
        self._note(node)
        if old is None or not _stands_alike(old, site):
            self.fixed += 1
        if old is not None and old.open == site.open and (old.labels is site.labels or old.labels == site.labels):
            return
        known = self._gone.pop(node, None) if old is None else old.labels
        self._relabel(node, known, site.labels)
        self._reopen(node, old, site)

    def gone(self, node: NodeId, labels: Mapping[str, str]) -> None:
        """The node is dead or left, and is not forgotten: its domains are still some to be filled."""
        old = self._sites.pop(node, None)
        self._note(node)
        known = self._gone.get(node) if old is None else old.labels
        self._gone[node] = labels
        if old is not None or known != labels:
            self.fixed += 1
        if known != labels:
            self._relabel(node, known, labels)
        self._reopen(node, old, None)

    def forget(self, node: NodeId) -> None:
        """Nothing is known of the node any more."""
        old = self._sites.pop(node, None)
        self._note(node)
        known = self._gone.pop(node, None) if old is None else old.labels
        self.fixed += 1
        self._relabel(node, known, None)
        self._reopen(node, old, None)

    def labels(self, node: NodeId) -> Mapping[str, str]:
        """A node's labels, also of one that is gone; of one that nobody knows its id."""
        site = self._sites.get(node)
        if site is not None:
            return site.labels
        return self._gone.get(node) or {"node": node}

    def fitting(self, require: Require) -> Sequence[NodeId]:
        """The open nodes whose labels fulfil all conditions, in name order."""
        found = _kept(self._fitting, require)
        if found is None:
            sites = self._sites
            found = sorted(node for node, site in sites.items() if site.open and holds(require, site.labels))
            _keep(self._fitting, require, found)
        return found

    def domains(self, require: Require, label: str) -> Iterable[Domain]:
        """The values of a label on the nodes that fulfil all conditions, be they open, missing, or gone."""
        found = _kept(self._domains, (require, label))
        if found is None:
            everybody = [site.labels for site in self._sites.values()] + list(self._gone.values())
            found = Counter(labels.get(label) for labels in everybody if holds(require, labels))
            _keep(self._domains, (require, label), found)
        return found.keys()

    def gone_in(self, require: Require, label: str, domain: Domain) -> list[NodeId]:
        """The nodes of a domain that are dead, or left, and are not forgotten, in name order."""
        gone = self._gone.items()
        return sorted(node for node, labels in gone if labels.get(label) == domain and holds(require, labels))

    def scores(self, prefer: tuple[Preference, ...]) -> Mapping[NodeId, int]:
        """The sum of the weights of the preferences that hold on each node that is not dead."""
        found = _kept(self._scores, prefer)
        if found is None:
            found = {node: score(prefer, site.labels) for node, site in self._sites.items()}
            _keep(self._scores, prefer, found)
        return found

    def ranked(self, require: Require, prefer: tuple[Preference, ...], label: str | None) -> Mapping[Domain, Ranking]:
        """The open nodes that fulfil all conditions, and have room for slices, in order, by a label's values.

        The most preferred come first, and among them those with the fewest slices. Without a label, all together as
        those of None. Keeping them costs what changed since it was asked for last.
        """
        kind = (require, prefer, label)
        found = _kept(self._ranked, kind)
        if found is None:
            found = _Ranked(prefer, label)
            for node in self.fitting(require):
                found.put(self._sites[node])
            _keep(self._ranked, kind, found)
        else:
            for node in dict.fromkeys(self._changed[found.seen :]):
                site = self._sites.get(node)
                if site is not None and site.open and holds(require, site.labels):
                    found.put(site)
                else:
                    found.drop(node)
        found.seen = len(self._changed)
        return found.domains

    def best_score(self, require: Require, prefer: tuple[Preference, ...]) -> int:
        """The most that is to be said for one of those nodes; 0: there is none."""
        ranking = self.ranked(require, prefer, None).get(None)
        first = None if ranking is None else next(ranking.in_order(None), None)
        return 0 if first is None else score(prefer, self._sites[first].labels)

    def _note(self, node: NodeId) -> None:
        if self._ranked:
            if len(self._changed) >= REMEMBERED:
                # Whoever was not asked for so long is made anew.
                self._changed.clear()
                self._ranked.clear()
            else:
                self._changed.append(node)

    def _relabel(self, node: NodeId, old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> None:
        for prefer, scores in self._scores.items():
            if new is None:
                scores.pop(node, None)
            else:
                scores[node] = score(prefer, new)
        for (require, label), counted in self._domains.items():
            if old is not None and holds(require, old):
                domain = old.get(label)
                counted[domain] -= 1
                if not counted[domain]:
                    del counted[domain]
            if new is not None and holds(require, new):
                counted[new.get(label)] += 1

    def _reopen(self, node: NodeId, old: Site | None, new: Site | None) -> None:
        for require, nodes in self._fitting.items():
            was = old is not None and old.open and holds(require, old.labels)
            fits = new is not None and new.open and holds(require, new.labels)
            if fits and not was:
                insort(nodes, node)
            elif was and not fits:
                del nodes[bisect_left(nodes, node)]


class _Ranked:
    """Nodes in order, by the values of a label.

    Args:
        prefer: those for which most is to be said come first.
        label: which; None: all together.
    """

    def __init__(self, prefer: tuple[Preference, ...], label: str | None) -> None:
        self._prefer = prefer
        self._label = label
        self._where: dict[NodeId, Domain] = {}
        self.domains: dict[Domain, Ranking] = {}
        self.seen = 0
        """How many changes are followed."""

    def put(self, site: Site) -> None:
        """The node is open, and fulfils the conditions."""
        node = site.node
        if site.capacity is not None and site.total >= site.capacity:
            self.drop(node)
            return
        domain = None if self._label is None else site.labels.get(self._label)
        if node in self._where and self._where[node] != domain:
            self.drop(node)
        self._where[node] = domain
        ranking = self.domains.get(domain)
        if ranking is None:
            ranking = self.domains[domain] = Ranking()
        worse = -score(self._prefer, site.labels) if self._prefer else 0
        ranking.put(node, (worse << PREFERRED_BITS) + site.total)

    def drop(self, node: NodeId) -> None:
        """The node takes nothing."""
        if node in self._where:
            domain = self._where.pop(node)
            ranking = self.domains[domain]
            ranking.drop(node)
            if not ranking:
                del self.domains[domain]  # nobody may know of it any more


def _stands_alike(old: Site, new: Site) -> bool:
    if (old.open, old.draining, old.registered) != (new.open, new.draining, new.registered):
        return False
    return overdrawn(old) == overdrawn(new) and (old.labels is new.labels or old.labels == new.labels)


def holds(require: Require, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil all conditions."""
    return all(condition.holds(labels) for condition in require)


def score(prefer: Iterable[Preference], labels: Mapping[str, str]) -> int:
    """The sum of the weights of the preferences that hold."""
    return sum(each.weight for each in prefer if each.condition.holds(labels))


def _kept(kept: dict[K, V], key: K) -> V | None:
    found = kept.pop(key, None)
    if found is not None:
        kept[key] = found
    return found


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
