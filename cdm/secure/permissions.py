"""The permissions of each role, as data: the one place that says who may do what.

Managers and the admin are users of the buckets' account. A node, and the operator, have accounts of their own, to which
single subjects of that account are opened as services: NATS brings the answers back to the account that asked, so
nobody can have an answer written to a subject of somebody else's. A node can make no consumer, which would deliver
wherever it is told to: managers make it one (`cdm.store.lending`).
"""

from __future__ import annotations

from collections.abc import Iterable

from cdm.model.artifact import NodeId
from cdm.model.event import EVENTS
from cdm.model.keys import encode_node, slots_of
from cdm.secure.accounts import Account, AccountLimits, Export, Grant, Import, User
from cdm.secure.members import ARTIFACTS, BUCKETS, COPIES, HUB, OPERATORS, READERS, Members, account_of, inbox_of
from cdm.store.wire import BUCKETS_API, COPIES_API, FOLLOWER

NODE_CONNECTIONS = 16
OPERATOR_CONNECTIONS = 256
NODE_PAYLOAD = 256 * 1024
"""Bytes of a node's longest message: the state of a slice, or a part of its output."""
OPERATOR_PAYLOAD = 1024 * 1024
CONSUMERS = 1000
"""Consumers that managers, operators and routers may have between them."""
CONSUMERS_PER_NODE = 4


def accounts(site: Members) -> tuple[Account, ...]:
    """All accounts: that of the buckets, the operator's, the readers', that of their copies, and each node's."""
    nodes = tuple(_node(site, node) for node in site.nodes)
    who_reads = (_operator(site), *((_readers(site),) if site.readers else ()))
    copies = _copies(site, who_reads)
    return (_hub(site, (who_reads[0], copies, *nodes)), *who_reads, copies, *nodes)


# The account of the buckets


def _hub(site: Members, others: tuple[Account, ...]) -> Account:
    """It exports exactly what the others import."""
    many = {
        *(site.core("cdm", "logs", encode_node(manager)) for manager in site.managers),
        *site.api("DIRECT.GET", ARTIFACTS, EVENTS),
    }
    return Account(
        HUB,
        "The buckets, and those who make and manage them.",
        (_admin(site), *(_manager(site, manager) for manager in site.managers)),
        tuple(
            Export(tuple(names), subject, stream, many=subject in many)
            for (subject, stream), names in _takers(HUB, others).items()
        ),
        (
            *(Import(account_of(node), site.core("cdm", "node", encode_node(node))) for node in site.nodes),
            *(Import(COPIES, call, to=_at_copies(call)) for call in _making_of_copies(site)),
        ),
        consumers=CONSUMERS + CONSUMERS_PER_NODE * len(site.nodes),
    )


def _takers(account: str, others: Iterable[Account]) -> dict[tuple[str, bool], list[str]]:
    """Who imports what of an account: names of accounts, by subject and whether it is a stream."""
    found: dict[tuple[str, bool], list[str]] = {}
    for other in others:
        for each in other.imports:
            if each.account == account:
                found.setdefault((each.subject, each.stream), []).append(other.name)
    return found


def _admin(site: Members) -> User:
    every = (*BUCKETS, ARTIFACTS, EVENTS)
    return User(
        "admin",
        "Makes and changes the buckets: `cdm init`. Once they are there, nobody needs it before the next upgrade.",
        (
            Grant("", ("$JS.API.INFO",)),
            Grant("", site.api("STREAM.INFO", *every)),
            Grant("", site.api("STREAM.CREATE", *every)),
            Grant("", site.api("STREAM.UPDATE", *every)),
            Grant("Removing what a node filled them with", site.api("STREAM.PURGE", *BUCKETS)),
            Grant(
                "The copies that the operator reads",
                (
                    *map(_at_copies, _making_of_copies(site)),
                    *(f"{call}.{FOLLOWER}" for call in site.api("CONSUMER.CREATE", *BUCKETS)),
                ),
            ),
            Grant(
                "Which version of cdm managers are: `cdm init --upgrade`",
                (
                    *site.api("CONSUMER.CREATE", "nodes", rest=f".*.{site.key('nodes', '>')}"),
                    *site.api("CONSUMER.INFO", "nodes", rest=".*"),
                    *site.api("CONSUMER.DELETE", "nodes", rest=".*"),
                    *site.api("STREAM.MSG.GET", "nodes"),
                    f"$JS.FC.{site.stream('nodes')}.>",
                ),
            ),
        ),
        (f"{inbox_of('admin')}.>",),
    )


