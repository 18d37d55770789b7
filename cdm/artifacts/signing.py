"""Signatures of artifacts, and whom a node trusts.

What is signed is a short text in JSON: the artifact's name, what its bytes are, and the digests of these bytes and of
the manifest at their end. (Permissions are not: an archive's are among the bytes, and a lone file is run anyway.) A
signature is Ed25519's, by a key as NATS has them: `nats auth nkey gen user` makes one.

The libraries that make and verify signatures are imported by the first one: most nodes run anything, and never do.
"""

from __future__ import annotations

import base64
import hashlib
import json
from binascii import Error, crc_hqx
from pathlib import Path

from msgspec import Struct

from cdm.errors import UsageError
from cdm.model.artifact import Artifact
from cdm.model.content import Content

_PREFIXES = frozenset("ACNOU")
"""How public keys of NATS begin."""
_SAID = "cdm artifact 1"
"""So that nothing else that was ever signed with a key is taken for a signature of an artifact."""


class Signed(Struct, frozen=True):
    """What of an artifact is signed, and its signatures, which were not verified."""

    text: bytes
    signatures: dict[str, str]

    @classmethod
    def of(cls, artifact: Artifact, content: Content, manifest: bytes) -> Signed:
        """Of an artifact whose bytes are known to be these.

        Args:
            artifact: its name.
            content: what describes it.
            manifest: as it is stored at the end of its bytes; empty: it is not, and nothing can be signed.
        """
        text = {
            "signed": _SAID,
            "artifact": str(artifact),
            "form": str(content.form),
            "file": content.file,
            "sha256": content.sha256,
            "manifest": hashlib.sha256(manifest).hexdigest(),
        }
        told = json.dumps(text, sort_keys=True, separators=(",", ":")).encode()
        return cls(told, content.signatures if content.tail else {})

    def valid(self) -> list[str]:
        """The keys whose signatures are those of this artifact."""
        return [key for key, signature in sorted(self.signatures.items()) if self._is_valid(key, signature)]

    def _is_valid(self, key: str, signature: str) -> bool:
        from nacl.exceptions import BadSignatureError  # noqa: PLC0415  # see the module's docstring
        from nacl.signing import VerifyKey  # noqa: PLC0415  # likewise

        try:
            VerifyKey(_bytes_of(key)).verify(self.text, base64.b64decode(signature, validate=True))
        except (ValueError, BadSignatureError):  # also what nacl raises for bytes of another length
            return False
        return True


class SigningKey:
    """A private key, read from a file with its seed."""

    def __init__(self, path: Path) -> None:
        import nkeys  # noqa: PLC0415  # see the module's docstring

        try:
            lines = [line.strip() for line in path.read_bytes().splitlines()]
        except OSError as error:
            raise UsageError(f"key {path} cannot be read: {error.strerror}") from None
        seeds = [line for line in lines if line and not line.startswith((b"#", b"-"))]
        try:
            (seed,) = seeds
            self._pair = nkeys.from_seed(bytearray(seed))
            self.public = bytes(self._pair.public_key).decode()
        except (ValueError, nkeys.NkeysError, IndexError):
            raise UsageError(
                f"key {path} holds no seed (S…), which is what signs; one is made by `nats auth nkey gen user --output "
                "FILE`"
            ) from None

    def sign(self, signed: Signed) -> dict[str, str]:
        """A signature, by public key."""
        return {self.public: base64.b64encode(self._pair.sign(signed.text)).decode()}


class TrustedKeys(Struct, frozen=True):
    """The public keys in a file: one a line, what follows it and lines that begin with # are comments."""

    keys: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """Read the file as it is now.

        Raises:
            UsageError: it cannot be read, or a line of it is no public key. No key of such a file is trusted.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UsageError(f"--trust {path}: {error.strerror}") from None
        except ValueError:
            raise UsageError(f"--trust {path}: is not UTF-8") from None
        keys: set[str] = set()
        for number, line in enumerate(lines, 1):
            key, *_ = (*line.split(), "#")
            if key.startswith("#"):
                continue
            try:
                _bytes_of(key)
            except ValueError:
                shown = "a seed, which has no place here" if key.startswith("S") else "no public key (U…)"
                raise UsageError(f"--trust {path}: line {number} is {shown}") from None
            keys.add(key)
        return cls(frozenset(keys))

    def problem_with(self, signed: Signed) -> str:
        """Why an artifact is not trusted; empty: it is."""
        if not signed.signatures:
            return "it is not signed"
        valid = signed.valid()
        if not valid:
            return f"its signature by {', '.join(sorted(signed.signatures))[:200]} is not of this content and manifest"
        if self.keys.isdisjoint(valid):
            return f"it is signed by {', '.join(valid)[:200]}, who is not trusted"
        return ""


def _bytes_of(key: str) -> bytes:
    """The key in a public key of NATS; raises `ValueError` where it is none."""
    try:
        raw = base64.b32decode(key + "=" * (-len(key) % 8))
    except Error as error:
        raise ValueError(str(error)) from None
    if len(raw) != 35 or key[0] not in _PREFIXES or int.from_bytes(raw[33:], "little") != crc_hqx(raw[:33], 0):
        raise ValueError("not a public key")
    return raw[1:33]
