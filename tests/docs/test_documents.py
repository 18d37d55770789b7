"""What the documents show and say is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cdm
import cdm.api
from cdm.allocation import GROUP
from cdm.allocation.strategy import SHIPPED
from cdm.model.slice import TRANSITIONS, SliceState
from tests.docs.documents import DOCUMENTS, adapted, blocks, example, inline, section
from tests.docs.schema import SCHEMAS, schema
from tests.harness import forked
from tests.harness.paths import ROOT
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

pytestmark = pytest.mark.quick

EXAMPLES = {
    "agent.py": "Writing an agent",
    "listener.py": "Using cdm as a library",
    "sites.py": "A runtime in forty lines",
    "test_sites.py": "Testing a runtime",
    "weighted.py": "A strategy in ten lines",
}
"""The examples that are printed in the documents, and below which heading."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_documents_print_the_examples(name: str) -> None:
    (shown,) = blocks(EXAMPLES[name], "python")
    assert shown == example(name).read_text(encoding="utf-8")


@pytest.mark.anyio
async def test_the_agent_example_serves_a_blueprint(server: NatsServer, tmp_path: Path) -> None:
    shutil.copy(example("agent.py"), tmp_path)
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url) as shell:
        await shell.good("cdm init")
        await shell.start(f"{inline('cdm node --runtime external')} --id n1", "node")
        await shell.start(f"python agent.py n1 {server.url}", "agent")
        await user.put("blueprints", "g/n/1", 2)
        await eventually(lambda: _states(user, ["ACTIVE", "ACTIVE"]), 20)
        await user.delete("blueprints", "g/n/1")
        await eventually(lambda: _states(user, []), 10)
        await shell.good("kill $agent; kill $node; wait $node")


async def _states(user: Raw, wanted: list[str]) -> bool:
    found = await user.contents("slices")
    return sorted(json.loads(record.data)["state"] for key, record in found.items() if key[0] != "_") == wanted


def test_the_library_example_runs() -> None:
    done = subprocess.run([sys.executable, example("listener.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "load slices/node-1/org.example:slice:1.0.0\n"


def test_the_strategy_example_is_installed_and_decides(tmp_path: Path) -> None:
    (points,) = blocks("A strategy in ten lines", "toml")
    (tmp_path / "weighted.py").write_text(example("weighted.py").read_text("utf-8"), "utf-8")
    installed = tmp_path / "weighted-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: weighted\nVersion: 1\n", encoding="utf-8")
    # What an installer makes of it.
    points = adapted(points, {f'[project.entry-points."{GROUP}"]': f"[{GROUP}]", '"': ""})
    (installed / "entry_points.txt").write_text(points, encoding="utf-8")
    code = """
from cdm.allocation.case import Case
from cdm.allocation.choice import choose
from cdm.allocation.site import Site
from cdm.allocation.sites import Sites
from cdm.allocation.installed import strategy_named
from cdm.model.artifact import Artifact, NodeId
from cdm.model.rules import Rules
sites = [Site(NodeId(n), {"node": n, **labels}) for n, labels in (("n1", {}), ("n2", {"power": "3"}))]
case = Case(Artifact("g", "n", "1"), Rules(), Sites(sites), 8, strategy=strategy_named("weighted"))
print(choose(case, 8).counts)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert ran.stdout == "{'n1': 2, 'n2': 6}\n"


def test_the_table_of_strategies_names_those_that_there_are() -> None:
    table = section("docs/strategies.md", "The strategies of cdm")
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)[1:] == list(SHIPPED)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_that_of_what_is_printed(name: str) -> None:
    assert (ROOT / "docs" / f"{name}.schema.json").read_text("utf-8") == schema(name), (
        f"python -m tests.docs.schema {name} writes it"
    )


def test_the_state_table_is_the_one_in_force() -> None:
    table = section("docs/agents.md", "Slice states")
    rows = re.findall(r"^\| ([A-Z]+) \| (.*?) \| (leader|node) \| (.*?) \|$", table, re.MULTILINE)
    shown = {state: (kind, writer, set(following.split(", "))) for state, kind, writer, following in rows}
    assert shown == {
        str(state): (
            str(row.kind),
            str(row.writer),
            {"key deleted" if each is None else str(each) for each in row.next},
        )
        for state, row in TRANSITIONS.items()
    }
    assert set(shown) == set(SliceState)


COMMANDS = (
    *(
        "init",
        "secure",
        "serve",
        "node",
        "status",
        "explain",
        "logs",
        "endpoints",
        "health",
        "doctor",
        "artifact push",
        "artifact ls",
        "artifact rm",
    ),
    *("nodes", "node forget", "node leave", "cordon", "uncordon", "drain"),
    *("apply", "plan", "export", "deploy", "rollback", "scale", "restart", "rebalance", "history", "events"),
    *(f"rollout {each}" for each in ("status", "pause", "resume", "approve", "abort", "retry")),
    *("help", "man", "completion"),
)


def _options(command: str) -> set[str]:
    shown = forked.ran("help", *command.split(), env=os.environ).stdout.decode()
    panels = "\n".join(line for line in shown.splitlines() if line.startswith("│"))
    return set(re.findall(r"--[a-z][a-z-]*", panels)) - {"--help", "--version", "--create", "--enforce-limits"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_reference_is_in_the_help_and_the_other_way_round(command: str) -> None:
    if command == "node":
        table = section("docs/reference.md", "Options of `cdm node`")
    else:
        rows = section("docs/reference.md", "Other commands").splitlines()
        start = next(at for at, row in enumerate(rows) if row.startswith(f"| `cdm {command}` |"))
        end = next((at for at, row in enumerate(rows[start + 1 :], start + 1) if row.startswith("| `")), len(rows))
        table = "\n".join("|".join(row.split("|")[2:4]) for row in rows[start:end])
    assert set(re.findall(r"--[a-z][a-z-]*", table)) == _options(command)


def test_the_options_of_the_connection_are_in_the_reference() -> None:
    told = set(re.findall(r"--[a-z][a-z-]*", section("docs/reference.md", "Connection options")))
    assert told == _options("connection")


def test_every_command_is_in_the_reference() -> None:
    shown = forked.ran("--help", env=os.environ).stdout.decode()
    listed = set(re.findall(r"^│ ([a-z]+) ", shown, re.MULTILINE))
    assert listed == {command.partition(" ")[0] for command in COMMANDS} | {"demo"}


def test_every_variable_and_default_of_the_compose_file_is_in_the_documents_and_the_other_way_round() -> None:
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+):-([^}]+)\}", compose))
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", section("docs/operations.md", "Containers"), re.MULTILINE)
    assert set(rows) == used
    mounted = re.findall(r"(\./\S+?):/", compose)
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def _anchors(text: str) -> set[str]:
    headings = re.findall(
        r"^#+ ([^\n]+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[document]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), link


def test_the_architecture_names_what_is_there() -> None:
    text = DOCUMENTS["docs/architecture.md"]
    named = set(re.findall(r"`(cdm/[\w/.]*)`", text))
    assert not {path for path in named if not (ROOT / path).exists()}
    packages = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "cdm").glob("*/__init__.py")}
    assert packages <= named


def test_the_readme_is_for_a_stranger() -> None:
    assert 100 <= DOCUMENTS["README.md"].count("\n") <= 200


def test_everything_exported_is_there_and_everything_public_is_exported() -> None:
    assert sorted(cdm.api.__all__) == sorted(set(cdm.api.__all__))
    assert all(hasattr(cdm, name) for name in cdm.api.__all__)
    public = {name for name, value in vars(cdm.api).items() if name[0] != "_" and isinstance(value, type)}
    assert public <= set(cdm.api.__all__) <= set(dir(cdm))
    assert not hasattr(cdm, "Nothing")
