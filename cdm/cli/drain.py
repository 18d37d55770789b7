"""``cdm drain``: nodes are emptied, whatever runs there being replaced elsewhere first; or everything is stopped."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Annotated, Literal

import anyio
from cyclopts import Parameter

from cdm import clock
from cdm.cli.connected import run_connected
from cdm.cli.drained import Drained, DrainFollower, Result
from cdm.cli.following import Say, shown_line, unsaid
from cdm.cli.intending import KnownNodes, known_nodes, put_intents, understood
from cdm.cli.lasting import WAIT, WaitOptions, check_timeout
from cdm.cli.log_setup import LogLevel, remark
from cdm.cli.options import FLAG, duration, whole
from cdm.cli.parameters import NodeNames, Reason
from cdm.cli.screen import print_json
from cdm.errors import UsageError
from cdm.manager.onlooker import Onlooker
from cdm.manager.standing import exclusive
from cdm.model.artifact import NodeId
from cdm.model.duration import check_duration, duration_text
from cdm.model.node import Intent, Schedule
from cdm.store.connection import Connection
from cdm.store.snapshot import snapshot

AT_ONCE = "2s"
"""Until everything is stopped: by then the leader has heard of all nodes, and none is taken for a place to go to."""


def drain(
    nodes: NodeNames = (),
    /,
    *,
    everything: Annotated[bool, FLAG, Parameter(name="--all")] = False,
    deadline: Annotated[float | None, duration()] = None,
    on_deadline: Literal["wait", "force"] = "wait",
    parallel: Annotated[int | None, whole(least=1)] = None,
    wait: Annotated[bool, FLAG] = False,
    reason: Reason = "",
    yes: Annotated[bool, FLAG] = False,
    options: WaitOptions = WAIT,
) -> int:
    """Have nodes emptied: what runs there is replaced elsewhere first, and then taken away.

    Parameters
    ----------
    everything
        Stop everything on all nodes, and replace nothing: what needs other services goes before these do.
    deadline
        When the nodes are to be empty. [default: whenever that is so]
    on_deadline
        What becomes of what is left then: "wait" goes on as before, "force" takes it away without a replacement.
    parallel
        So many nodes at a time; the others are cordoned until it is their turn. The command has to go on until then.
    wait
        Wait until the nodes are empty, and tell what is waited for.
    yes
        With --all: do not ask.
    """
    _check(nodes, everything=everything, deadline=deadline, force=on_deadline == "force", parallel=parallel)
    waits = wait or parallel is not None
    check_timeout(options, wait=waits)
    if everything:
        intent = Intent(Schedule.DRAIN, AT_ONCE, True, reason)
        if not yes:
            _ask(run_connected(options.connection, "cdm drain", _looked, level=LogLevel.ERROR))
    else:
        text = None if deadline is None else duration_text(deadline)
        intent = Intent(Schedule.DRAIN, text, on_deadline == "force", reason)
    run = partial(_run, names=nodes, intent=intent, parallel=parallel, wait=waits, options=options)
    return run_connected(options.connection, "cdm drain", run, level=LogLevel.ERROR)


def _check(
    nodes: Sequence[NodeId], *, everything: bool, deadline: float | None, force: bool, parallel: int | None
) -> None:
    if everything == bool(nodes):
        raise UsageError("name the nodes, or write --all to stop everything")
    if everything and (deadline is not None or force or parallel is not None):
        raise UsageError("--all stops everything at once: --deadline, --on-deadline and --parallel have no meaning")
    if force and deadline is None:
        raise UsageError("--on-deadline force: say with --deadline when that is")
    if deadline is not None:
        check_duration("--deadline", deadline)


# Asking


async def _looked(connection: Connection) -> Onlooker:
    return Onlooker(await snapshot(connection), clock.now())


def _ask(look: Onlooker) -> None:
    """Ask whether everything is to be stopped; raises `UsageError` where it is not, or nobody can be asked."""
    hosting = look.placement.nodes
    count = sum(len(look.cluster.on_node.get(node, ())) for node in hosting)
    what = f"everything, {_slices(count)} on {len(hosting)} node{'' if len(hosting) == 1 else 's'}"
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError(f"--all stops {what}, and there is no terminal to ask: say --yes")
    sys.stderr.write(f"This stops {what}, and replaces nothing.\nType yes to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")


# Doing


async def _run(
    connection: Connection,
    names: Sequence[NodeId],
    intent: Intent,
    parallel: int | None,
    wait: bool,
    options: WaitOptions,
) -> int:
    messages = await snapshot(connection)
    known = known_nodes(messages)
    known.check(names)
    intent, note = understood(known, intent)
    nodes = [*dict.fromkeys(names)] or known.hosting
    say = unsaid if options.json else shown_line
    if note:
        remark(note)
    look = Onlooker(messages, clock.now())
    if not nodes:
        say("no node runs slices")
    await _begin(connection, known, nodes, intent, parallel)
    for node in nodes:
        _tell(say, look, known, node, intent, begun=parallel is None)
    found = [Drained(node, None, []) for node in nodes]
    if wait and nodes:
        found = await _waited(DrainFollower(connection, nodes, intent, parallel, say), options)
    if options.json:
        print_json({"nodes": found})
    return exit_code(found)


def exit_code(found: Collection[Drained]) -> int:
    """The command's, by how each node ended."""
    results = {each.result for each in found}
    if Result.SUPERSEDED in results:
        return 4
    return 3 if results & {Result.TIMED_OUT, Result.NOT_BEGUN} else 0


