"""The names of files, folders and links in an artifact, and which of them are allowed.

Archives come from anybody. So nothing is noted here whose path, or whose link's target, might lead outside.
"""

from __future__ import annotations

import os
from pathlib import Path

from cdm.errors import InvalidContent
from cdm.model.content import problem_with_name

MAX_UNPACKED = 16 * 1024**3
"""Most bytes that an artifact may have when it is unpacked."""
MAX_ENTRIES = 200_000
"""Most files, folders and links of an artifact."""
MAX_PATH = 1024
"""Longest path inside an artifact, in bytes."""
_HOPS = 40


class Tree:
    """Names of what an artifact consists of; paths are relative and have slashes.

    Args:
        limit: most bytes that its files may have.

    The methods that add raise `InvalidContent` for what is not allowed.
    """

    def __init__(self, limit: int = MAX_UNPACKED) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.links: dict[str, str] = {}
        self.size = 0
        """Bytes in the files."""
        self._limit = limit

    def __len__(self) -> int:
        return len(self.files) + len(self.folders) + len(self.links)

    # Making one

    def add_file(self, name: str, size: int = 0) -> None:
        """A file, of so many bytes; of a further name of a file that is there: none."""
        self._admit(name)
        self.size += size
        if size < 0 or self.size > self._limit:
            raise InvalidContent(f"unpacks to more than {self._limit:,} bytes (at {name!r})")
        self.files.add(name)

    def add_folder(self, name: str) -> None:
        """A folder; it may be there already."""
        if name not in self.folders:
            self._admit(name)
            self.folders.add(name)

    def add_link(self, name: str, target: str) -> None:
        """A symbolic link.

        It may climb only at its beginning: from there on every step goes down, or through another link of this tree.
        """
        self._admit(name)
        problem = ""
        parts = [part for part in target.split("/") if part not in ("", ".")]
        climbs = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
        if not target or target.startswith("/") or climbs > name.count("/"):
            problem = "leads outside"
        elif ".." in parts[climbs:]:
            problem = "climbs in mid-path"
        else:
            problem = next(filter(None, map(problem_with_name, parts[climbs:])), "")
        if problem or len(target) > MAX_PATH:
            raise InvalidContent(f"symbolic link {name!r} -> {target[:80]!r} {problem or 'is too long'}")
        self.links[name] = target

    def _admit(self, name: str) -> None:
        if name.startswith("/"):
            raise InvalidContent(f"{name[:80]!r} is an absolute path")
        for part in name.split("/"):
            if problem := problem_with_name(part):
                raise InvalidContent(f"{name[:80]!r}: {part[:80]!r} {problem}")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_PATH:
            raise InvalidContent(f"{name[:80]!r}… is longer than {MAX_PATH:,} bytes")
        parents = ["/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]
        for parent in parents:
            if parent in self.files or parent in self.links:
                raise InvalidContent(f"{name!r} lies below {parent!r}, which is not a folder")
        self.folders.update(parents)
        if name in self.files or name in self.links or name in self.folders:
            raise InvalidContent(f"{name!r} is there twice")
        if len(self) >= MAX_ENTRIES:
            raise InvalidContent(f"holds more than {MAX_ENTRIES:,} files")

    # Asking

    def resolve(self, path: str) -> str | None:
        """Where a path leads, past all links; None: nowhere."""
        ahead, at, hops = path.split("/")[::-1], list[str](), 0
        while ahead:
            part = ahead.pop()
            if part == "..":
                if not at:
                    return None
                at.pop()
            elif part not in ("", "."):
                target = self.links.get("/".join([*at, part]))
                if target is None:
                    at.append(part)
                elif (hops := hops + 1) > _HOPS:
                    return None
                else:
                    ahead += target.split("/")[::-1]
        return "/".join(at)

    def is_file(self, path: str) -> bool:
        """Whether there is a file, or a link that leads to one."""
        return self.resolve(path) in self.files

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder, or a link that leads to one."""
        found = self.resolve(path)
        return found == "" or found in self.folders


def scan(folder: Path) -> Tree:
    """What an unpacked artifact consists of; nothing of it is checked again."""
    tree = Tree()
    for at, folders, files in os.walk(folder):
        prefix = Path(at).relative_to(folder)
        for names, found in ((folders, tree.folders), (files, tree.files)):
            for name in names:
                path, relative = Path(at, name), (prefix / name).as_posix()
                if path.is_symlink():
                    tree.links[relative] = os.readlink(path)  # noqa: PTH115
                else:
                    found.add(relative)
                    tree.size += path.lstat().st_size if found is tree.files else 0
    return tree


def readable(name: str) -> str:
    """A name with what of it is not UTF-8 replaced: what describes an artifact is JSON, and holds nothing else."""
    return name.encode("utf-8", "surrogateescape").decode(errors="replace")


def shared(mode: int) -> int:
    """Permissions of a file on a node: whoever may enter the artifact's folder may read it, and run it if it could be
    run where it was pushed; nobody may write to it.
    """
    return 0o555 if mode & 0o100 else 0o444


def runnable(mode: int) -> int:
    """Permissions with which whoever may read a file may run it."""
    return mode | (mode & 0o444) >> 2


def name_of(native: str) -> str:
    """A name as it is kept, UTF-8 with what is not escaped, of a name as the file system's encoding has it here.

    They differ only where the locale is not of UTF-8. The bytes are the same.
    """
    return os.fsencode(native).decode("utf-8", "surrogateescape")
