"""The documents' commands do what is said of them, typed as they are written there, and none is forgotten.

Those that need the real ``nats`` tool are in `tests.integration.test_nats_cli`, those that need containers in
`tests.containers.test_compose`.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cdm.cli import Exit
from cdm.cli.logs import FOLLOWED_FROM
from tests.cli import (
    test_apply,
    test_copying,
    test_demo,
    test_discovery,
    test_doctor,
    test_drain,
    test_endpoints,
    test_explain,
    test_help,
    test_rebalance,
    test_releases,
    test_serve,
    test_status,
)
from tests.containers import test_compose, test_container_runtime, test_podman
from tests.docs import test_documents, test_first_steps, test_placement, test_runtimes
from tests.docs.documents import BLOCKS, INLINE, adapted, blocks, commands, inline
from tests.harness.paths import ROOT
from tests.harness.servers import NatsServer, free_port, running_cluster
from tests.harness.terminal import terminal
from tests.harness.waiting import eventually
from tests.harness.wire import Rejection, raw
from tests.integration import (
    test_auto,
    test_drain_on_stop,
    test_events,
    test_monitoring,
    test_nats_cli,
    test_outliving,
    test_outliving_random,
    test_regions,
)
from tests.proxies import test_caddy, test_configurations, test_proxies
from tests.systemd import test_systemd

pytestmark = pytest.mark.anyio

GRACE = 10
"""Seconds that a slice has to stop, where its manifest says nothing else."""
SERVE = """#!/bin/sh
echo "level $LEVEL"
while sleep 0.1; do echo tick; done
"""
"""A service that writes."""

WHEELS = "pip wheel --constraint constraints.txt --wheel-dir wheelhouse '.[http]' 'setuptools>=77'"


def test_the_checks_install_cdm_as_the_documents_say() -> None:
    """No test may count on a package index, or run all tests; the checks do both."""
    demo, tests = commands("Try it")
    assert tests in _of_the_checks(".ci/run").splitlines()
    # Each with a pip of its own.
    for file, shown in {
        ".ci/images": WHEELS,
        "Dockerfile": "python -m pip install '.[http]'",
    }.items():
        assert _without_constraints(inline(shown)).partition("pip")[2] in _of_the_checks(file)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extra,) = re.findall(r"^python -m pip install '\.\[(\w+)\]' && ", demo)
    ours = next(each for each in project["optional-dependencies"]["dev"] if each.startswith("cdm["))
    assert extra in re.findall(r"\w+", ours), "the tests install what the demo needs"


def _of_the_checks(file: str) -> str:
    """A script of the checks, without the options that keep pip quiet and small."""
    text = re.sub(" --(quiet|disable-pip-version-check|no-cache-dir)(?= )", "", (ROOT / file).read_text("utf-8"))
    return _without_constraints(text)


def _without_constraints(command: str) -> str:
    """The checks always install the versions that are known to do."""
    return command.replace(" --constraint constraints.txt", "")


async def test_a_virtual_environment(tmp_path: Path) -> None:
    # To install pip there takes many seconds.
    command = adapted(inline("python3 -m venv .venv && . .venv/bin/activate"), {"-m venv": "-m venv --without-pip"})
    async with terminal(tmp_path) as shell:
        await shell.good(command)
        assert (await shell.good("command -v python")).strip() == str(tmp_path / ".venv" / "bin" / "python")


async def test_a_server_of_ones_own(tmp_path: Path) -> None:
    # The usual port may be taken, and the usual folder somebody's.
    port, folder = free_port(), tmp_path / "store"
    async with terminal(tmp_path, NATS_URL=f"nats://127.0.0.1:{port}") as shell:
        await shell.start(f"{inline('nats-server -js')} -a 127.0.0.1 -p {port} -sd {folder}", "server")
        log = tmp_path / "server.log"
        await eventually(lambda: "Server is ready" in log.read_text(encoding="utf-8"), 15)
        assert "created" in await shell.good(inline("cdm init"))


async def test_buckets_of_an_earlier_version_are_changed_over(server: NatsServer, tmp_path: Path) -> None:
    (command,) = commands("Roll-ups are taken from the buckets")
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url) as shell:
        for name in ("blueprints", "slices", "nodes", "status"):
            await user.make(name, before=True)
        assert "slices: upgraded" in await shell.good(command)
        await user.put("blueprints", "g/a/1", b"", {"Nats-Rollup": "sub", "KV-Operation": "PURGE"})
        with pytest.raises(Rejection):
            await user.put("slices", "g/a/1", b"", {"Nats-Rollup": "sub", "KV-Operation": "PURGE"})


async def test_a_node_is_operated(tmp_path: Path) -> None:
    (init, node, status), health = commands("Installation"), inline("cdm health")
    me = socket.gethostname()
    async with running_cluster() as servers, raw(servers) as user:
        urls = ",".join(server.url for server in servers)
        # Not into the folder of whoever runs the tests.
        async with terminal(tmp_path, NATS_URL=urls, CDM_FOLDER=str(tmp_path / "state")) as shell:
            await shell.good("cdm init")  # also where there are buckets that get more replicas now
            await shell.good(init)
            made = (await user.api("STREAM.NAMES"))["streams"]
            assert len(made) == 6
            for stream in made:
                assert (await user.api(f"STREAM.INFO.{stream}"))["config"]["num_replicas"] == 3
            await shell.start(node, "node")

            async def leads() -> bool:
                shown = await shell.type(status)
                return shell.code == Exit.OK and re.search(rf"^leader {re.escape(me)} ", shown) is not None

            await eventually(leads, 30, "the node leads")
            assert [each["node"] for each in json.loads(await shell.good(f"{status} --json"))["nodes"]] == [me]

            async def healthy() -> bool:
                return f"{me} answers" in await shell.type(health)

            await eventually(healthy, 15, "the node answers")
            assert shell.code == Exit.OK
            await shell.good("kill $node; wait $node")
            await shell.type(health)
            assert shell.code == Exit.UNHEALTHY


async def test_artifacts_are_pushed_and_run_and_what_they_write_is_shown(server: NatsServer, tmp_path: Path) -> None:
    push_service, push_worker, listing, remove = commands("Artifacts")
    everything, follow, some, last, previous, service_logs = commands("Logs")
    program = tmp_path / "service" / "bin" / "serve"
    program.parent.mkdir(parents=True)
    program.write_text(SERVE, encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "worker.py").write_text("print('done')\n", encoding="utf-8")
    (tmp_path / "worker.toml").write_text('restart = { policy = "never" }\n', encoding="utf-8")
    service, worker = "org.example:slice:1.0.0", "org.example:worker:1.0.0"
    async with raw(server) as user, terminal(tmp_path, NATS_URL=server.url) as shell:
        assert f"{service}: pushed" in await shell.good(push_service)
        assert f"{worker}: pushed" in await shell.good(push_worker)
        shown = await shell.good(listing)
        assert service in shown
        assert worker in shown
        assert f"{worker}: removed" in await shell.good(remove)
        assert worker not in await shell.good(listing)
        await shell.start("cdm node --id node-1 --folder state", "node")
        await user.stubborn("blueprints", "org.example/slice/1.0.0", 2)
        first, second = f"node-1/{service} | ", f"node-1/{service}#1 | "

        async def both() -> bool:
            shown = await shell.type(everything)
            return {f"{first}level info", f"{second}level info"} <= {*shown.splitlines()}

        await eventually(both, 20, "both slices have written")

        async def told() -> bool:
            vitals = (await user.contents("nodes"))["node-1"].value["vitals"]
            return bool(vitals["stop_needs"] == GRACE and 0 < vitals["disk_free"] < vitals["disk_size"])

        await eventually(
            told, 20, "a heartbeat tells how long these slices may take to stop, and how much room there is"
        )

        async def shown_by(command: str) -> str:
            """A node that is not heard within two seconds is named, with exit code 1: a busy one is asked again."""

            async def answered() -> tuple[str, ...]:
                text = await shell.type(command)
                return (text,) if shell.code == 0 else ()

            return (await eventually(answered, 20, command))[0]

        await shell.start(follow, "follow")
        log = tmp_path / "follow.log"
        await eventually(lambda: log.read_text(encoding="utf-8").count(" | tick\n") > 2 * FOLLOWED_FROM, 20)
        await shell.good("kill $follow; wait $follow")
        shown = await shown_by(some)
        assert f"{first}level info" in shown
        assert second not in shown
        assert {json.loads(line)["ordinal"] for line in (await shown_by(last)).splitlines()} == {0, 1}
        assert await shown_by(previous) == ""  # none has ended
        await shell.start(service_logs, "all")
        of_all = tmp_path / "all.log"
        await eventually(lambda: {first, second} <= {*re.findall(r"^.*? \| ", of_all.read_text(), re.MULTILINE)}, 20)
        await shell.good("kill $all; wait $all")
        whole = await shown_by(service_logs.removesuffix(" -f"))
        assert {f"{first}level info", f"{second}level info"} <= {*whole.splitlines()}
        await shell.good("kill $node; wait $node")


async def test_a_service_is_released_by_command(server: NatsServer, tmp_path: Path) -> None:
    first, second, status, approve, back, history, scale, restart = commands("Releasing by command")
    (manifest,) = blocks("Releasing by command", "toml")
    (tmp_path / "web.py").write_text("print('hello')\n", encoding="utf-8")
    (tmp_path / "web.toml").write_text(manifest, encoding="utf-8")
    async with (
        test_releases.cluster(server, "n1", "n2") as cluster,
        terminal(tmp_path, NATS_URL=server.url, COLUMNS="200") as shell,
    ):
        assert "acme:web:1: complete" in await shell.good(first)
        await cluster.user.put("blueprints", "acme/web/1", {"instances": 4, "min_healthy": 0})
        (tmp_path / "web.py").write_text("print('hello again')\n", encoding="utf-8")
        assert "1 -> 2, 4 instances" in await shell.good(second)
        await cluster.phase("paused", 1)
        assert "waiting for an approval" in await shell.good(status)
        assert "acme:web:2: complete" in await shell.good(approve)
        assert "acme:web:2: reverted" in await shell.good(back)
        assert "rollout.abort true" in await shell.good(history)
        assert "4 -> 5 instances" in await shell.good(scale)
        assert "acme:web:1: complete" in await shell.good(restart)


async def test_the_scripts_for_those_who_change_cdm(tmp_path: Path) -> None:
    measure = inline("python -m tests.containers.measure --rounds 10")
    quick, everything, static, bench, checks = commands("Running the checks")
    async with terminal(tmp_path) as shell:
        await shell.good(f"cd {ROOT}")
        # What takes minutes, or a container engine, is only looked at; the rest would test itself.
        collected = await shell.good(f"{quick} --collect-only -q -n 0 | tail -1")
        assert re.search(r"\d+/\d+ tests collected", collected), collected
        assert everything == "pytest"
        assert re.search(r"^ +--cov=", await shell.good(f"{inline('pytest --cov')} --help"), re.MULTILINE)
        for check in static.split(" && "):
            assert check in _of_the_checks(".ci/run").splitlines()
        assert "--quick" in await shell.good(adapted(bench, {"--quick": "--help"}))
        assert checks == inline("bash .ci/run")
        await shell.good(adapted(inline("bash .ci/run"), {"bash": "bash -n"}))
        assert "--rounds" in await shell.good(f"{measure} --help")


async def test_the_example_of_permissions_is_printed(tmp_path: Path) -> None:
    async with terminal(tmp_path) as shell:
        printed = await shell.good(f"cd {ROOT}; {inline('python -m cdm.secure.example')}")
        assert printed == (ROOT / "nats" / "secure.conf").read_text(encoding="utf-8")


async def test_shells_complete_and_man_shows_what_there_is(tmp_path: Path) -> None:
    home, completion, (pages, man) = tmp_path / "home", commands("Completion"), commands("Man pages")
    for folder in (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions"):
        (home / folder).mkdir(parents=True)
    async with terminal(tmp_path, HOME=str(home)) as shell:
        for command in completion:
            await shell.good(command)
        assert sum("cdm" in path.read_text("utf-8") for path in home.rglob("*cdm*")) == len(completion)
        # Beside the cdm that is on PATH; `man` finds it by that.
        assert f"pages in {tmp_path}/share/man/man1; " in await shell.good(pages)
        assert (tmp_path / "share" / "man" / "man1" / "cdm-drain.1").is_file()
        if shutil.which("man") is not None:
            assert "--on-deadline" in await shell.good(f"unset MANPATH; {man} | cat | col -b")


Test = Callable[..., object]

BLOCKS_ARE_IN: dict[str, Test] = {
    **dict.fromkeys(test_nats_cli.SECTIONS, test_nats_cli.test_every_nats_command_of_the_documents_does_what_they_say),
    "Prometheus": test_monitoring.test_a_prometheus_finds_data_for_every_query_of_dashboard_and_alerts,
    "Try it": test_demo.test_the_demo_plays_through_and_leaves_nothing_behind,
    "First steps": test_first_steps.test_the_first_steps,
    "Installation": test_a_node_is_operated,
    "Containers": test_compose.test_up_used_and_down,
    "Artifacts": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "Getting programs out": test_copying.test_the_commands_of_the_documents,
    "Backup, and another cluster": test_copying.test_the_commands_of_the_documents,
    "Signatures": test_nats_cli.test_the_signatures_of_the_documents,
    "The manifest": test_first_steps.test_the_manifest_of_the_documents_is_one,
    "A node's process may come and go": test_outliving.test_the_next_process_goes_on_with_what_runs,
    "Slices as units of systemd": test_systemd.test_within_a_machine_that_systemd_runs,
    "Slices as containers": test_container_runtime.test_an_image_is_pushed_and_run_and_goes_on_when_the_node_is_killed,
    "Draining": test_drain.test_the_commands_of_the_documents,
    "Looking the cluster over": test_doctor.test_a_cluster_is_looked_over_and_mended,
    "Why it is there, or not": test_explain.test_the_commands_of_the_documents,
    "From a file": test_apply.test_the_commands_of_the_documents,
    "Looking at it": test_status.test_the_commands_of_the_documents,
    "Logs": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "Events": test_events.test_the_commands_of_the_documents,
    "Releasing by command": test_a_service_is_released_by_command,
    "What begins a rollout": test_nats_cli.test_a_release_of_the_documents,
    "What happens in the middle": test_nats_cli.test_a_release_of_the_documents,
    "How it goes": test_nats_cli.test_the_blueprints_of_the_documents_are_read,
    "Checks": test_nats_cli.test_the_blueprints_of_the_documents_are_read,
    "Secrets": test_nats_cli.test_the_blueprints_of_the_documents_are_read,
    **dict.fromkeys(test_placement.OUTCOMES, test_placement.test_an_example_is_placed_as_is_said),
    "Balance": test_rebalance.test_what_is_on_one_node_is_spread_by_one_command,
    "A strategy in ten lines": test_documents.test_the_strategy_example_is_installed_and_decides,
    "Users and permissions": test_nats_cli.test_the_security_of_the_documents,
    "Certificates": test_nats_cli.test_the_security_of_the_documents,
    "Taking a node away": test_nats_cli.test_the_security_of_the_documents,
    "Nodes that servers are told of": test_nats_cli.test_nodes_that_servers_are_told_of,
    "An operator of NATS that there is": test_nats_cli.test_an_operator_that_there_is,
    "Working regions": test_regions.test_two_domains_are_worked_through_one_hub,
    "Roll-ups are taken from the buckets": test_buckets_of_an_earlier_version_are_changed_over,
    "A runtime in forty lines": test_first_steps.test_the_runtime_example_serves_a_site,
    "What may be added": test_runtimes.test_every_method_of_a_runtime_is_named,
    "Testing a runtime": test_documents.test_the_documents_print_the_examples,
    "Writing an agent": test_documents.test_the_agent_example_serves_a_blueprint,
    "Using cdm as a library": test_documents.test_the_library_example_runs,
    "Serving": test_discovery.test_the_commands_of_the_documents,
    "A catalogue": test_discovery.test_the_commands_of_the_documents,
    "Envoy": test_configurations.test_envoy,
    "Traefik": test_configurations.test_traefik,
    "Caddy": test_configurations.test_caddy,
    "nginx": test_configurations.test_nginx_also_where_there_is_no_instance,
    "HAProxy": test_configurations.test_haproxy_also_where_there_is_no_instance,
    "Instances for Prometheus": test_configurations.test_prometheus,
    "Completion": test_shells_complete_and_man_shows_what_there_is,
    "Man pages": test_shells_complete_and_man_shows_what_there_is,
    "As a part of the nats tool": test_nats_cli.test_cdm_is_a_command_of_the_tool,
    "Running the checks": test_the_scripts_for_those_who_change_cdm,
}
"""By heading, a test that takes all blocks below it, and fails when there is a line more or less."""

INLINE_IS_IN: dict[str, Test] = {
    "python3 -m venv .venv && . .venv/bin/activate": test_a_virtual_environment,
    "nats-server -js": test_a_server_of_ones_own,
    "python -m pip install '.[http]'": test_the_checks_install_cdm_as_the_documents_say,
    "python -m pip install .": test_the_checks_install_cdm_as_the_documents_say,
    WHEELS: test_the_checks_install_cdm_as_the_documents_say,
    "cdm demo": test_demo.test_the_demo_plays_through_and_leaves_nothing_behind,
    **dict.fromkeys(
        ("cdm demo --page", "cdm demo --page --stay"),
        test_demo.test_the_demo_can_be_looked_at_and_stays_to_be_played_with,
    ),
    "cdm endpoints": test_endpoints.test_the_list_is_shown_once,
    "cdm artifact push": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "cdm artifact get": test_copying.test_the_commands_of_the_documents,
    "cdm artifact copy": test_copying.test_the_commands_of_the_documents,
    "cdm artifact sign": test_nats_cli.test_the_signatures_of_the_documents,
    "cdm artifact verify": test_nats_cli.test_the_signatures_of_the_documents,
    "cdm artifact ls": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "cdm artifact rm": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    **dict.fromkeys(
        ("cdm apply", "cdm apply --plan FILE", "cdm apply ARTIFACT", "cdm plan", "cdm plan --out", "cdm export"),
        test_apply.test_the_commands_of_the_documents,
    ),
    "cdm apply --json": test_apply.test_a_version_takes_over_from_a_file_as_foreseen,
    "cdm apply --wait": test_apply.test_a_version_takes_over_from_a_file_as_foreseen,
    "cdm plan --detailed-exitcode": test_apply.test_a_version_takes_over_from_a_file_as_foreseen,
    "cdm deploy": test_a_service_is_released_by_command,
    "cdm rollout status": test_a_service_is_released_by_command,
    "cdm rollout status --json": test_a_service_is_released_by_command,
    "cdm rollout approve": test_a_service_is_released_by_command,
    "cdm rollout pause": test_releases.test_a_canary_is_paused_resumed_and_approved,
    "cdm rollout resume": test_releases.test_a_canary_is_paused_resumed_and_approved,
    "cdm rollout abort": test_releases.test_a_rollout_is_aborted_and_whoever_waits_for_it_hears_so,
    "cdm rollout abort --watch": test_releases.test_a_rollout_is_aborted_and_whoever_waits_for_it_hears_so,
    "cdm rollout retry": test_releases.test_a_service_is_deployed_released_and_rolled_back,
    "cdm rollback": test_a_service_is_released_by_command,
    "cdm scale": test_a_service_is_released_by_command,
    "cdm restart": test_a_service_is_released_by_command,
    "cdm rebalance": test_rebalance.test_what_is_on_one_node_is_spread_by_one_command,
    "cdm rebalance --wait": test_rebalance.test_what_is_on_one_node_is_spread_by_one_command,
    "cdm history": test_a_service_is_released_by_command,
    "cdm events": test_events.test_the_commands_of_the_documents,
    "cdm help connection": test_help.test_options_of_the_connection_are_shown_once_and_taken_everywhere,
    "cdm help COMMAND": test_help.test_help_on_a_command_is_its_help_and_words_about_others_are_those_about_any,
    "cdm man": test_shells_complete_and_man_shows_what_there_is,
    "cdm man FOLDER": test_help.test_man_pages_of_all_commands_are_written,
    "cdm help": test_help.test_help_on_a_command_is_its_help_and_words_about_others_are_those_about_any,
    "cdm completion": test_help.test_bash_completes,
    "nats cdm": test_nats_cli.test_cdm_is_a_command_of_the_tool,
    "nats cdm status": test_nats_cli.test_cdm_is_a_command_of_the_tool,
    "docker compose --profile monitoring up --detach": test_compose.test_monitoring_is_a_profile,
    "cdm init": test_a_server_of_ones_own,
    "pytest -m podman -n 0": test_podman.test_names_of_archives_are_not_names_here,
    "pytest -m proxies -n 0": test_proxies.test_a_canary_gets_its_share_and_a_release_fails_no_request,
    "cdm endpoints --json": test_endpoints.test_the_list_is_shown_once,
    "cdm endpoints --caddy": test_caddy.test_it_follows_files_without_another_configuration,
    **dict.fromkeys(
        ("cdm endpoints --template", "cdm endpoints --template FILE --out FILE --exec COMMAND"),
        test_discovery.test_a_file_is_written_at_each_change_and_a_command_that_fails_is_tried_again,
    ),
    "cdm serve": test_serve.test_it_is_served_also_while_nats_is_not_there_and_ends_with_sigterm,
    "cdm node --http": test_serve.test_a_node_serves_it_too,
    **dict.fromkeys(("cdm init --replicas", "cdm init --replicas 3"), test_a_node_is_operated),
    "cdm init --upgrade": test_buckets_of_an_earlier_version_are_changed_over,
    "cdm node": test_a_node_is_operated,
    "cdm status": test_a_node_is_operated,
    "cdm status --json": test_a_node_is_operated,
    "cdm status ARTIFACT|SERVICE|NODE": test_status.test_the_commands_of_the_documents,
    "cdm status --region CONTEXT=PREFIX": test_regions.test_two_domains_are_worked_through_one_hub,
    "cdm nodes": test_drain.test_a_machine_is_taken_out_and_back,
    "cdm node forget": test_drain.test_a_lost_node_is_listed_with_what_it_had_until_it_is_forgotten,
    "cdm node forget node-3": test_drain.test_a_lost_node_is_listed_with_what_it_had_until_it_is_forgotten,
    "cdm node --role auto": test_auto.test_three_nodes_all_manage_at_once,
    "cdm node --drain-on-stop": test_drain_on_stop.test_what_runs_is_replaced_before_the_node_stops_also_where_it_leads,
    "cdm node leave": test_outliving.test_leaving_stops_what_a_dead_process_left,
    "cdm drain": test_drain.test_a_machine_is_taken_out_and_back,
    "cdm drain --wait": test_drain.test_a_machine_is_taken_out_and_back,
    "cdm drain --all": test_drain.test_everything_is_stopped_what_needs_others_first,
    "cdm cordon": test_drain.test_a_machine_is_taken_out_and_back,
    "cdm uncordon": test_drain.test_a_machine_is_taken_out_and_back,
    "cdm uncordon --all": test_drain.test_the_commands_of_the_documents,
    **dict.fromkeys(("cdm doctor", "cdm doctor --format nagios"), test_doctor.test_a_cluster_is_looked_over_and_mended),
    "cdm explain": test_explain.test_every_node_says_what_keeps_an_instance_out,
    "cdm health": test_a_node_is_operated,
    "cdm logs GROUP:NAME": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "cdm logs": test_artifacts_are_pushed_and_run_and_what_they_write_is_shown,
    "nats micro": test_nats_cli.test_every_nats_command_of_the_documents_does_what_they_say,
    "nats micro ls": test_nats_cli.test_every_nats_command_of_the_documents_does_what_they_say,
    "nats kv put": test_nats_cli.test_every_nats_command_of_the_documents_does_what_they_say,
    "nats kv purge": test_buckets_of_an_earlier_version_are_changed_over,
    "nats kv del": test_nats_cli.test_every_nats_command_of_the_documents_does_what_they_say,
    "nats object": test_nats_cli.test_what_is_pushed_is_an_object,
    "cdm secure": test_nats_cli.test_the_security_of_the_documents,
    "cdm secure --out site": test_nats_cli.test_the_security_of_the_documents,
    "cdm secure --readers": test_nats_cli.test_the_security_of_the_documents,
    "nats auth operator add": test_nats_cli.test_an_operator_that_there_is,
    "cdm secure --jwt": test_nats_cli.test_nodes_that_servers_are_told_of,
    "cdm secure --out site --push": test_nats_cli.test_nodes_that_servers_are_told_of,
    "cdm secure --out site --rotate system": test_nats_cli.test_nodes_that_servers_are_told_of,
    "python -m cdm.secure.example": test_the_example_of_permissions_is_printed,
    "cdm node --runtime sites": test_first_steps.test_the_runtime_example_serves_a_site,
    "cdm node --runtime container": (
        test_container_runtime.test_an_image_is_pushed_and_run_and_goes_on_when_the_node_is_killed
    ),
    "cdm node --runtime external": test_documents.test_the_agent_example_serves_a_blueprint,
    "pytest -m slow -n 2 --timeout 5000 tests/integration/test_outliving_random.py": (
        test_outliving_random.test_nothing_runs_twice_and_nothing_is_left
    ),
    "pytest --cov": test_the_scripts_for_those_who_change_cdm,
    "cdm node --runtime systemd": test_systemd.test_within_a_machine_that_systemd_runs,
    "systemctl show": test_systemd.test_within_a_machine_that_systemd_runs,
    "bash .ci/run": test_the_scripts_for_those_who_change_cdm,
    "python -m tests.containers.measure --rounds 10": test_the_scripts_for_those_who_change_cdm,
}
"""The test of each command in running text."""


@pytest.mark.quick
def test_no_command_is_forgotten() -> None:
    assert {block.section for block in BLOCKS} == BLOCKS_ARE_IN.keys()
    assert INLINE_IS_IN.keys() == INLINE
    # That test takes only lines of a kind.
    assert len(commands("Containers")) == len(test_compose.shown())