def _manager(site: Members, manager: NodeId) -> User:
    own = encode_node(manager)
    return User(
        own,
        f"Takes part in elections and manages: cdm node --id {manager}, of role manager, all or auto.",
        (
            Grant(
                "Commands, the lease (_leader) and the fence (_term); its own registration, what is remembered of "
                "nodes, and a manager's slot (_manager), for one of role auto; statuses",
                (
                    site.key("slices", ">"),
                    *(site.key("nodes", key) for key in (own, "*.seen", slots_of("*"))),
                    site.key("status", ">"),
                ),
            ),
            Grant(
                "Reading: the buckets' state, lease and fence, its own registration, and mirrors of all buckets",
                ("$JS.API.INFO", *site.api("STREAM.INFO", *BUCKETS, ARTIFACTS)),
            ),
            Grant("", site.api("STREAM.MSG.GET", *BUCKETS)),
            Grant("", site.api("DIRECT.GET", "nodes", rest=f".{site.key('nodes', own)}")),
            Grant(
                "",
                tuple(
                    subject
                    for name in BUCKETS
                    for subject in site.api("CONSUMER.CREATE", name, rest=f".*.{site.key(name, '>')}")
                ),
            ),
            Grant("", site.api("CONSUMER.INFO", *BUCKETS, rest=".*")),
            Grant("", site.api("CONSUMER.DELETE", *BUCKETS, rest=".*")),
            Grant("", site.api("CONSUMER.MSG.NEXT", *BUCKETS, rest=".*")),
            Grant("", tuple(f"$JS.FC.{site.stream(name)}.>" for name in BUCKETS)),
            Grant(
                "Which content each artifact has: what is pushed over another one is rolled out",
                (
                    *site.api("CONSUMER.CREATE", ARTIFACTS, rest=f".*.$O.{site.bucket(ARTIFACTS)}.M.>"),
                    *site.api("CONSUMER.INFO", ARTIFACTS, rest=".*"),
                    *site.api("CONSUMER.DELETE", ARTIFACTS, rest=".*"),
                    f"$JS.FC.{site.stream(ARTIFACTS)}.>",
                ),
            ),
            Grant(
                "Artifacts, for one that runs slices too (--role all or auto)",
                (*site.api("STREAM.MSG.GET", ARTIFACTS), *site.api("DIRECT.GET", ARTIFACTS)),
            ),
            Grant("Telling events", (site.core("cdm", "event", ">"), *site.api("STREAM.INFO", EVENTS))),
            Grant(
                "Whether a node, or a leader, is alive",
                (site.core("cdm", "node", "*"), site.core("cdm", "leader", "*")),
            ),
            Grant("Checks of rollouts over NATS: add the subjects at which services answer them, as `shop.health`", ()),
        ),
        (
            f"{inbox_of(own)}.>",
            site.core("cdm", "node", own),
            site.core("cdm", "leader", "*"),
            site.core("cdm", "logs", own),
            site.core("cdm", "watch", "*"),
            f"$JS.EVENT.ADVISORY.CONSUMER.DELETED.{site.stream('slices')}.*",
        ),
        "To those who ask; cdm logs allows some more with every message.",
    )


# Accounts of their own


def _node(site: Members, node: NodeId) -> Account:
    own = encode_node(node)
    alive, logs = site.core("cdm", "node", own), site.core("cdm", "logs", own)
    watch = site.core("cdm", "watch", own)
    called = (
        Grant(
            "Its own slices, and its own registration; its intent is the operator's",
            (site.key("slices", f"{own}.>"), site.key("nodes", own)),
        ),
        Grant(
            "Reading: its own registration; and its own slices, by a consumer that managers make for it",
            (
                "$JS.API.INFO",
                *site.api("DIRECT.GET", "nodes", rest=f".{site.key('nodes', own)}"),
                watch,
                *(f"$JS.FC.{site.stream('slices')}.cdm-{reader}-{own}.*" for reader in ("node", "agent")),
            ),
        ),
        Grant(
            "Artifacts: which one has a name, and its parts",
            (*site.api("STREAM.MSG.GET", ARTIFACTS), *site.api("DIRECT.GET", ARTIFACTS)),
        ),
    )
    local = (
        Grant("Whether another process has its id", (alive,)),
        Grant(
            "Asked first, and answered by nobody in this account: so it knows that managers are to be asked",
            site.api("STREAM.INFO", "slices"),
        ),
    )
    return Account(
        account_of(node),
        f"Runs slices, and can do no more than lie about itself: cdm node --id {node}, of role agent or auto.",
        (
            User(
                own,
                "",
                called + local,
                (f"{inbox_of(own)}.>", alive, logs, f"{watch}.*"),
                "To those who ask; cdm logs allows some more with every message.",
            ),
        ),
        (Export((HUB,), alive), Export((OPERATORS,), logs, many=True)),
        (*_services(called), Import(HUB, f"{watch}.*", stream=True)),
        AccountLimits(NODE_CONNECTIONS, NODE_PAYLOAD),
    )


