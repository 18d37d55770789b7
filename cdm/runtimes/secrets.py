"""The secrets of a node: files in a folder, each named after its secret, and read whenever a slice starts.

What is read here is given to slices and to nobody else: it is in no log, in no error and in no bucket.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cdm.errors import SliceFailed, UsageError
from cdm.model.artifact import NodeId

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""The variable that names the folder of credentials that systemd gives a service."""
MAX_BYTES = 1024 * 1024
"""Most bytes of a secret; systemd gives a service no more either."""
_OTHERS = 0o077


class Secrets:
    """A node's secrets.

    Args:
        node: the node, for people.
        folder: where they are; None: it has none.
        private: whether to insist that nobody but this process's user has access to the folder.
        own: the node's own credentials, which may be in the same folder, and which no slice is given.
    """

    def __init__(
        self, node: NodeId, folder: Path | None = None, *, private: bool = True, own: Collection[Path] = ()
    ) -> None:
        self.node = node
        self.folder = folder
        self._private = private
        self._own = own

    @classmethod
    def of(
        cls, node: NodeId, chosen: Path | None, environment: Mapping[str, str], own: Collection[Path] = ()
    ) -> Secrets:
        """Those in the folder that was chosen, else the credentials that systemd gave, whose folder is its own care."""
        if chosen is not None:
            return cls(node, chosen.absolute(), own=own)
        given = environment.get(CREDENTIALS)
        return cls(node, Path(given) if given else None, private=False, own=own)

    def check(self) -> None:
        """Make sure that the folder can be used; raises `UsageError`."""
        if self.folder is not None:
            try:
                with self._opened():
                    pass
            except OSError as error:
                raise UsageError(f"--secrets {self.folder}: {error.strerror}") from None

    def read(self, name: str) -> bytes:
        """A secret as it is now. Raises `SliceFailed`, which names the secret and the node."""
        if self.folder is None:
            raise SliceFailed(f"secret {name!r}: node {self.node} has no secrets; start it with --secrets DIR")
        try:
            with self._opened() as folder:
                # Not held up by a pipe that somebody put there.
                number = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
                try:
                    self._judge(name, os.fstat(number))
                    value = os.pread(number, MAX_BYTES + 1, 0)
                finally:
                    os.close(number)
        except FileNotFoundError:
            raise SliceFailed(f"there is no secret {name!r} on node {self.node} ({self.folder})") from None
        except (OSError, UsageError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise SliceFailed(f"secret {name!r} on node {self.node} cannot be read: {problem}") from None
        if len(value) > MAX_BYTES:
            raise SliceFailed(f"secret {name!r} on node {self.node} is longer than {MAX_BYTES:,} bytes")
        return value

    def _judge(self, name: str, found: os.stat_result) -> None:
        if any(_is(path, found) for path in self._own):
            raise SliceFailed(f"secret {name!r} is a credential of node {self.node} itself", fatal=True)
        if not stat.S_ISREG(found.st_mode):
            raise SliceFailed(f"secret {name!r} on node {self.node} is not a file ({self.folder})")

    @contextmanager
    def _opened(self) -> Iterator[int]:
        assert self.folder is not None
        number = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.fstat(number)
            if self._private and found.st_uid != os.geteuid():
                raise UsageError(f"--secrets {self.folder}: is not this user's own (uid {os.geteuid()}); chown it")
            if self._private and found.st_mode & _OTHERS:
                told = f"is open to others ({stat.filemode(found.st_mode)})"
                raise UsageError(f"--secrets {self.folder}: {told}; chmod 700 {self.folder}")
            yield number
        finally:
            os.close(number)


def _is(path: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), found)
    except OSError:
        return False
