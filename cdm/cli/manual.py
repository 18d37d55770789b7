"""``cdm man``: a page for each command, where `man` finds it."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from cdm.cli.commands.described import EXITS
from cdm.cli.help import connection_help
from cdm.cli.options import CONNECTION_GROUP
from cdm.cli.pages import CommandPage, Typed, page
from cdm.version import VERSION


def man(folder: Path | None = None, /) -> int:
    """Have `man` show a page for each command.

    Parameters
    ----------
    folder
        Where to, which is made where it is missing. [default: share/man/man1 beside the bin where cdm is on PATH]
    """
    folder = folder or _beside()
    written = write_pages(folder)
    print(f"{len(written)} pages in {folder}; `man cdm-status` shows one of them")
    return 0


def _beside() -> Path:
    """The folder in which `man` looks for pages of what is where cdm is."""
    found = shutil.which("cdm")
    scripts = Path(sysconfig.get_path("scripts")) if found is None else Path(found).absolute().parent
    return scripts.parent / "share" / "man" / "man1"


def write_pages(folder: Path) -> list[Path]:
    """Write the pages of all commands into a folder, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for each in page().walk():
        path = folder / f"{_name(each.path)}.1"
        path.write_text(manual(each), encoding="utf-8")
        written.append(path)
    return written


def manual(of: CommandPage) -> str:
    """The page, as ``man`` reads it."""
    return "".join(f"{line}\n" for line in _lines(of))


def _lines(of: CommandPage) -> Iterator[str]:
    yield f'.TH {_quoted(_name(of.path).upper())} 1 "" {_quoted(f"cdm {VERSION}")} "cdm"'
    yield from (".SH NAME", f"{_text(_name(of.path))} \\- {_text(of.title.rstrip('.'))}", ".SH SYNOPSIS")
    yield from _synopsis(of)
    yield from (".SH DESCRIPTION", _text(of.title))
    for paragraph in of.text:
        yield from (".PP", _text(paragraph))
    own = [each for each in of.options if each.group != CONNECTION_GROUP.name]
    for title, given in (("ARGUMENTS", of.arguments), ("OPTIONS", own)):
        if given:
            yield f".SH {title}"
            yield from _described(given)
    if len(own) < len(of.options):
        yield from (".SH CONNECTION", "The options of the connection to NATS are told in \\fBcdm\\fR(1).")
    if of.commands:
        yield ".SH COMMANDS"
        for each in of.commands:
            yield from (".TP", f"\\fB{_text(_name(each.path))}\\fR(1)", _text(each.title))
    if not of.path:
        yield from (".SH CONNECTION", "Every command that connects to NATS takes these options.")
        yield from _described(page(connection_help()).options)
    if of.examples:
        yield from (".SH EXAMPLES", ".nf", *map(_text, of.examples), ".fi")
    title, _, codes = EXITS.partition(": ")
    yield from (f".SH {title.upper()}", _text(codes))
    if of.path:
        yield from (".SH SEE ALSO", f"\\fB{_text(_name(of.path[:-1]))}\\fR(1)")


def _synopsis(of: CommandPage) -> Iterator[str]:
    command = f"\\fB{_text(' '.join(('cdm', *of.path)))}\\fR"
    if of.runs:
        arguments = (f"{each.names[0]}{'...' if each.several else ''}" for each in of.arguments)
        shown = (
            f"\\fI{_text(name)}\\fR" if each.required else f"[\\fI{_text(name)}\\fR]"
            for name, each in zip(arguments, of.arguments, strict=True)
        )
        yield " ".join((command, *(["[\\fIOPTIONS\\fR]"] if of.options else []), *shown))
    if of.commands:
        yield from (*([".br"] if of.runs else []), f"{command} \\fICOMMAND\\fR")


def _described(given: Sequence[Typed]) -> Iterator[str]:
    for each in given:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in each.names)
        yield from (".TP", f"{names} \\fI{_text(each.value)}\\fR" if each.value and each.names[0][0] == "-" else names)
        more = [
            *([f"One of {', '.join(each.choices)}."] if each.choices else []),
            *([f"[default: {each.default}]"] if each.default else []),
            *([f"[variable: {each.variable}]"] if each.variable else []),
        ]
        yield _text(" ".join((each.help, *more)).strip() or "\\&")


def _name(path: tuple[str, ...]) -> str:
    return "-".join(("cdm", *path))


def _text(text: str) -> str:
    """Text on one line, in which nothing is a request or an escape."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    line = "".join(each if each.isascii() else f"\\[u{ord(each):04X}]" for each in line)
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "") + '"'