def _operator(site: Members) -> Account:
    puts = (site.key("blueprints", ">"), site.key("nodes", "*.intent"), site.key("nodes", "*.seen"))
    written = (
        Grant(
            "Blueprints and intents, as cdm puts them, and as clients of a bucket do that is a copy; what is forgotten",
            puts,
        ),
        Grant("", tuple(f"{BUCKETS_API}.{subject}" for subject in puts)),
        Grant(
            "Artifacts: their parts and records, and the removal of parts that are no longer named",
            (
                f"$O.{site.bucket(ARTIFACTS)}.>",
                *site.api("STREAM.PURGE", ARTIFACTS),
                *site.api("STREAM.INFO", ARTIFACTS),
                *site.api("STREAM.MSG.GET", ARTIFACTS),
                *site.api("DIRECT.GET", ARTIFACTS),
            ),
        ),
    )
    read = _reading(site)
    logs = (
        *(Import(account_of(node), site.core("cdm", "logs", encode_node(node))) for node in site.nodes),
        *(Import(HUB, site.core("cdm", "logs", encode_node(manager))) for manager in site.managers),
    )
    events = Grant("Events: `cdm events`, and hints that there are more", site.api("DIRECT.GET", EVENTS))
    hints = site.core("cdm", "event", ">")
    inbox = f"{inbox_of('operator')}.>"
    return Account(
        OPERATORS,
        "Writes blueprints, intents and artifacts, forgets nodes, and may see everything: `nats kv …`, `cdm status`.",
        (
            User(
                "operator",
                "",
                (*written, *read, events, Grant("What slices write: `cdm logs`", (site.core("cdm", "logs", "*"),))),
                (inbox, hints),
            ),
        ),
        (),
        (
            *(_put(subject) for grant in written for subject in grant.subjects),
            *(Import(COPIES, subject) for grant in read for subject in grant.subjects),
            *logs,
            *_services((events,)),
            Import(HUB, hints, stream=True),
            Import(COPIES, inbox, stream=True),
        ),
        AccountLimits(OPERATOR_CONNECTIONS, OPERATOR_PAYLOAD),
    )


def _readers(site: Members) -> Account:
    read = _reading(site)
    names = tuple(map(encode_node, site.readers))
    return Account(
        READERS,
        "Read, and write nothing: routers that follow `cdm endpoints`, and whoever looks at `cdm status`.",
        tuple(User(name, "", read, (f"{inbox_of(name)}.>",)) for name in names),
        (),
        (
            *(Import(COPIES, subject) for grant in read for subject in grant.subjects),
            *(Import(COPIES, f"{inbox_of(name)}.>", stream=True) for name in names),
        ),
        AccountLimits(OPERATOR_CONNECTIONS, OPERATOR_PAYLOAD),
    )


def _reading(site: Members) -> tuple[Grant, ...]:
    """What is called by whoever reads copies."""
    return (
        Grant(
            "Reading, of copies: buckets, single keys, and consumers for listing and watching",
            ("$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", *site.api("STREAM.INFO", *BUCKETS)),
        ),
        Grant("", site.api("STREAM.MSG.GET", *BUCKETS)),
        Grant("", site.api("DIRECT.GET", *BUCKETS, rest=".>")),
        Grant("", site.api("CONSUMER.CREATE", *BUCKETS, rest=".>")),
        Grant("", site.api("CONSUMER.INFO", *BUCKETS, rest=".*")),
        Grant("", site.api("CONSUMER.DELETE", *BUCKETS, rest=".*")),
        Grant("", tuple(f"$JS.FC.{site.stream(name)}.>" for name in BUCKETS)),
    )


def _put(subject: str) -> Import:
    plain = subject.removeprefix(f"{BUCKETS_API}.")
    return Import(HUB, plain, to=subject if plain != subject else "")


def _copies(site: Members, who_reads: tuple[Account, ...]) -> Account:
    """Whoever reads makes consumers, which deliver wherever they are told to: here there is nobody to be harmed."""
    # A wildcard, so that a consumer of the operator that delivers there finds nobody who listens.
    resets = site.api("CONSUMER.RESET", *BUCKETS, rest=".*")
    return Account(
        COPIES,
        "Copies of the buckets, for the operator to read; nobody connects here.",
        (),
        (
            *(
                Export(tuple(names), subject, stream, many="DIRECT.GET" in subject)
                for (subject, stream), names in _takers(COPIES, who_reads).items()
            ),
            *(Export((HUB,), call) for call in _making_of_copies(site)),
        ),
        (
            *(Import(HUB, call, to=call.replace("$JS.API", BUCKETS_API, 1)) for call in resets),
            *(Import(HUB, f"$JS.FC.{site.stream(name)}.{FOLLOWER}.*") for name in BUCKETS),
            Import(HUB, f"{site.core('cdm', FOLLOWER)}.>", stream=True),
        ),
        consumers=CONSUMERS,
    )


def _making_of_copies(site: Members) -> tuple[str, ...]:
    return tuple(
        call for what in ("INFO", "CREATE", "UPDATE", "DELETE") for call in site.api(f"STREAM.{what}", *BUCKETS)
    )


def _at_copies(call: str) -> str:
    return call.replace("$JS.API", COPIES_API, 1)


def _services(grants: Iterable[Grant]) -> tuple[Import, ...]:
    return tuple(Import(HUB, subject) for grant in grants for subject in grant.subjects)
