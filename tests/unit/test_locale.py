"""Names of an artifact's files in a locale that is not of UTF-8: their bytes stay as they are, or it is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cdm.artifacts.packing import pack
from cdm.model.manifest import Manifest

PACK = """
import sys
from pathlib import Path
from cdm.artifacts.packing import pack
assert sys.getfilesystemencoding() == "iso8859-1"
packed = pack(Path(sys.argv[1]), Path(sys.argv[2]))
print(packed.sha256, ascii(packed.file), ascii(sorted(packed.tree.files)))
"""
UNPACK = """
import sys
from pathlib import Path
from cdm.artifacts.packing import pack
from cdm.artifacts.unpacking import unpack
from cdm.errors import InvalidContent
from cdm.model.manifest import Manifest
packed = pack(Path(sys.argv[1]), Path(sys.argv[2]))
try:
    unpack(packed.path, packed.content(Manifest()), Path(sys.argv[2], "into"))
except InvalidContent as error:
    print(ascii(str(error)))
"""


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in such a locale."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/en_US").exists():
        pytest.skip("no locale can be made here")
    folder = tmp_path_factory.mktemp("locale")
    made = folder / "en_US.ISO-8859-1"
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", made], check=True, capture_output=True)
    return {**os.environ, "LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}


def told(program: str, source: Path, folder: Path, environment: dict[str, str]) -> str:
    folder.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", program, source, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def folder_of(path: Path) -> Path:
    (path / "ä").mkdir(parents=True)
    (path / "ä" / "日本").write_text("x")
    (path / os.fsdecode(b"\xff")).write_text("y")
    (path / "zu").symlink_to("ä/日本")
    return path


def test_a_folder_has_the_same_digest_in_every_locale(tmp_path: Path, latin: dict[str, str]) -> None:
    source = folder_of(tmp_path / "source")
    here = pack(source, tmp_path)
    expected = f"{here.sha256} {here.file!r} {sorted(here.tree.files)!a}"
    assert told(PACK, source, tmp_path / "other", latin) == expected


def test_so_has_an_archive_and_a_file_its_name(tmp_path: Path, latin: dict[str, str]) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        archive = tmp_path / f"made-{form}.tar.gz"
        with tarfile.open(archive, "w:gz", format=form) as made:
            made.add(folder_of(tmp_path / f"source-{form}"), "")
        here = pack(archive, tmp_path)
        expected = f"{here.sha256} {here.file!r} {sorted(here.tree.files)!a}"
        assert told(PACK, archive, tmp_path / f"other-{form}", latin) == expected
    lone = tmp_path / "日本.py"
    lone.write_text("print()")
    here = pack(lone, tmp_path)
    expected = f"{here.sha256} {here.file!a} {[here.file]!a}"
    assert told(PACK, lone, tmp_path / "lone", latin) == expected
    assert here.content(Manifest()).file == "日本.py"


def test_a_node_that_could_not_write_the_name_says_so(tmp_path: Path, latin: dict[str, str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ä").write_text("x")
    refused = told(UNPACK, source, tmp_path / "node", latin)
    assert "cannot be written in this node" in refused
    assert "LC_ALL=C.UTF-8" in refused
    assert list((tmp_path / "node" / "into").iterdir()) == []
    (source / "ä").rename(source / "a")
    assert told(UNPACK, source, tmp_path / "other", latin) == ""