async def _begin(
    connection: Connection, known: KnownNodes, nodes: Sequence[NodeId], intent: Intent, parallel: int | None
) -> None:
    """Have it written what is wanted of the nodes; of those whose turn comes later, that they take nothing new.

    None is emptied before all take nothing more, so that nothing is moved to one of them. Where it is so already a
    deadline runs on.
    """
    cordoned = Intent(Schedule.CORDON, reason=intent.reason)
    now = intent if parallel is None else cordoned
    news = {node: now for node in nodes if now.deadline is None or known.intent(node) != now}
    if parallel is not None:
        news = {node: each for node, each in news.items() if known.intent(node) != intent}
    if parallel is None and len(news) > 1:
        held = {node: cordoned for node in news if known.intent(node) is None}
        await put_intents(connection, held)
    await put_intents(connection, news)


def _tell(say: Say, look: Onlooker, known: KnownNodes, node: NodeId, intent: Intent, *, begun: bool) -> None:
    """What is about to happen to the slices of one node."""
    keys = look.cluster.on_node.get(node, ())
    words = [_slices(len(keys)), *_kinds(look, node)]
    if known.intent(node) == intent:
        words.append("as it was before")
    if node not in known.registered:
        words.append("it is not registered now")
    say(f"{node}: {'to be drained' if begun else 'cordoned, to be drained in its turn'}: {'; '.join(words)}")


def _kinds(look: Onlooker, node: NodeId) -> Iterable[str]:
    """What is not replaced first."""
    once, each = Counter[str](), Counter[str]()
    for key in look.cluster.on_node.get(node, ()):
        if key.artifact in look.cluster.ruled.each:
            each[str(key.artifact)] += 1
        elif exclusive(look.cluster.group(key.artifact).slices[key]):
            once[str(key.artifact)] += 1
    if once:
        yield f"{', '.join(sorted(once))} must not run twice, and stops before another one starts"
    if each:
        yield f"{', '.join(sorted(each))} is one on each node, and is not replaced"


def _slices(count: int) -> str:
    return f"{count:,} slice{'' if count == 1 else 's'}"


async def _waited(follower: DrainFollower, options: WaitOptions) -> list[Drained]:
    try:
        found = await follower.run(options.timeout)
    except (Exception, anyio.get_cancelled_exc_class()):  # Ctrl-C; or NATS refuses something
        print(f"cdm: {_what_goes_on(follower)}", file=sys.stderr)
        raise
    if any(each.result in (Result.TIMED_OUT, Result.NOT_BEGUN) for each in found):
        say = unsaid if options.json else shown_line
        say(_what_goes_on(follower))
    return found


def _what_goes_on(follower: DrainFollower) -> str:
    """What is so now that nobody waits any more, and what to do."""
    said = ["no longer waited for"]
    if follower.under_way:
        nodes = " ".join(follower.under_way)
        said.append(
            f"{_and(follower.under_way)} go{'es' if len(follower.under_way) == 1 else ''} on being drained "
            f"(`cdm nodes {nodes}` shows how far)"
        )
    if follower.waiting:
        nodes = " ".join(follower.waiting)
        are = "is cordoned and was" if len(follower.waiting) == 1 else "are cordoned and were"
        said.append(
            f"{_and(follower.waiting)} {are} not begun: `cdm drain {nodes}` does it, `cdm uncordon {nodes}` "
            "uses them again"
        )
    return "; ".join(said)


def _and(names: Iterable[str]) -> str:
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last
