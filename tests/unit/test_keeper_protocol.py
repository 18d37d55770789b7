"""What keepers and nodes of released versions say to each other keeps its names: renaming a class would change them."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from cdm.runtimes.keeper.protocol import PROTOCOL, Command, Event, decode_command, decode_event, encode

USER = {"uid": 1, "gid": 2, "own": True}
COMMANDS: list[dict[str, Any]] = [
    {
        "type": "Spawn",
        "run": "1",
        "program": "/p",
        "arguments": ["p"],
        "environment": {"A": "b"},
        "directory": "/d",
        "output": "/o",
        "limits": {"memory": 1, "cpu_seconds": 2, "open_files": 3, "processes": 4, "file_size": 5},
        "logs": {"max_bytes": 6, "files": 7},
        "line": "ready",
        "lapse": {"after": 5.0, "signal": 15, "grace": 1.0},
        "user": USER,
        "cores": 0.5,
        "signal": 2,
        "grace": 3.0,
    },
    {"type": "Stop", "run": "1", "signal": 15, "grace": 1.0},
    {"type": "Heard", "at": 1.5},
    {"type": "WhoListens", "run": "1", "port": 80},
    {"type": "Remember", "run": "1", "text": b"note"},
    {"type": "Outlive", "seconds": 3.0},
    {"type": "EndAll"},
]
"""All that a node of protocol 1 may send a keeper."""
EXITED = {"type": "Exited", "run": "1", "status": 1, "words": "exit status 1"}
SURVIVOR = {"said": True, "signal": 15, "grace": 1.0, "user": USER}
EVENTS: list[dict[str, Any]] = [
    {"type": "Hello", "limits_processes": True, "protocol": 1, "running": 2, "heard": 1.5},
    {"type": "Survivor", "run": "1", "note": b"note", "ended": EXITED, "whole": True, **SURVIVOR},
    {"type": "NotKept", "reason": "why"},
    {"type": "Started", "run": "1", "pid": 5},
    {"type": "SpawnRefused", "run": "1", "problem": "why", "fatal": True},
    {"type": "Said", "run": "1"},
    {"type": "Listener", "run": "1", "stranger": 7},
    {"type": "Losing", "run": "1", "problem": "why", "lost": 9},
    EXITED,
    {"type": "Lapsed", "run": "1"},
    {"type": "Gone", "run": "1", "last": ["a line"], "left": [7]},
]
"""All that a keeper of protocol 1 may tell a node."""


def test_the_protocol_is_the_one_that_is_written_down_here() -> None:
    """Whoever counts it up writes down what the new one has, beside what the old one had."""
    assert PROTOCOL == 1


@pytest.mark.parametrize("said", COMMANDS, ids=lambda said: said["type"])
def test_a_command_of_an_earlier_node_is_understood(said: dict[str, Any]) -> None:
    assert _said_again(decode_command(msgspec.msgpack.encode(said))) == said


@pytest.mark.parametrize("said", EVENTS, ids=lambda said: said["type"])
def test_what_an_earlier_keeper_tells_is_understood(said: dict[str, Any]) -> None:
    assert _said_again(decode_event(msgspec.msgpack.encode(said))) == said


@pytest.mark.parametrize(("union", "known"), [(Command, COMMANDS), (Event, EVENTS)], ids=["commands", "events"])
def test_nothing_is_said_that_an_earlier_version_does_not_know(union: object, known: list[dict[str, Any]]) -> None:
    """A message of another name ends the conversation, and so does a field that limits or logs did not have."""
    assert _names(union) == {said["type"] for said in known}


def _names(union: object) -> set[object]:
    flat = [each for member in get_args(union) for each in (get_args(member) or (member,))]
    return {kind.__struct_config__.tag for kind in flat}


def _said_again(understood: Command | Event) -> object:
    return msgspec.msgpack.decode(encode(understood))
