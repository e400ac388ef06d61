"""OCSP responses that a server staples to its certificates (RFC 6960, RFC 6066 section 8)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmtoken.tls.errors import BadCertificateStatusResponse, CertificateRevoked

UNPARSABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What `cryptography` raises for the fields of a certificate, when they are looked at, that do not parse."""

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far the responder's clock may be ahead of ours."""

MAX_AGE_WITHOUT_NEXT_UPDATE: Final = timedelta(days=7)
"""RFC 6960 section 2.4 sets no bound when nextUpdate is missing."""


def verify_staple(
    response: bytes, certificate: x509.Certificate, issuer: x509.Certificate, time: datetime
) -> None:
    """Check what the stapled response says about `certificate`.

    Raises `CertificateRevoked` if a valid response says so, `BadCertificateStatusResponse` if the
    response does not parse, is about another certificate, is stale, or is not signed by the
    issuer or a responder that the issuer appointed.
    """
    try:
        status = _verified_status(response, certificate, issuer, time)
    except UNPARSABLE as error:
        raise BadCertificateStatusResponse("the stapled OCSP response does not parse") from error
    match status:
        case ocsp.OCSPCertStatus.GOOD:
            return
        case ocsp.OCSPCertStatus.REVOKED:
            raise CertificateRevoked(
                "the stapled OCSP response says that the certificate is revoked; the server's operator "
                "has to replace it"
            )
        case _:
            raise BadCertificateStatusResponse("the OCSP responder does not know the certificate")


def _verified_status(
    response: bytes, certificate: x509.Certificate, issuer: x509.Certificate, time: datetime
) -> ocsp.OCSPCertStatus:
    parsed = ocsp.load_der_ocsp_response(response)
    if parsed.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        name = parsed.response_status.name
        raise BadCertificateStatusResponse(f"the stapled OCSP response holds no answer: {name}")
    single = _single_response(parsed, certificate, issuer)
    _check_times(single, time)
    _check_signature(parsed, issuer, time)
    return single.certificate_status


def _single_response(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse:
    for single in response.responses:
        if single.serial_number == certificate.serial_number and _names_issuer(single, certificate, issuer):
            return single
    raise BadCertificateStatusResponse("the stapled OCSP response is about another certificate")


def _names_issuer(
    single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    """Whether the hashes are those of a request for this certificate (RFC 6960 section 4.1.1)."""
    try:
        request = (
            ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, single.hash_algorithm).build()
        )
    except UNPARSABLE:
        return False
    return (
        single.issuer_name_hash == request.issuer_name_hash
        and single.issuer_key_hash == request.issuer_key_hash
    )


def _check_times(single: ocsp.OCSPSingleResponse, time: datetime) -> None:
    expiry = single.next_update_utc or single.this_update_utc + MAX_AGE_WITHOUT_NEXT_UPDATE
    if not single.this_update_utc - CLOCK_SKEW <= time <= expiry:
        raise BadCertificateStatusResponse("the stapled OCSP response is not valid now")


def _check_signature(response: ocsp.OCSPResponse, issuer: x509.Certificate, time: datetime) -> None:
    """RFC 6960 section 4.2.2.2: the issuer signs, or a certificate that it issued for this purpose."""
    responders = [issuer, *(c for c in response.certificates if _is_appointed(c, issuer, time))]
    if not any(_is_signed_by(response, responder) for responder in responders):
        raise BadCertificateStatusResponse("the stapled OCSP response is not signed by the CA")


def _is_appointed(responder: x509.Certificate, issuer: x509.Certificate, time: datetime) -> bool:
    if not responder.not_valid_before_utc <= time <= responder.not_valid_after_utc:
        return False
    try:
        responder.verify_directly_issued_by(issuer)
        usages = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (InvalidSignature, x509.ExtensionNotFound, *UNPARSABLE):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usages


def _is_signed_by(response: ocsp.OCSPResponse, responder: x509.Certificate) -> bool:
    try:
        _verify(
            responder.public_key(),
            response.signature,
            response.tbs_response_bytes,
            response.signature_hash_algorithm,
        )
    except (InvalidSignature, *UNPARSABLE):
        return False
    return True


def _verify(
    key: PublicKeyTypes, signature: bytes, content: bytes, digest: hashes.HashAlgorithm | None
) -> None:
    match key, digest:
        case ec.EllipticCurvePublicKey(), hashes.HashAlgorithm():
            key.verify(signature, content, ec.ECDSA(digest))
        case rsa.RSAPublicKey(), hashes.HashAlgorithm():
            key.verify(signature, content, padding.PKCS1v15(), digest)
        case (
            ed25519.Ed25519PublicKey()
            | mldsa.MLDSA44PublicKey()
            | mldsa.MLDSA65PublicKey()
            | mldsa.MLDSA87PublicKey(),
            None,
        ):
            key.verify(signature, content)
        case _:
            raise InvalidSignature
