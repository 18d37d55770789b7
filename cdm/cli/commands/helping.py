"""The texts of the commands about the command line itself."""

from __future__ import annotations

from cdm.cli.commands.described import Described

HELPING = (
    Described(
        "help",
        "cdm.cli.help:help_on",
        "Show what a command does, or the options of the connection.\n\n"
        "`cdm help connection` shows the options that every command that connects takes, and their variables.",
        ("cdm help rollout abort", "cdm help connection"),
    ),
    Described(
        "man",
        "cdm.cli.manual:man",
        "Have `man` show a page for each command, as `man cdm-status`.\n\n"
        "The pages are of this version: have them written anew after an upgrade.",
        ("cdm man", "sudo cdm man /usr/local/share/man/man1"),
    ),
    Described(
        "completion",
        "cdm.cli.completion:completion",
        "Print a script that has a shell complete commands and options.\n\n"
        "Written for the commands of this version: have it written anew after an upgrade.",
        (
            "cdm completion bash > ~/.local/share/bash-completion/completions/cdm",
            "cdm completion zsh > ~/.zfunc/_cdm",
            "cdm completion fish > ~/.config/fish/completions/cdm.fish",
        ),
    ),
)

INTROSPECTING = Described(
    "--fisk-introspect",
    "cdm.cli.plugin:introspect",
    "Print the commands as JSON, for `nats plugins register`.",
    ("cdm --fisk-introspect",),
)
"""Asked by the ``nats`` tool, and no command for people."""
