"""TLS: which certificates are trusted, and what is said where one is not."""

from __future__ import annotations

import ssl

from cdm.errors import AccessDenied, Untrusted
from cdm.store.access import Access


def tls_of(access: Access) -> ssl.SSLContext | None:
    """How to check the server's certificate, and which certificate to show; None: as the system does.

    Raises:
        AccessDenied: a file cannot be used.
    """
    if not access.encrypted:
        return None
    try:
        context = ssl.create_default_context(cafile=str(access.ca) if access.ca else None)
    except OSError as error:
        raise AccessDenied(f"{access.ca} cannot be used: {error}") from None
    if access.cert:
        try:
            # An empty password: nobody is there to be asked for one.
            context.load_cert_chain(str(access.cert), str(access.key) if access.key else None, password="")
        except OSError as error:
            raise AccessDenied(f"{access.cert} with {access.key} cannot be used: {error}") from None
    return context


def untrusted(server: str, error: ssl.SSLCertVerificationError) -> Untrusted:
    """What to say of a server, given without secrets, whose certificate failed the check."""
    return Untrusted(
        f"the certificate of {server} is not trusted ({error.verify_message.rstrip('.')}); "
        "is its CA in --tlsca (NATS_CA), and is it for this address? (--server, NATS_URL)"
    )
