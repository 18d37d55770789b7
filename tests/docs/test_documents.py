"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cdm
import cdm.api
from cdm.model.slice import TRANSITIONS, SliceState
from tests.docs.readme import README, blocks, inline
from tests.harness.paths import ROOT
from tests.harness.servers import NatsServer
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, raw

AGENT, LIBRARY = blocks("Writing an agent", "python")


@pytest.mark.anyio
async def test_the_agent_of_the_readme_serves_a_blueprint(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT, encoding="utf-8")
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


def test_the_library_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(LIBRARY, {"__name__": "readme"})
    assert capsys.readouterr().out == "load slices/node-1/org.example:slice:1.0.0\n"


def test_the_state_table_of_the_readme_is_the_one_in_force() -> None:
    rows = re.findall(r"^\| ([A-Z]+) \| (.*?) \| (leader|node) \| (.*?) \|$", README, re.MULTILINE)
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


def test_every_option_of_the_readme_is_in_the_help_and_the_other_way_round() -> None:
    shown = subprocess.run([sys.executable, "-m", "cdm", "node", "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"--[a-z][a-z-]*", shown.stdout)) - {"--help", "--version", "--create"}
    table = README[README.index("### Options of") : README.index("Exit codes of all commands")]
    assert set(re.findall(r"--[a-z][a-z-]*", table)) == options


def test_every_variable_and_default_of_the_compose_file_is_in_the_readme_and_the_other_way_round() -> None:
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+):-([^}]+)\}", compose))
    section = README[README.index("### In containers") : README.index("### Blueprints")]
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", section, re.MULTILINE)
    assert set(rows) == used


def test_everything_exported_is_there_and_everything_public_is_exported() -> None:
    assert sorted(cdm.api.__all__) == sorted(set(cdm.api.__all__))
    assert all(hasattr(cdm, name) for name in cdm.api.__all__)
    public = {name for name, value in vars(cdm.api).items() if name[0] != "_" and isinstance(value, type)}
    assert public <= set(cdm.api.__all__) <= set(dir(cdm))
    assert not hasattr(cdm, "Nothing")
