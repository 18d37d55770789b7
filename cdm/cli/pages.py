"""The commands as pages: for man, and for the ``nats`` tool. From the texts and the types that help is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cyclopts import App, Argument
from cyclopts.help import create_parameter_help_panel

from cdm.cli.commands import whole_app
from cdm.cli.commands.described import examples_in


class Typed(NamedTuple):
    """An argument or an option."""

    names: tuple[str, ...]
    """Of an option, with its dashes; of an argument the one in the usage."""
    value: str
    """What stands for its value; empty: it takes none."""
    help: str
    variable: str
    """The variable that it may come from; empty: none."""
    default: str
    choices: tuple[str, ...]
    required: bool
    several: bool
    """Whether it may be given more than once."""
    group: str


class CommandPage(NamedTuple):
    """A command, with those below it."""

    path: tuple[str, ...]
    """As it is typed, without ``cdm``."""
    title: str
    text: tuple[str, ...]
    """Paragraphs, after the title."""
    arguments: tuple[Typed, ...]
    options: tuple[Typed, ...]
    examples: tuple[str, ...]
    commands: tuple[CommandPage, ...]
    runs: bool
    """Whether it does something itself."""

    def walk(self) -> Iterator[CommandPage]:
        """It, and all below it."""
        yield self
        for each in self.commands:
            yield from each.walk()


def page(of: App | None = None, path: tuple[str, ...] = ()) -> CommandPage:
    """The page of a command, which is typed like this; that of ``cdm`` itself has all others below it."""
    of = of or whole_app()
    title, *text = of.help.split("\n\n")
    given = [*_given(of)] if of.default_command is not None else []
    below = [
        page(each, (*path, name))
        for name, each in sorted(of.resolved_commands().items())
        if not name.startswith("-") and each.show
    ]
    return CommandPage(
        path,
        title.strip(),
        tuple(each.strip() for each in text),
        tuple(each for each in given if not each.names[0].startswith("-")),
        tuple(each for each in given if each.names[0].startswith("-")),
        tuple(examples_in(str(of.help_epilogue or ""))),
        tuple(below),
        of.default_command is not None,
    )


def _given(of: App) -> Iterator[Typed]:
    found = of.assemble_argument_collection(parse_docstring=True)
    for group in found.groups:
        shown = found.filter_by(group=group, show=True)
        # The library makes of types what stands for values.
        entries = create_parameter_help_panel(group, shown, "plaintext").entries
        for argument, entry in zip(shown, entries, strict=True):
            yield Typed(
                (*entry.positive_names, *entry.positive_shorts) or (entry.positional_label or argument.name,),
                entry.metavar or "",
                " ".join((argument.parameter.help or "").split()),
                next(iter(entry.env_var or ()), ""),
                entry.default or "",
                tuple(entry.choices or ()),
                bool(entry.required),
                _several(argument),
                group.name,
            )


def _several(argument: Argument) -> bool:
    tokens, every = argument.token_count()
    return bool(every) or tokens < 0
