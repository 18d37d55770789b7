"""Secrets: what stands for them in a blueprint, and what a slice is given instead."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cdm.errors import SliceFailed, UsageError
from cdm.model.artifact import Artifact, NodeId
from cdm.model.blueprint import Blueprint
from cdm.model.keys import SliceKey
from cdm.model.manifest import Manifest
from cdm.model.secret import SecretForm, SecretRef
from cdm.model.template import template_of
from cdm.runtimes import Secrets, Work
from cdm.runtimes.keeper.protocol import RunUser
from cdm.runtimes.process.command import prepare
from cdm.runtimes.process.given import Given, write_private

pytestmark = pytest.mark.quick

NODE = NodeId("n1")
KEY = SliceKey(NODE, Artifact("g", "one", "1"), 0)


def folder_of(path: Path, **secrets: bytes) -> Path:
    """A folder of secrets, as a node wants it."""
    path.mkdir(mode=0o700)
    for name, value in secrets.items():
        (path / name.replace("_", "-")).write_bytes(value)
    return path


def test_the_template_holds_the_reference() -> None:
    digests = {
        template_of(Blueprint.parse(raw)).digest
        for raw in (
            b'{"instances": 1, "env": {"A": {"secret": "a"}}}',
            b'{"instances": 1, "env": {"A": {"secret": "b"}}}',
            b'{"instances": 1, "env": {"A": {"secret": "a", "as": "file"}}}',
            b'{"instances": 1, "env": {"A": "a"}}',
        )
    }
    assert len(digests) == 4
    same = b'{"instances": 2, "env": {"A": {"as": "env", "secret": "a"}}}'
    assert template_of(Blueprint.parse(same)).digest in digests


class TestFolders:
    def test_is_read_anew_each_time(self, tmp_path: Path) -> None:
        secrets = Secrets(NODE, folder_of(tmp_path / "s", a=b"one\n"))
        secrets.check()
        assert secrets.read("a") == b"one\n"
        (tmp_path / "s" / "a").write_bytes(b"two")
        assert secrets.read("a") == b"two"

    def test_a_missing_secret_is_named_with_its_node(self, tmp_path: Path) -> None:
        with pytest.raises(SliceFailed, match=r"there is no secret 'db' on node n1 \(") as failed:
            Secrets(NODE, folder_of(tmp_path / "s")).read("db")
        assert not failed.value.fatal
        with pytest.raises(SliceFailed, match="secret 'db': node n1 has no secrets; start it with --secrets DIR"):
            Secrets(NODE).read("db")

    def test_one_that_is_open_to_others_is_refused(self, tmp_path: Path) -> None:
        secrets = Secrets(NODE, folder_of(tmp_path / "s", a=b"one"))
        (tmp_path / "s").chmod(0o710)
        with pytest.raises(UsageError, match=r"is open to others \(drwx--x---\); chmod 700 "):
            secrets.check()
        with pytest.raises(SliceFailed, match=r"secret 'a' on node n1 cannot be read: .*chmod 700"):
            secrets.read("a")
        Secrets(NODE, tmp_path / "s", private=False).check()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_one_of_another_user_is_refused(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "s")
        os.chown(folder, 12_345, 12_345)
        with pytest.raises(UsageError, match="is not this user's own"):
            Secrets(NODE, folder).check()

    def test_one_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file or directory"):
            Secrets(NODE, tmp_path / "s").check()
        (tmp_path / "s").touch()
        with pytest.raises(UsageError, match="Not a directory"):
            Secrets(NODE, tmp_path / "s").check()

    def test_those_of_systemd_are_taken_unless_others_are_named(self, tmp_path: Path) -> None:
        given = {"CREDENTIALS_DIRECTORY": str(tmp_path / "given")}
        assert Secrets.of(NODE, None, given).folder == tmp_path / "given"
        assert Secrets.of(NODE, tmp_path / "own", given).folder == tmp_path / "own"
        assert Secrets.of(NODE, None, {}).folder is None

    def test_what_is_no_file_is_no_secret(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "s")
        os.mkfifo(folder / "pipe")
        (folder / "folder").mkdir()
        for name in ("pipe", "folder"):
            with pytest.raises(SliceFailed, match=f"secret '{name}' on node n1 is not a file"):
                Secrets(NODE, folder).read(name)

    def test_the_credentials_of_the_node_are_no_secrets_of_slices(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "s", seed=b"SUA")
        (folder / "other").symlink_to("seed")
        for name in ("seed", "other"):
            with pytest.raises(SliceFailed, match="is a credential of node n1 itself") as failed:
                Secrets(NODE, folder, own=(tmp_path / "gone", folder / "seed")).read(name)
            assert failed.value.fatal


class TestGiving:
    def given(self, folder: Path, **wanted: SecretRef) -> Given:
        return Given(folder / "files" / "run-1", wanted, Secrets(NODE, folder / "s"))

    def test_as_a_variable(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "s", a=b"one\n", b=b"two\r\n", c=b" three \n\n")
        given = self.given(tmp_path, A=SecretRef("a"), B=SecretRef("b"), C=SecretRef("c"))
        given.write()
        assert given.environment == {"A": "one", "B": "two", "C": " three \n"}
        assert not (tmp_path / "files").exists()
        assert "one" not in repr(given)

    @pytest.mark.parametrize(
        ("value", "told"), [(b"a\0b", "contains a NUL"), (b"\xff", "is not UTF-8"), (b"x" * 40_000, "is longer than")]
    )
    def test_what_cannot_be_a_variable_is_refused_without_being_told(
        self, tmp_path: Path, value: bytes, told: str
    ) -> None:
        folder_of(tmp_path / "s", a=value)
        with pytest.raises(SliceFailed, match=f'secret \'a\' on node n1 {told}.* use "as": "file"$') as failed:
            self.given(tmp_path, A=SecretRef("a"))
        assert value.decode(errors="replace") not in str(failed.value)

    def test_as_a_file_that_goes_with_the_run(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "s", a=b"\xff\n")
        given = self.given(tmp_path, A=SecretRef("a", SecretForm.FILE), B=SecretRef("a", SecretForm.FILE))
        path = Path(given.environment["A"])
        assert given.environment["B"] == str(path)
        given.write()
        assert path.read_bytes() == b"\xff\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        given.remove()
        assert not path.parent.exists()
        given.remove()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_a_file_may_be_another_users(self, tmp_path: Path) -> None:
        write_private(tmp_path / "one", b"1", RunUser(12_345, 23_456, own=True))
        found = (tmp_path / "one").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12_345, 23_456, 0o400)
        with pytest.raises(FileExistsError):
            write_private(tmp_path / "one", b"2")

    def test_a_secret_is_no_argument_and_the_path_of_a_file_may_be_one(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "s", a=b"hush")
        (tmp_path / "main.sh").write_text("#!/bin/sh\n")
        (tmp_path / "main.sh").chmod(0o755)
        given = self.given(tmp_path, A=SecretRef("a"), F=SecretRef("a", SecretForm.FILE))
        work = Work(KEY, tmp_path, Manifest(entry="main.sh", args=("${F}",)))
        made = prepare(work, {}, {}, (), None, given)
        assert made.arguments[1:] == (given.environment["F"],)
        assert made.environment["A"] == "hush"
        work = Work(KEY, tmp_path, Manifest(entry="main.sh", args=("--password=${A}",)))
        with pytest.raises(SliceFailed, match="names A, which is a secret") as failed:
            prepare(work, {}, {}, (), None, given)
        assert failed.value.fatal
        assert "hush" not in str(failed.value)

    def test_what_a_program_wrote_of_them_is_not_told(self, tmp_path: Path) -> None:
        folder_of(tmp_path / "s", a=b"hush-hush\n", b=b"-----BEGIN\nhush-hush-hush\n-----END\n", c=b"no\n")
        given = self.given(tmp_path, A=SecretRef("a"), B=SecretRef("b", SecretForm.FILE), C=SecretRef("c"))
        assert given.hide("no: bad password hush-hush!") == "no: bad password [secret a]!"
        assert given.hide("hush-hush-hush") == "[secret b]"
