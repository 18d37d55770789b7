"""The secrets that one run of a slice is given: as variables, or in files that are there for as long as the run is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cdm.errors import SliceFailed
from cdm.model.artifact import NodeId
from cdm.model.secret import SecretForm, SecretRef
from cdm.runtimes.keeper.protocol import RunUser
from cdm.runtimes.process.files import PASSAGE, make_passage
from cdm.runtimes.secrets import Secrets

SECRETS = "secrets"
"""The folder, inside the runtime's own, that holds a folder of files for each run that was given any."""
MAX_VARIABLE = 32 * 1024
"""Most bytes of a secret that is given as a variable."""
_LEAST_HIDDEN = 4
"""Shorter lines of secrets are not looked for in what a program wrote: they are in every other word."""


def write_private(path: Path, data: bytes, owner: RunUser | None = None) -> None:
    """Make a file that its owner can read, and nobody else; None: this process's user. Raises `OSError`."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(number, "wb") as file:
        if owner is not None:
            os.fchown(number, owner.uid, owner.gid)
        file.write(data)


class Given:
    """The secrets of one run. Its text shows none of them.

    Args:
        folder: where the run's files are to be; made when it has any.
        wanted: the secrets, by variable.
        secrets: the node's.
        seen: where the program finds them; None: in that very folder.

    Raises:
        SliceFailed: one of them is missing, or cannot be given in this way.
    """

    def __init__(
        self, folder: Path, wanted: Mapping[str, SecretRef], secrets: Secrets, seen: Path | None = None
    ) -> None:
        self.environment: dict[str, str] = {}
        """The variables: secrets, and paths of files with secrets."""
        self.unfit_for_arguments: set[str] = set()
        """Variables that hold a secret itself: everybody on the machine can read a program's arguments."""
        self._folder = folder
        self._files: dict[str, bytes] = {}
        self._written = False
        """Whether the folder is there."""
        self._hidden: dict[str, str] = {}
        """What is not to be told of, and what is told instead."""
        for variable, ref in wanted.items():
            value = secrets.read(ref.name)
            if ref.form is SecretForm.FILE:
                self._files[ref.name] = value
                self.environment[variable] = str((seen or folder) / ref.name)
            else:
                self.environment[variable] = _as_variable(value, ref.name, secrets)
                self.unfit_for_arguments.add(variable)
            for line in value.decode(errors="replace").splitlines():
                if len(line.strip()) >= _LEAST_HIDDEN:
                    self._hidden[line.strip()] = f"[secret {ref.name}]"

    @classmethod
    def again(cls, folder: Path, wanted: Mapping[str, SecretRef], secrets: Secrets) -> Given:
        """Those that a run was given by an earlier process of the node, as far as they still are what they were."""
        try:
            found = cls(folder, wanted, secrets)
        except SliceFailed:  # one of them is gone by now
            found = cls(folder, {}, secrets)
        found._written = folder.exists()
        return found

    def write(self, owner: RunUser | None = None) -> None:
        """Make the files, if there are any, for this user. Raises `SliceFailed`."""
        if not self._files:
            return
        self._written = True
        try:
            make_passage(self._folder.parent)
            self._folder.mkdir(mode=0o700)
            for name, value in self._files.items():
                write_private(self._folder / name, value, owner)
            if owner is not None:  # who makes no files there
                self._folder.chmod(PASSAGE)
        except OSError as error:
            raise SliceFailed(f"the files of its secrets cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the files: nothing runs any more that has a use for them."""
        if self._written:
            shutil.rmtree(self._folder, ignore_errors=True)

    def hide(self, text: str) -> str:
        """A text that is to be told to others, without what these secrets consist of."""
        for line in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(line, self._hidden[line])
        return text


NO_SECRETS = Given(Path(), {}, Secrets(NodeId("")))
"""Those of a slice that wants none."""


def remove_all(folder: Path, but: Collection[str] = ()) -> None:
    """Remove what an earlier process of this node left; ``folder`` is the runtime's own.

    Args:
        folder: the runtime's own.
        but: runs that go on.
    """
    top = folder / SECRETS
    with suppress(OSError):
        for each in list(top.iterdir()) if but else [top]:
            if each.name not in but:
                shutil.rmtree(each)


def _as_variable(value: bytes, name: str, secrets: Secrets) -> str:
    """A secret without the end of its last line, which editors and `echo` add."""
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    problem = ""
    if len(value) > MAX_VARIABLE:
        problem = f"is longer than {MAX_VARIABLE:,} bytes"
    elif b"\0" in value:
        problem = "contains a NUL character"
    else:
        try:
            return value.decode()
        except UnicodeDecodeError:
            problem = "is not UTF-8"
    raise SliceFailed(f'secret {name!r} on node {secrets.node} {problem}, and cannot be a variable; use "as": "file"')
