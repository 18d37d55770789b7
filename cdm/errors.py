"""Every error that cdm raises, in one tree; each class says when it is raised.

::

    CdmError
    ├── ModelError (ValueError)
    │   ├── InvalidArtifact
    │   ├── InvalidNodeId
    │   ├── InvalidBlueprint
    │   ├── InvalidContent
    │   ├── InvalidKey
    │   ├── InvalidManifest
    │   └── InvalidValue
    ├── WiringError (TypeError)
    ├── StoreError
    │   ├── Unreachable
    │   ├── Untrusted
    │   ├── AccessDenied
    │   ├── Unsuitable
    │   │   └── JetStreamAway
    │   ├── BucketMissing
    │   ├── ArtifactMissing
    │   ├── ContentMissing
    │   ├── ArtifactDamaged
    │   ├── NoResponders
    │   ├── Conflict
    │   ├── StoreBusy
    │   │   └── BatchRefused
    │   ├── Uncertain
    │   └── RequestRefused
    ├── NodeIdTaken
    ├── FolderTaken
    ├── AddressTaken
    ├── OutputMissing
    │   └── OutputUnknown
    ├── ServiceMissing
    ├── SliceMissing
    ├── NodeUnknown
    ├── EditRefused
    ├── SliceFailed
    └── UsageError
"""

from __future__ import annotations

from typing import TypeVar


class CdmError(Exception):
    """Base of all errors that cdm raises on purpose."""


Raised = TypeVar("Raised", bound=CdmError)


class ModelError(CdmError, ValueError):
    """Base of all errors about a value that is not valid."""


class InvalidArtifact(ModelError):
    """Raised for text that is not ``group:name:version``."""


class InvalidNodeId(ModelError):
    """Raised for text that cannot be a node id."""


class InvalidBlueprint(ModelError):
    """Raised for a blueprint that cannot be served.

    ``field`` is the offending field's name (empty: the document as a whole), ``problem`` what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class InvalidContent(ModelError):
    """Raised for a file, folder or archive that cannot be an artifact's content, and for a broken record of one."""


class InvalidKey(ModelError):
    """Raised for a bucket key that does not parse; such keys are reported and left alone."""


class InvalidManifest(ModelError):
    """Raised for an invalid manifest; the text names the field and what is wrong with it."""


class InvalidValue(ModelError):
    """Raised when the bytes under a well-formed key do not decode to the key's type of value."""


class WiringError(CdmError, TypeError):
    """Raised when a router is wired: a receiver's signature is wrong, or a message has no receiver."""


class StoreError(CdmError):
    """Base of everything that can go wrong between cdm and NATS."""


class Unreachable(StoreError):
    """Raised when no NATS server answered in time."""


class Untrusted(StoreError):
    """Raised when a server's certificate is not of a trusted CA, or not for its address."""


class AccessDenied(StoreError):
    """Raised when the server refused the credentials or the use of a subject."""


class Unsuitable(StoreError):
    """Raised when the server cannot do what the protocol needs: it is too old, or has no JetStream."""


class JetStreamAway(Unsuitable):
    """Raised when the server has no JetStream; it may be that of others, who are not connected yet, or about to end."""


class BucketMissing(StoreError):
    """Raised when a bucket is not there, and was not to be created; ``cdm init`` creates it."""


class ArtifactMissing(StoreError):
    """Raised when the store holds no artifact of that name; ``cdm artifact push`` stores one."""


class ContentMissing(StoreError):
    """Raised when the store does not hold the content of an artifact that is asked for, or not any more."""


class ArtifactDamaged(StoreError):
    """Raised when stored bytes of an artifact are missing or were changed; pushing it again repairs it."""


class NoResponders(StoreError):
    """Raised when nobody listens on the subject of a request: the server says so at once."""


class Conflict(StoreError):
    """Raised when a compare-and-set found another revision than the expected one. Nothing was stored."""


class StoreBusy(StoreError):
    """Raised when the server asks to try again, as when a guarded write is in flight. Nothing was stored."""


class BatchRefused(StoreBusy):
    """Raised when the server takes no atomic batch at present, as when others hold theirs open. Nothing was stored."""


class Uncertain(StoreError):
    """Raised when an acknowledgement did not come in time. The write may have been stored: read before deciding."""


class RequestRefused(StoreError):
    """Raised for a refusal that has no class of its own; ``code`` is the server's JetStream error code."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class NodeIdTaken(CdmError):
    """Raised when another living process runs under this node id."""


class FolderTaken(CdmError):
    """Raised when another living process uses this folder for its node."""


class AddressTaken(CdmError):
    """Raised when another process listens at the address at which this one is to."""


class OutputMissing(CdmError):
    """Raised when no node that was asked has output of an artifact."""


class OutputUnknown(OutputMissing):
    """Raised when no node that answered has output of an artifact, or none answered: those that did not may have."""


class ServiceMissing(CdmError):
    """Raised when no version of a service, or not the one that is meant, is stored, has a blueprint, or runs."""


class SliceMissing(CdmError):
    """Raised when there is no such slice."""


class NodeUnknown(CdmError):
    """Raised when there is no such node, and none of that name is remembered."""


class EditRefused(CdmError):
    """Raised for an edit that makes no sense as a service stands: nothing waits for an approval, for example."""


class UsageError(CdmError):
    """Raised for options that contradict each other, and for files that cannot be used."""


class SliceFailed(CdmError):
    """Raised when a slice cannot be loaded, started or stopped.

    ``fatal``: trying again soon does not help; ``lapsed``: since NATS heard nothing of the node for ``stop_after``.
    """

    def __init__(self, reason: str, *, fatal: bool = False, lapsed: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal
        self.lapsed = lapsed


def afresh(error: Raised) -> Raised:
    """Another error that says the same, to be raised where one is kept that is raised again and again, or by several.

    It alone gathers where it was raised: an error that is kept would gather all of it, with what the frames hold.
    """
    made = type(error).__new__(type(error), *error.args)
    made.__dict__.update(error.__dict__)
    return made


def innermost(error: BaseException) -> BaseException:
    """The error itself, or of a group, as tasks raise them, the first one in it, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
