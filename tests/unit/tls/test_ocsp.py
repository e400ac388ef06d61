"""Stapled OCSP responses: good ones pass, every other kind has its alert."""

from __future__ import annotations

import functools
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from tests.support.pki import DAY, NOW, Authority, KeyKind, Usage, pki, server_identity
from vmtoken.tls.errors import BadCertificateStatusResponse, CertificateRevoked
from vmtoken.tls.ocsp import verify_staple

Status = ocsp.OCSPCertStatus
CERTIFICATE = server_identity().certificate
ISSUER = pki().intermediate


def check(response: bytes, time=NOW) -> None:
    verify_staple(response, CERTIFICATE, ISSUER.certificate, time)


def response(status: Status = Status.GOOD, **options) -> bytes:
    return ISSUER.ocsp_response(CERTIFICATE, status, **options)


@functools.cache
def responder(usage: Usage = Usage.OCSP, authority: Authority = ISSUER, **options):
    return authority.issue("responder", usage=usage, **options)


@pytest.mark.parametrize("kind", [KeyKind.ECDSA_P256, KeyKind.RSA_2048, KeyKind.ED25519])
def test_a_good_response_of_the_issuer_passes(kind: KeyKind) -> None:
    authority = pki(kind).intermediate
    certificate = authority.issue().certificate
    verify_staple(authority.ocsp_response(certificate), certificate, authority.certificate, NOW)


def test_a_response_of_an_appointed_responder_passes() -> None:
    check(response(responder=responder()))


def test_a_response_without_next_update_passes_while_it_is_young() -> None:
    check(response(next_update=None))
    with pytest.raises(BadCertificateStatusResponse, match="not valid now"):
        check(response(next_update=None), time=NOW + 8 * DAY)


def test_revoked_is_revoked() -> None:
    with pytest.raises(CertificateRevoked):
        check(response(Status.REVOKED))


REFUSALS = {
    "unknown certificate": lambda: response(Status.UNKNOWN),
    "another certificate": lambda: ISSUER.ocsp_response(ISSUER.issue().certificate),
    "another issuer": lambda: response(issuer=pki(KeyKind.ECDSA_P384).intermediate.certificate),
    "expired": lambda: response(this_update=NOW - 3 * DAY, next_update=NOW - DAY),
    "of the future": lambda: response(this_update=NOW + timedelta(hours=1)),
    "signed by a stranger": lambda: response(responder=responder(authority=Authority.self_signed("x"))),
    "signed by a server": lambda: response(responder=responder(Usage.SERVER)),
    "signed by an expired responder": lambda: response(responder=responder(not_after=NOW - DAY)),
    "not successful": lambda: ocsp.OCSPResponseBuilder.build_unsuccessful(
        ocsp.OCSPResponseStatus.TRY_LATER
    ).public_bytes(Encoding.DER),
    "altered": lambda: response()[:-1] + bytes([response()[-1] ^ 1]),
    "cut": lambda: response()[:-1],
    "empty": lambda: b"",
}


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_a_response_that_proves_nothing_is_refused(case: str) -> None:
    with pytest.raises(BadCertificateStatusResponse):
        check(REFUSALS[case]())


def test_a_revocation_needs_a_signature_too() -> None:
    stranger = responder(authority=Authority.self_signed("y"))
    with pytest.raises(BadCertificateStatusResponse):
        check(response(Status.REVOKED, responder=stranger))
