"""What commands and processes import: it takes time at each start, and memory for as long as they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cdm

pytestmark = pytest.mark.quick


def test_a_command_imports_what_it_needs_and_no_more() -> None:
    code = """
import sys
import cdm.cli, cdm.cli.status
from cdm.cli.rows import show
show(["shown"])
unwanted = ("rich", "structlog", "ruamel", "nkeys", "cdm.allocation", "cdm.runtimes", "cdm.agent", "cdm.artifacts")
print([name for name in sys.modules if name.startswith(unwanted)])
from cdm.cli import apply, artifact, cordon, doctor, endpoints, events, explain, history, rebalance, rollout, secure
print([name for name in sys.modules if name.startswith("rich")])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "shown\n[]\n[]\n"


def test_a_node_that_only_runs_slices_imports_no_more_than_it_needs() -> None:
    """It does so at each start, and has it in memory for as long as it runs."""
    code = """
import sys
import cdm.cli.node_start, cdm.runtimes.process.runtime
unwanted = ("cyclopts", "rich", "structlog", "nkeys", "nacl", "nats.js.", "httpcore2", "cdm.allocation")
managing = ("cdm.manager.active", "cdm.checks", "cdm.http", "cdm.leader", "cdm.node.candidacy")
brought = ("importlib.metadata", "email", "zipfile", "tarfile", "csv")
print([name for name in sys.modules if name.startswith((*unwanted, *managing, *brought))])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "[]\n"


def test_what_reads_the_options_of_a_node_imports_nothing_of_what_runs_it(tmp_path: Path) -> None:
    """Another process does, meanwhile. This does what it does, from the fork to the end of it."""
    code = """
import os, sys
import cdm.cli.chosen
from cdm.cli import aside, run
theirs, ours = os.pipe()
words = "node --id n1 --role agent --context site --label zone=a --reserve cpu=1 --cache 1Gi --run-as same".split()
print(run(words, aside.OptionsReader(ours).tell), len(os.read(theirs, 65536)) > 0)
unwanted = ("asyncio", "ssl", "nats", "email", "cdm.agent", "cdm.artifacts", "cdm.leader", "cdm.node.node")
print([name for name in sys.modules if name.startswith(unwanted)])
"""
    context = tmp_path / "nats" / "context" / "site.json"
    context.parent.mkdir(parents=True)
    context.write_text(json.dumps({"url": "tls://nats:4222", "user": "u", "password": "p"}))
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout == "0 True\n[]\n"


def test_the_client_knows_its_version_without_what_it_asks_for_it() -> None:
    code = """
import sys
import cdm.store.connection, nats.aio.client
print("importlib.metadata" in sys.modules, "rich" in sys.modules)
import importlib.metadata
print(nats.aio.client.__version__ == importlib.metadata.version("nats-py"))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "False False\nTrue\n"


def test_what_is_left_out_of_a_library_can_be_imported_afterwards() -> None:
    code = """
import sys
from cdm.cli.log_setup import LogFormat, LogLevel, configure_logs
from cdm.log import Log
configure_logs(LogFormat.JSON, LogLevel.INFO)
Log("x").info("said")
print([name for name in sys.modules if name.startswith(("rich", "greenlet"))])
import rich
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "[]\n"


def test_what_is_left_out_of_a_library_can_be_imported_by_others_meanwhile() -> None:
    """A plugin's thread that tries it once would stay without it."""
    code = """
import importlib, sys, threading
from cdm.sparing import without
finders = len(sys.meta_path)
with without("rich", "colorsys"):
    other = threading.Thread(target=importlib.import_module, args=("rich",))
    other.start()
    other.join()
    try:
        import colorsys
    except ModuleNotFoundError as error:
        print(error.name)
print("rich" in sys.modules, len(sys.meta_path) - finders)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}, timeout=60)
    assert ran.stdout == "colorsys\nTrue 0\n"
    assert not ran.stderr


def test_a_keeper_imports_no_more_than_it_needs() -> None:
    code = """
import sys
import cdm.runtimes.keeper.keeper
unwanted = ("asyncio", "anyio", "nats", "logging", "ssl", "traceback", "pathlib", "json", "cdm.store")
print([name for name in sys.modules if name.startswith((*unwanted, "cdm.model.keys", "cdm.model.manifest"))])
"""
    environment = {"PYTHONPATH": os.pathsep.join((*sys.path, str(Path(cdm.__file__).parents[1])))}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout == "[]\n"
