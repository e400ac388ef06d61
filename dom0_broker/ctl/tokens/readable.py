"""Certificates as tokens show them: a card may hold what nobody can read."""

from __future__ import annotations

from cryptography import x509

from vmtoken.tls.ocsp import UNPARSABLE


def readable(untrusted_certificate: bytes) -> x509.Certificate | None:
    """A certificate, DER, every field of which can be looked at; None for anything else, or none."""
    try:
        certificate = x509.load_der_x509_certificate(untrusted_certificate)
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    except UNPARSABLE:
        return None
    return certificate
