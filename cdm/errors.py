"""Every error that cdm raises, in one tree.

::

    CdmError
    ├── ModelError (ValueError)     a value that cannot exist was asked for
    │   ├── InvalidArtifact         not group:name:version
    │   ├── InvalidNodeId           not a usable node id
    │   ├── InvalidBlueprint        a blueprint that cannot be served; names the field
    │   ├── InvalidContent          a file, folder or archive that cannot be an artifact's content
    │   ├── InvalidKey              a bucket key that is not one of ours
    │   ├── InvalidManifest         a manifest that cannot be obeyed; names the field
    │   └── InvalidValue            the bytes under a good key do not hold its type
    ├── WiringError (TypeError)     a receiver or a message without its counterpart
    ├── StoreError                  NATS said no, or said nothing
    │   ├── Unreachable             no server answered
    │   ├── Untrusted               a server's certificate cannot be trusted
    │   ├── AccessDenied            the server refused the credentials or a subject
    │   ├── Unsuitable              the server is too old, or has no JetStream
    │   ├── BucketMissing           a bucket is not there, and was not to be created
    │   ├── ArtifactMissing         no such artifact was pushed
    │   ├── ArtifactDamaged         an artifact's stored bytes are not those that were pushed
    │   ├── NoResponders            nobody listens on the subject
    │   ├── Conflict                compare-and-set lost: somebody wrote in between
    │   ├── StoreBusy               the server asks to try again; nothing was stored
    │   ├── Uncertain               no answer in time; stored or not, nobody knows yet
    │   └── RequestRefused          any other refusal, in the server's words
    ├── NodeIdTaken                 another living process holds this node id
    ├── FolderTaken                 another living process holds this node's folder
    ├── OutputMissing               nobody has the output that was asked for
    ├── SliceFailed                 a slice could not be loaded, started or stopped
    └── UsageError                  options that contradict each other
"""

from __future__ import annotations


class CdmError(Exception):
    """Base of all errors that cdm raises on purpose."""


class ModelError(CdmError, ValueError):
    """A value that cannot exist was asked for."""


class InvalidArtifact(ModelError):
    """Raised where text is no ``group:name:version``."""


class InvalidNodeId(ModelError):
    """Raised where text cannot be a node id."""


class InvalidBlueprint(ModelError):
    """Raised for a blueprint that cannot be served.

    ``field`` is the offending field's name (empty: the document as a whole), ``problem`` what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class InvalidContent(ModelError):
    """Raised for a file, folder or archive that cannot be an artifact's content, and for a record of none."""


class InvalidKey(ModelError):
    """Raised for a bucket key that does not parse; such keys are reported and left alone."""


class InvalidManifest(ModelError):
    """Raised for a manifest that cannot be obeyed; the text names the field and what is wrong with it."""


class InvalidValue(ModelError):
    """Raised where the bytes under a well-formed key do not hold the key's value type."""


class WiringError(CdmError, TypeError):
    """Raised when a router is wired: a receiver's signature is wrong, or a message has no receiver."""


class StoreError(CdmError):
    """Base of everything that can go wrong between cdm and NATS."""


class Unreachable(StoreError):
    """Raised when no NATS server answered in time."""


class Untrusted(StoreError):
    """Raised when a server answered whose certificate is of no CA that is trusted, or not for its address."""


class AccessDenied(StoreError):
    """Raised when the server refused the credentials or the use of a subject."""


class Unsuitable(StoreError):
    """Raised when the server cannot do what the protocol needs."""


class BucketMissing(StoreError):
    """Raised when a bucket is not there; ``cdm init`` creates it."""


class ArtifactMissing(StoreError):
    """Raised when the store holds no artifact of that name; ``cdm artifact push`` brings it there."""


class ArtifactDamaged(StoreError):
    """Raised when an artifact's stored bytes are not, or not all, there any more; pushing it anew mends it."""


class NoResponders(StoreError):
    """Raised when nobody listens on the subject of a request: at once, and for certain."""


class Conflict(StoreError):
    """Raised when a compare-and-set found another revision than the expected one. Nothing was stored."""


class StoreBusy(StoreError):
    """Raised when the server asks to try again (a guarded write was in flight). Nothing was stored."""


class Uncertain(StoreError):
    """Raised when an acknowledgement did not come in time. The write may have been stored: read before deciding."""


class RequestRefused(StoreError):
    """Raised for a refusal that has no class of its own; ``code`` is the server's JetStream error code."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class NodeIdTaken(CdmError):
    """Raised when a living process already runs under this node id."""


class FolderTaken(CdmError):
    """Raised when a living process has this folder for its node's."""


class OutputMissing(CdmError):
    """Raised when no node that was asked has output of an artifact, or none answered."""


class UsageError(CdmError):
    """Raised for options that cannot be used together or files that cannot be read."""


class SliceFailed(CdmError):
    """Raised by a runtime, or on the way to it; ``fatal``: trying again soon cannot mend it."""

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal
