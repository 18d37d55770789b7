"""What nats-py raises, as errors of cdm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cdm.errors import AccessDenied, NoResponders, RequestRefused, Uncertain, Unreachable
from cdm.store.library import nats

_REFUSED = (
    nats.errors.BadHeaderError,
    nats.errors.BadSubjectError,
    nats.errors.BadSubscriptionError,
    nats.errors.MaxPayloadError,
)
"""What the client refuses to send on any connection."""


@contextmanager
def translated() -> Iterator[None]:
    """The client's errors, raised in the ``with`` block, as cdm's.

    Raises:
        NoResponders: nobody listens on the subject.
        Uncertain: no answer came in time.
        AccessDenied: the server refused the credentials.
        RequestRefused: the message could be sent on no connection.
        Unreachable: anything else, which is the connection's.
    """
    try:
        yield
    except nats.errors.NoRespondersError:
        raise NoResponders("nobody listens there") from None
    except (nats.errors.TimeoutError, TimeoutError):
        raise Uncertain("no answer in time") from None
    except nats.errors.AuthorizationError as error:
        raise AccessDenied(str(error)) from None
    except _REFUSED as error:
        raise RequestRefused(str(error)) from error
    except (nats.errors.Error, OSError) as error:
        raise Unreachable(str(error) or type(error).__name__) from error
