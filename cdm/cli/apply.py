"""``cdm apply`` and ``cdm plan``: blueprints as files, or options, say they are to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from cdm import clock
from cdm.cli.applying import Decided, Wish, code_of, decided, not_stored, wait_for, write
from cdm.cli.changes import Action, Change
from cdm.cli.connected import run_connected
from cdm.cli.documents import ENDINGS, read_all
from cdm.cli.judging import Ended
from cdm.cli.lasting import WAIT, WaitOptions, check_timeout
from cdm.cli.log_setup import LogLevel, remark
from cdm.cli.options import FLAG, ConnectionOptions
from cdm.cli.parameters import HERE, Json, artifact_of
from cdm.cli.rows import Paint, sheet, show
from cdm.cli.screen import print_json
from cdm.errors import UsageError
from cdm.model.artifact import Artifact
from cdm.model.blueprint import MAX_INSTANCES
from cdm.model.rules import EACH
from cdm.store.connection import Connection

WOULD_CHANGE = 10
"""Exit code of ``cdm plan --detailed-exitcode`` where anything would be changed."""
NAMED = 5
"""Artifacts of which no program is stored that are named."""
_LONGEST_OWNER = 64
_MARKS = {Action.CREATE: "+", Action.CHANGE: "~", Action.OWN: "~", Action.REMOVE: "-", Action.NOTHING: " "}
_STYLES = {"+": "green", "~": "yellow", "-": "red", "!": "bold red", " ": "dim"}
_DONE = {
    Action.CREATE: "created",
    Action.CHANGE: "changed",
    Action.OWN: "changed",
    Action.REMOVE: "removed",
    Action.NOTHING: "unchanged",
}


def _instances(_type: Any, tokens: Sequence[Token]) -> int | str:
    typed = tokens[0].value.strip()
    if typed == EACH:
        return EACH
    if not (typed.isascii() and typed.isdigit() and int(typed[:12]) <= MAX_INSTANCES):
        raise ValueError(f"{typed!r} is neither a number from 0 to {MAX_INSTANCES:,} nor {EACH}")
    return int(typed)


def _artifact(_type: Any, tokens: Sequence[Token]) -> Artifact:
    typed = tokens[0].value
    if typed.endswith(ENDINGS) or ("/" in typed and Path(typed).exists()):
        raise UsageError(f"{typed} is a file: write -f {typed}, and -f before each further one")
    return artifact_of(typed)


def _files(_type: Any, tokens: Sequence[Token]) -> tuple[Path, ...]:
    for token in tokens:
        if token.value.startswith("-") and token.value != "-":
            raise ValueError(f"-f {token.value}: that is no file; where it is, write ./{token.value}")
    return tuple(Path(token.value) for token in tokens)


Named = Annotated[
    Artifact | None,
    Parameter(converter=_artifact, n_tokens=1, accepts_keys=False, help="One blueprint without a file: its artifact."),
]
FILES = Parameter(name=("--file", "-f"), negative="", show_default=False, converter=_files, allow_leading_hyphen=True)
INSTANCES = Parameter(converter=_instances, n_tokens=1, metavar="N|each")
SETS = Parameter(name="--set", negative="", show_default=False, metavar="FIELD=VALUE")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WishOptions:
    """What there is to be."""

    file: Annotated[tuple[Path, ...], FILES] = ()
    """YAML, TOML or JSON; a folder: all that is in it; -: standard input. May be repeated."""
    instances: Annotated[int | str | None, INSTANCES] = None
    """Of ARTIFACT: how many."""
    sets: Annotated[tuple[str, ...], SETS] = ()
    """Of ARTIFACT: another value of a field, as in env.LEVEL=debug; may be repeated."""
    owner: str | None = None
    """Who looks after these blueprints. [default: who did so far]"""
    prune: Annotated[bool, FLAG] = False
    """Remove what the same --owner looks after, and no file names any more."""

    @property
    def given(self) -> bool:
        """Whether any of these is."""
        return bool(self.file or self.instances is not None or self.sets or self.owner is not None or self.prune)


NO_WISH = WishOptions()


def plan(
    artifact: Named = None,
    /,
    *,
    wish: WishOptions = NO_WISH,
    out: Path | None = None,
    detailed_exitcode: Annotated[bool, FLAG] = False,
    connection: ConnectionOptions = HERE,
    json: Json = False,
) -> int:
    """Show what `cdm apply` would change, and what follows from that.

    Parameters
    ----------
    out
        Keep the plan in this file; cdm apply can write just that.
    detailed_exitcode
        Exit with 10 where anything would be changed, and with 0 where nothing would.
    """
    run = partial(_plan, wish=_wish(artifact, wish), out=out, json=json)
    anything = run_connected(connection, "cdm plan", run, level=LogLevel.ERROR)
    return WOULD_CHANGE if anything and detailed_exitcode else 0


def apply(
    artifact: Named = None,
    /,
    *,
    wish: WishOptions = NO_WISH,
    plan: Path | None = None,
    wait: Annotated[bool, FLAG] = False,
    options: WaitOptions = WAIT,
) -> int:
    """Have blueprints be what files say.

    Parameters
    ----------
    plan
        Write the plan that cdm plan kept in this file, if no blueprint was changed since.
    wait
        Wait until all that is to run serves.
    """
    check_timeout(options, wait=wait)
    if plan is not None:
        if artifact is not None or wish.given:
            raise UsageError("--plan: what is to be written is in the plan; leave all else out")
        from cdm.cli.planfile import decided_before, load  # noqa: PLC0415  # rarely needed

        decide = partial(decided_before, plan=load(plan))
    else:
        decide = partial(decided, wish=_wish(artifact, wish))
    return run_connected(options.connection, "cdm apply", partial(_apply, decide=decide, wait=wait, options=options))


def _wish(artifact: Artifact | None, options: WishOptions) -> Wish:
    if options.owner is not None and not (
        options.owner.isascii() and options.owner.isprintable() and 0 < len(options.owner.strip()) <= _LONGEST_OWNER
    ):
        raise UsageError(f"--owner {options.owner!r}: write a name of at most {_LONGEST_OWNER} ASCII characters")
    if options.prune and options.owner is None:
        raise UsageError("--prune removes what an owner looks after: write --owner NAME, too")
    if artifact is None and not options.file:
        raise UsageError("say what there is to be: -f FILE (- is standard input), or an artifact, GROUP:NAME:VERSION")
    if artifact is not None and options.file:
        raise UsageError(f"{artifact}, -f: choose one of them")
    if artifact is None and (options.instances is not None or options.sets):
        raise UsageError("--instances, --set: they are for an artifact, and files say these themselves")
    if artifact is not None and options.prune:
        raise UsageError("--prune: it is for files, which say what there is to be")
    if artifact is not None:
        return Wish((), artifact, options.instances, options.sets, options.owner)
    return Wish(read_all(options.file), owner=options.owner, prune=options.prune)


# Planning


async def _plan(connection: Connection, wish: Wish, out: Path | None, *, json: bool) -> bool:
    from cdm.cli.effects import Effect, effects_of, shortened  # noqa: PLC0415  # `apply` does without
    from cdm.manager.foresight import foresee  # noqa: PLC0415
    from cdm.store.snapshot import snapshot  # noqa: PLC0415

    found = await decided(connection, wish)
    changes = [each for each in found.changes if each.action is not Action.NOTHING]
    seen = foresee(await snapshot(connection), clock.now(), {each.artifact: each.blueprint for each in changes})
    effects: list[Effect] = effects_of(seen, changes, await not_stored(connection, changes)) if changes else []
    if out is not None:
        from cdm.cli.planfile import save  # noqa: PLC0415

        await save(connection, out, found)
    if json:
        print_json(
            {
                "changes": [_described(each) for each in found.changes],
                "effects": effects,
                "leader": seen.look.leader,
            }
        )
        return bool(changes)
    by_artifact, paint = dict[str, list[str]](), sheet().paint
    for each in shortened(effects):
        by_artifact.setdefault(each.artifact, []).append(paint(f"    {each.kind} {each.what}", _STYLES[each.kind]))
    show(_lines(found.changes, by_artifact, paint))
    if changes and seen.look.leader is None:
        remark("note: nobody leads at present; this happens once a node does")
    return bool(changes)


def _lines(changes: Sequence[Change], effects: dict[str, list[str]], paint: Paint) -> Iterator[str]:
    for change in changes:
        if change.note:
            yield f"  {paint(str(change.artifact), 'bold')}{paint(f'  {change.action}  ({change.place})')}"
            yield paint(f"    ! {change.note}", _STYLES["!"])
        elif change.action is not Action.NOTHING:
            yield from _change_lines(change, paint)
            yield from effects.pop(str(change.artifact), [])
    for artifact, lines in effects.items():
        yield paint(f"  {artifact}  (its blueprint stays as it is)", "dim")
        yield from lines
    yield paint(_sum(changes))


def _change_lines(change: Change, paint: Paint) -> Iterator[str]:
    mark = _MARKS[change.action]
    place = f"  ({change.place})" if change.place else ""
    name = paint(str(change.artifact), "bold")
    yield f"{paint(f'{mark} ', _STYLES[mark])}{name}{paint(f'  {change.action}{place}')}"
    for each in change.words:
        yield paint(f"    {each}")


def _sum(changes: Sequence[Change]) -> str:
    counts = Counter(Action.CHANGE if each.action is Action.OWN else each.action for each in changes)
    told = [
        f"{counts[action]} to {action}" for action in (Action.CREATE, Action.CHANGE, Action.REMOVE) if counts[action]
    ]
    if counts[Action.NOTHING]:
        told.append(f"{counts[Action.NOTHING]} unchanged")
    return ", ".join(told) or "nothing to do"


def _described(change: Change) -> dict[str, Any]:
    """A change as ``--json`` prints it."""
    return {
        "artifact": str(change.artifact),
        "place": change.place,
        "action": str(change.action),
        "owner": change.owner,
        "note": change.note,
        "differences": [
            {"field": each.field, "before": each.before, "after": each.after}
            if each.tellable
            else {"field": each.field}
            for each in change.differences
        ],
    }


# Applying


async def _apply(connection: Connection, decide: partial[Any], options: WaitOptions, *, wait: bool) -> int:
    found: Decided = await decide(connection)
    lacking = await not_stored(connection, found.changes)
    revisions = await write(connection, found.changes)
    if not options.json:
        paint, lines = sheet().paint, []
        for change in found.changes:
            news = [] if change.action in (Action.CREATE, Action.REMOVE) else [change.note or "; ".join(change.words)]
            words = "".join(f": {each}" for each in news if each)
            mark = _MARKS[change.action]
            style = _STYLES[mark] if mark == " " else ""
            lines.append(paint(f"{change.artifact}: {_DONE[change.action]}{words}", style))
        show(lines or ["nothing to do"])
    if lacking:
        names = [f"{artifact}{lacking[artifact]}" for artifact in sorted(lacking, key=lambda each: not lacking[each])]
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        remark(f"note: not in the store, so only agents that bring it themselves can run it: {named}")
    ends: dict[Artifact, Ended] = {}
    if wait:
        ends = await wait_for(connection, found, revisions, timeout=options.timeout, json=options.json)
    if options.json:
        told = [
            {
                **_described(change),
                "revision": revision,
                "result": str(ends[change.artifact].end) if change.artifact in ends else None,
                "reason": ends[change.artifact].reason if change.artifact in ends else "",
            }
            for change, revision in zip(found.changes, revisions, strict=True)
        ]
        print_json({"changes": told})
    return code_of(found.changes, ends)
