"""Certificate requests (PKCS#10, RFC 2986) of keys that stay where they are, and what comes back for them.

`cryptography` puts the request together; what it calls a private key is a stand-in that passes on what
is to be signed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from vmtoken.errors import InvalidRequest
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.signatures import PublicKey

Sign = Callable[[SignatureScheme, bytes], bytes]
"""As `SigningKey.sign`: content that is not hashed yet; ECDSA as DER."""

MAX_DNS_NAME = 255
"""Octets (RFC 1035 section 2.3.4)."""

_PREFERRED = (
    SignatureScheme.ECDSA_SECP256R1_SHA256,
    SignatureScheme.ECDSA_SECP384R1_SHA384,
    SignatureScheme.ED25519,
    SignatureScheme.RSA_PKCS1_SHA256,
    SignatureScheme.RSA_PSS_RSAE_SHA256,
)
"""PKCS #1 v1.5 before PSS: every CA takes it. The first that fits key and curve is used."""


def certificate_request(
    public_key_info: bytes,
    schemes: Sequence[SignatureScheme],
    sign: Sign,
    subject: str,
    dns_names: Sequence[str] = (),
) -> bytes:
    """PKCS#10, DER, for a SubjectPublicKeyInfo, DER, and what its key can do.

    `subject` as in RFC 4514. Raises `InvalidRequest` for names that are none and for a key that no
    request can be made with, `ValueError` for octets that are no key, and what `sign` raises.
    """
    if any(not name.isascii() or not 1 <= len(name) <= MAX_DNS_NAME for name in dns_names):
        raise InvalidRequest(
            f"A DNS name is 1 to {MAX_DNS_NAME} ASCII characters; write others in their xn-- form."
        )
    try:
        builder = request_builder(subject, dns_names)
    except ValueError as error:
        raise InvalidRequest(
            f"A request for {subject!r} cannot be made: {error}; correct the names in it."
        ) from error
    key = KeyElsewhere.of(public_key_info, schemes, sign)
    signed = builder.sign(key.stand_in, key.digest, rsa_padding=key.rsa_padding)
    return signed.public_bytes(Encoding.DER)


def check_chain(public_key_info: bytes, chain: Sequence[bytes]) -> None:
    """Raise `ValueError` unless the chain begins with this key's certificate and each names the next; DER."""
    if not chain:
        raise ValueError("an empty chain")
    certificates = [x509.load_der_x509_certificate(certificate) for certificate in chain]
    leaf_key = certificates[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf_key != public_key_info:
        raise ValueError("the certificate belongs to another key")
    for certificate, issuer in itertools.pairwise(certificates):
        if certificate.issuer != issuer.subject:
            raise ValueError("the chain is out of order")


def request_builder(subject: str, dns_names: Sequence[str]) -> x509.CertificateSigningRequestBuilder:
    """A request that lacks its key and signature; raise `ValueError` if the names are none."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name.from_rfc4514_string(subject))
    if dns_names:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
        builder = builder.add_extension(names, critical=False)
    return builder


class KeyElsewhere:
    """What the builders of `cryptography.x509` need to have something signed by a key that is elsewhere."""

    def __init__(self, stand_in: _StandIn, scheme: SignatureScheme) -> None:
        self.stand_in = stand_in
        """Passes for the private key."""

        self.digest = _DIGESTS.get(scheme)
        self.rsa_padding = _PADDINGS.get(scheme)

    @classmethod
    def of(cls, public_key_info: bytes, schemes: Sequence[SignatureScheme], sign: Sign) -> KeyElsewhere:
        """Raises `InvalidRequest` if no scheme fits, `ValueError` for octets that are no key."""
        public_key = load_der_public_key(public_key_info)
        scheme = _scheme_for(PublicKey(public_key), schemes)
        for key_type, stand_in in _STAND_INS.items():
            if isinstance(public_key, key_type):
                return cls(stand_in(public_key, lambda content: sign(scheme, content)), scheme)
        raise InvalidRequest(_NO_SCHEME)


_NO_SCHEME = "The key cannot sign certificate requests; use an ECDSA, Ed25519 or RSA key."

_DIGESTS: dict[SignatureScheme, hashes.SHA256 | hashes.SHA384] = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: hashes.SHA256(),
    SignatureScheme.ECDSA_SECP384R1_SHA384: hashes.SHA384(),
    SignatureScheme.RSA_PKCS1_SHA256: hashes.SHA256(),
    SignatureScheme.RSA_PSS_RSAE_SHA256: hashes.SHA256(),
}

_PADDINGS: dict[SignatureScheme, padding.PSS | padding.PKCS1v15] = {
    SignatureScheme.RSA_PKCS1_SHA256: padding.PKCS1v15(),
    SignatureScheme.RSA_PSS_RSAE_SHA256: padding.PSS(
        padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size
    ),
}


def _scheme_for(key: PublicKey, schemes: Sequence[SignatureScheme]) -> SignatureScheme:
    """TLS 1.3 ties the hash to the curve, and so do we; PKCS #1 v1.5 lives in TLS 1.2 alone."""
    for scheme in _PREFERRED:
        is_rsa = scheme is SignatureScheme.RSA_PKCS1_SHA256
        version = ProtocolVersion.TLS_1_2 if is_rsa else ProtocolVersion.TLS_1_3
        if scheme in schemes and key.can_use(scheme, version):
            return scheme
    raise InvalidRequest(_NO_SCHEME)


class _Elsewhere:
    """What the stand-ins of all kinds of key share: they know the public key, and nothing else."""

    def __init__(self, public_key: Any, sign: Callable[[bytes], bytes]) -> None:
        self._public_key = public_key
        self._sign = sign

    def public_key(self) -> Any:
        return self._public_key

    def sign(self, data: Any, *how: Any) -> bytes:
        """`how` is the scheme that the stand-in was made for."""
        return self._sign(bytes(data))

    def _not_here(self, *arguments: Any, **options: Any) -> NoReturn:
        raise TypeError("the private key is not here")

    private_bytes = private_bytes_raw = private_numbers = decrypt = exchange = _not_here
    __copy__ = __deepcopy__ = _not_here

    @property
    def key_size(self) -> int:
        size: int = self._public_key.key_size
        return size

    @property
    def curve(self) -> ec.EllipticCurve:
        curve: ec.EllipticCurve = self._public_key.curve
        return curve


class _EcdsaElsewhere(_Elsewhere, ec.EllipticCurvePrivateKey):
    pass


class _RsaElsewhere(_Elsewhere, rsa.RSAPrivateKey):
    pass


class _Ed25519Elsewhere(_Elsewhere, ed25519.Ed25519PrivateKey):
    pass


_StandIn = _EcdsaElsewhere | _RsaElsewhere | _Ed25519Elsewhere

_STAND_INS: dict[type, type[_EcdsaElsewhere] | type[_RsaElsewhere] | type[_Ed25519Elsewhere]] = {
    ec.EllipticCurvePublicKey: _EcdsaElsewhere,
    rsa.RSAPublicKey: _RsaElsewhere,
    ed25519.Ed25519PublicKey: _Ed25519Elsewhere,
}
