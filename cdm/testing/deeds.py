"""What the tests have slices do, and a script that does it."""

from __future__ import annotations

from enum import StrEnum, unique
from pathlib import Path

from msgspec.structs import replace

from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.runtimes import Work

FIRST_WORDS = "first words"
"""The line that `Deed.OBEY` writes to its standard output before it serves."""
LAST_WORDS = "last words"
"""The line that it writes to its standard error before it ends."""
STATUS = 47
"""The exit status with which programs end."""


@unique
class Deed(StrEnum):
    """What a slice does in a test."""

    SERVE = "serve"
    """It accepts connections on its port until it is stopped."""
    OBEY = "obey"
    """It writes `FIRST_WORDS`, and serves. A connection may send a line: `tell NAME` is answered with the value of this
    variable, `say WORD` writes the word; after `end` it writes `LAST_WORDS`, and ends with `STATUS`."""
    LINGER = "linger"
    """It serves, and ignores the stop signal."""
    DALLY = "dally"
    """It runs, and never accepts connections."""
    BREAK = "break"
    """It ends with `STATUS` before it serves."""
    FAIL = "fail"
    """It cannot even be started; trying again is no use."""


SCRIPT = f"""
import os, signal, socket, sys, time

deed = sys.argv[1]
if deed == "break":
    sys.exit({STATUS})
signal.signal(signal.SIGTERM, signal.SIG_IGN if deed == "linger" else signal.SIG_DFL)
if deed == "dally":
    time.sleep(600)
if deed == "obey":
    print({FIRST_WORDS!r}, flush=True)
server = socket.create_server((os.environ.get("CDM_HOST", "127.0.0.1"), int(os.environ["CDM_PORT"])))
while True:
    connection, _ = server.accept()
    with connection:
        try:
            words = connection.makefile().readline().split()
            if words[:1] == ["tell"]:
                connection.sendall(os.environ.get(words[1], "").encode())
            elif words[:1] == ["say"]:
                print(words[1], flush=True)
            elif words == ["end"]:
                print({LAST_WORDS!r}, file=sys.stderr, flush=True)
                os._exit({STATUS})
        except OSError:
            pass
"""


def script(folder: Path, deed: Deed, key: SliceKey, manifest: Manifest, **fields: object) -> Work:
    """A Python script that does it, for runtimes that run programs of the artifact's folder as `process` does.

    Args:
        folder: where the artifact's folder is made.
        deed: what the script does.
        key: the slice's.
        manifest: what the test asks for; `entry` and `args` come on top.
        fields: of the work.
    """
    content = folder / "content"
    if not content.exists():
        content.mkdir(mode=0o755)
        (content / "main.py").write_text(SCRIPT, encoding="utf-8")
    entry = "nothing" if deed is Deed.FAIL else "main.py"
    return Work(key, content, replace(manifest, entry=entry, args=(deed,)), **fields)  # type: ignore[arg-type]
