"""What is said of the commands, in every form that it is said in: helps, man pages, completion, the ``nats`` tool."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App

from cdm.cli import Exit
from cdm.cli.commands import whole_app
from cdm.cli.pages import CommandPage, page
from tests.harness import forked
from tests.harness.processes import environment

pytestmark = pytest.mark.quick


def _paths(of: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All commands, as `page` finds them, but in no time: each process of a run of the tests collects them."""
    yield path
    for name, each in sorted(of.resolved_commands().items()):
        if not name.startswith("-") and each.show:
            yield from _paths(each, (*path, name))


@cache
def pages() -> dict[tuple[str, ...], CommandPage]:
    return {each.path: each for each in page().walk()}


PATHS = tuple(_paths(whole_app()))


def ran(*arguments: str, **variables: str) -> str:
    done = forked.ran(*arguments, env={**environment(), "COLUMNS": "100", **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_every_command_has_a_page() -> None:
    assert tuple(pages()) == PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(("cdm", *path)))
def test_every_help_has_an_example_and_what_it_shows_can_be_typed(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pages()[path]
    for name in environment().keys() ^ os.environ.keys():
        monkeypatch.delenv(name, raising=False)
    assert shown.examples
    assert shown.title.endswith(".")
    for example in shown.examples:
        for line in re.split(r" (?:\|\|?|>) ", example):
            words = shlex.split(line)
            if words[0] == "cdm":
                whole_app().parse_args(words[1:], exit_on_error=False, print_error=False)
    own = [each for each in shown.examples if shlex.split(each)[1 : 1 + len(shown.path)] == list(shown.path)]
    assert own or not shown.runs


def test_options_of_the_connection_are_shown_once_and_taken_everywhere() -> None:
    assert "--creds" not in ran("status", "--help")
    assert "cdm help connection" in ran("status", "--help")
    assert "--creds" in ran("help", "connection")
    for each in pages().values():
        known = {name for option in each.options for name in option.names}
        assert (
            {"--server", "--creds"} <= known
            or not each.runs
            or each.path[0] in ("secure", "demo", "help", "man", "completion")
        ), each.path


def test_help_on_a_command_is_its_help_and_words_about_others_are_those_about_any() -> None:
    assert ran("help", "rollout", "abort") == ran("rollout", "abort", "--help")
    for words in (("stauts",), ("rollout", "abrot"), ("init", "x")):
        refused = [forked.ran(*each, env=environment()) for each in (words, ("help", *words))]
        assert refused[0].returncode == refused[1].returncode == Exit.USAGE
        assert refused[0].stderr == refused[1].stderr


def test_help_for_models_has_no_boxes() -> None:
    for words, told in (("drain --help", "--on-deadline CHOICE"), ("help connection", "--inbox-prefix STR")):
        done = subprocess.run(
            [sys.executable, "-m", "cdm", *words.split()],
            capture_output=True,
            text=True,
            check=True,
            env={**environment(), "LLMFORMAT": "1", "FORCE_COLOR": "1"},
        )
        assert told in done.stdout
        assert not re.search("[─-╿\x1b]", done.stdout)


def test_man_pages_of_all_commands_are_written(tmp_path: Path) -> None:
    shown = ran("man", str(tmp_path / "man1"))
    written = [str(each) for each in (tmp_path / "man1").iterdir()]
    assert {Path(each).name for each in written} == {f"{'-'.join(('cdm', *each.path))}.1" for each in pages().values()}
    assert shown.startswith(f"{len(written)} pages in {tmp_path / 'man1'}; ")
    text = (tmp_path / "man1" / "cdm-drain.1").read_text("ascii")
    assert "\\fB\\-\\-on\\-deadline\\fR \\fICHOICE\\fR" in text
    assert "\\-\\-inbox\\-prefix" in (tmp_path / "man1" / "cdm.1").read_text("ascii")
    if (groff := shutil.which("groff")) is not None:
        checked = subprocess.run(
            [groff, "-man", "-ww", "-z", "-Tutf8", *written], capture_output=True, text=True, check=True
        )
        assert checked.stderr == ""


BASH = """
source {script}
COMP_WORDS=({words} "") COMP_CWORD={number}
COMP_WORDS[{number}]='{last}'
_cdm
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        (["cdm"], "stat", "status"),
        (["cdm", "rollout"], "a", "approve abort"),
        (["cdm", "drain", "n1", "--on-deadline"], "", "wait force"),
        (["cdm", "status"], "--ser", "--server"),
        (["cdm", "completion"], "", "bash zsh fish"),
    ],
)
def test_bash_completes(words: list[str], last: str, offered: str, script: Path) -> None:
    code = BASH.format(script=script, words=" ".join(words), number=len(words), last=last)
    shown = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert (shown.stdout.strip(), shown.stderr) == (offered, "")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "cdm.bash"
    path.write_text(ran("completion", "bash"), encoding="utf-8")
    return path


def test_fish_and_zsh_complete_where_they_are(tmp_path: Path) -> None:
    for shell in ("fish", "zsh"):
        (tmp_path / shell).write_text(ran("completion", shell), encoding="utf-8")
    if (fish := shutil.which("fish")) is not None:
        code = f"source {tmp_path}/fish; complete -C 'cdm rollout ab'"
        shown = subprocess.run([fish, "-N", "-c", code], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("abort\t")
    if (zsh := shutil.which("zsh")) is not None:
        code = f"autoload -U compinit; compinit -u -D; source {tmp_path}/zsh; print $_comps[cdm]"
        shown = subprocess.run([zsh, "-f", "-c", code], capture_output=True, text=True, check=True)
        assert shown.stdout == "_cyclopts_cdm\n"


def test_the_nats_tool_is_told_of_every_command_but_the_node() -> None:
    told = json.loads(ran("--fisk-introspect"))
    assert told["name"] == "cdm"
    found = {each["name"]: each for each in told["commands"]}
    assert [each["name"] for each in found["node"]["commands"]] == ["forget", "leave"]
    flags = {each["name"]: each for each in found["drain"]["flags"]}
    assert flags["on-deadline"]["boolean"] is False
    assert flags["wait"]["boolean"] is True
    assert found["drain"]["args"] == [{"name": "nodes", "help": "Their names.", "required": False, "cumulative": True}]


def test_who_reads_no_further_is_told_nothing(tmp_path: Path) -> None:
    for words in (["--help"], ["completion", "bash"]):
        reading, writing = os.pipe()
        os.close(reading)
        with (tmp_path / "errors").open("w+b") as errors:
            child = forked.started(*words, env=environment(), stdout=writing, stderr=errors)
            os.close(writing)
            assert child.wait(60) == 128 + signal.SIGPIPE
            errors.seek(0)
            assert errors.read() == b""
