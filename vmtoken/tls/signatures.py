"""Signature schemes: what each needs of a key, how it signs and verifies, and what handshakes sign.

`PublicKey` is the key of a peer's certificate, `sign` is for keys in software.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import PublicKeyAlgorithmOID

from vmtoken.tls.codes import ClientCertificateType, ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import BadCertificate, IllegalParameter, SignatureInvalid

DEFAULT_SCHEMES: Final = (
    SignatureScheme.ECDSA_SECP256R1_SHA256,
    SignatureScheme.ECDSA_SECP384R1_SHA384,
    SignatureScheme.ED25519,
    SignatureScheme.RSA_PSS_RSAE_SHA256,
    SignatureScheme.RSA_PSS_RSAE_SHA384,
    SignatureScheme.RSA_PSS_RSAE_SHA512,
    SignatureScheme.RSA_PSS_PSS_SHA256,
    SignatureScheme.RSA_PSS_PSS_SHA384,
    SignatureScheme.RSA_PSS_PSS_SHA512,
    SignatureScheme.MLDSA44,
    SignatureScheme.MLDSA65,
    SignatureScheme.MLDSA87,
    SignatureScheme.RSA_PKCS1_SHA256,
    SignatureScheme.RSA_PKCS1_SHA384,
    SignatureScheme.RSA_PKCS1_SHA512,
)
"""What we take in a CertificateVerify or ServerKeyExchange, best first."""

MIN_RSA_BITS: Final = 2048
"""NIST SP 800-131A; path validation asks the same of CAs, but not of servers."""

CERTIFICATE_SCHEMES: Final = tuple(
    scheme for scheme in DEFAULT_SCHEMES if scheme is not SignatureScheme.ED25519
)
"""What we take as signature in a certificate: path validation knows no CA with an Ed25519 key."""


def server_content(transcript_hash: bytes) -> bytes:
    """What the server's CertificateVerify signs in TLS 1.3 (RFC 8446 section 4.4.3)."""
    return _SERVER_CONTEXT + transcript_hash


def client_content(transcript_hash: bytes) -> bytes:
    """What the client's CertificateVerify signs in TLS 1.3 (RFC 8446 section 4.4.3)."""
    return _CLIENT_CONTEXT + transcript_hash


def server_key_exchange_content(client_random: bytes, server_random: bytes, parameters: bytes) -> bytes:
    """What ServerKeyExchange signs in TLS 1.2 (RFC 8422 section 5.4)."""
    return client_random + server_random + parameters


_SERVER_CONTEXT = b" " * 64 + b"TLS 1.3, server CertificateVerify\0"
_CLIENT_CONTEXT = b" " * 64 + b"TLS 1.3, client CertificateVerify\0"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The key of a certificate, with what its algorithm identifier allows."""

    key: PublicKeyTypes
    is_rsa_pss: bool = False
    """The SubjectPublicKeyInfo says id-RSASSA-PSS: PSS and nothing else (RFC 8446 section 4.2.3)."""

    @classmethod
    def of(cls, certificate: x509.Certificate) -> PublicKey:
        """The key of a certificate; raises `BadCertificate` if it cannot be read."""
        try:
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BadCertificate("the certificate holds a public key that cannot be used") from error
        return cls(key, certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS)

    @property
    def certificate_type(self) -> ClientCertificateType:
        """What TLS 1.2 calls a client certificate with this key (RFC 8422 section 5.5)."""
        is_rsa = isinstance(self.key, rsa.RSAPublicKey)
        return ClientCertificateType.RSA_SIGN if is_rsa else ClientCertificateType.ECDSA_SIGN

    def can_use(self, scheme: int, version: ProtocolVersion) -> bool:
        """Whether the version lets this key sign with the scheme."""
        algorithm = _ALGORITHMS.get(scheme)
        return algorithm is not None and algorithm.fits(self, version)

    @property
    def is_usable(self) -> bool:
        """Whether there is a scheme for it in any version."""
        return any(self.can_use(scheme, version) for scheme in DEFAULT_SCHEMES for version in ProtocolVersion)

    def schemes(self) -> tuple[SignatureScheme, ...]:
        """All that this key can do, best first; what serves only TLS 1.2 comes last."""
        modern = [scheme for scheme in DEFAULT_SCHEMES if self.can_use(scheme, ProtocolVersion.TLS_1_3)]
        older = [scheme for scheme in DEFAULT_SCHEMES if self.can_use(scheme, ProtocolVersion.TLS_1_2)]
        return tuple(dict.fromkeys(modern + older))

    def verify(self, scheme: int, version: ProtocolVersion, signature: bytes, content: bytes) -> None:
        """Raise `IllegalParameter` if the scheme does not fit, `SignatureInvalid` if the key did not sign."""
        if not self.can_use(scheme, version):
            raise IllegalParameter(
                f"the signature scheme {scheme:#06x} does not fit the server's certificate"
            )
        if not self.has_signed(scheme, signature, content):
            raise SignatureInvalid("the server's signature does not verify under its certificate")

    def has_signed(self, scheme: int, signature: bytes, content: bytes) -> bool:
        """Whether the signature is one that this key made over `content`; the scheme must fit the key."""
        try:
            _ALGORITHMS[scheme].verify(self.key, signature, content)
        except InvalidSignature:
            return False
        return True


def sign(private_key: PrivateKeyTypes, scheme: SignatureScheme, content: bytes) -> bytes:
    """A signature as TLS wants it, ECDSA as DER; `private_key` must fit the scheme."""
    return _ALGORITHMS[scheme].sign(private_key, content)


def first_common(
    ours: Sequence[SignatureScheme], theirs: Iterable[int], key: PublicKey, version: ProtocolVersion
) -> SignatureScheme | None:
    """The first of `ours` that the peer takes and that the key can do in this version."""
    accepted = frozenset(theirs)
    return next((scheme for scheme in ours if scheme in accepted and key.can_use(scheme, version)), None)


class _Algorithm(Protocol):
    def fits(self, key: PublicKey, version: ProtocolVersion) -> bool: ...
    def verify(self, key: PublicKeyTypes, signature: bytes, content: bytes) -> None: ...
    def sign(self, key: PrivateKeyTypes, content: bytes) -> bytes: ...


class _Ecdsa:
    def __init__(self, curve: type[ec.EllipticCurve], digest: hashes.HashAlgorithm) -> None:
        self._curve = curve
        self._ecdsa = ec.ECDSA(digest)

    def fits(self, key: PublicKey, version: ProtocolVersion) -> bool:
        """TLS 1.2 names only the hash: any curve may go with it (RFC 8446 section 4.2.3)."""
        if not isinstance(key.key, ec.EllipticCurvePublicKey):
            return False
        if version is ProtocolVersion.TLS_1_2:
            return isinstance(key.key.curve, ec.SECP256R1 | ec.SECP384R1)
        return isinstance(key.key.curve, self._curve)

    def verify(self, key: PublicKeyTypes, signature: bytes, content: bytes) -> None:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, content, self._ecdsa)

    def sign(self, key: PrivateKeyTypes, content: bytes) -> bytes:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key.sign(content, self._ecdsa)


class _Rsa:
    """PSS with a salt as long as the digest (RFC 8446 section 4.2.3), or PKCS #1 v1.5 in TLS 1.2 only."""

    def __init__(
        self, digest: hashes.HashAlgorithm, pad: padding.PSS | padding.PKCS1v15, *, pss_key: bool = False
    ) -> None:
        self._digest = digest
        self._padding = pad
        self._pss_key = pss_key

    def fits(self, key: PublicKey, version: ProtocolVersion) -> bool:
        if not isinstance(key.key, rsa.RSAPublicKey) or key.is_rsa_pss is not self._pss_key:
            return False
        if key.key.key_size < MIN_RSA_BITS:
            return False
        return version is ProtocolVersion.TLS_1_2 or isinstance(self._padding, padding.PSS)

    def verify(self, key: PublicKeyTypes, signature: bytes, content: bytes) -> None:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, content, self._padding, self._digest)

    def sign(self, key: PrivateKeyTypes, content: bytes) -> bytes:
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(content, self._padding, self._digest)


class _Ed25519:
    def fits(self, key: PublicKey, version: ProtocolVersion) -> bool:
        return isinstance(key.key, ed25519.Ed25519PublicKey)

    def verify(self, key: PublicKeyTypes, signature: bytes, content: bytes) -> None:
        assert isinstance(key, ed25519.Ed25519PublicKey)
        key.verify(signature, content)

    def sign(self, key: PrivateKeyTypes, content: bytes) -> bytes:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key.sign(content)


_MlDsaPublicKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
_MlDsaPrivateKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey


class _MlDsa:
    """draft-ietf-tls-mldsa: TLS 1.3 only, with an empty context."""

    def __init__(self, key_type: type[_MlDsaPublicKey]) -> None:
        self._key_type = key_type

    def fits(self, key: PublicKey, version: ProtocolVersion) -> bool:
        return version is ProtocolVersion.TLS_1_3 and isinstance(key.key, self._key_type)

    def verify(self, key: PublicKeyTypes, signature: bytes, content: bytes) -> None:
        assert isinstance(key, _MlDsaPublicKey)
        key.verify(signature, content)

    def sign(self, key: PrivateKeyTypes, content: bytes) -> bytes:
        assert isinstance(key, _MlDsaPrivateKey)
        return key.sign(content)


def _pss(digest: hashes.HashAlgorithm, *, pss_key: bool) -> _Rsa:
    return _Rsa(digest, padding.PSS(padding.MGF1(digest), digest.digest_size), pss_key=pss_key)


_ALGORITHMS: Final[dict[int, _Algorithm]] = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: _Ecdsa(ec.SECP256R1, hashes.SHA256()),
    SignatureScheme.ECDSA_SECP384R1_SHA384: _Ecdsa(ec.SECP384R1, hashes.SHA384()),
    SignatureScheme.ED25519: _Ed25519(),
    SignatureScheme.RSA_PSS_RSAE_SHA256: _pss(hashes.SHA256(), pss_key=False),
    SignatureScheme.RSA_PSS_RSAE_SHA384: _pss(hashes.SHA384(), pss_key=False),
    SignatureScheme.RSA_PSS_RSAE_SHA512: _pss(hashes.SHA512(), pss_key=False),
    SignatureScheme.RSA_PSS_PSS_SHA256: _pss(hashes.SHA256(), pss_key=True),
    SignatureScheme.RSA_PSS_PSS_SHA384: _pss(hashes.SHA384(), pss_key=True),
    SignatureScheme.RSA_PSS_PSS_SHA512: _pss(hashes.SHA512(), pss_key=True),
    SignatureScheme.RSA_PKCS1_SHA256: _Rsa(hashes.SHA256(), padding.PKCS1v15()),
    SignatureScheme.RSA_PKCS1_SHA384: _Rsa(hashes.SHA384(), padding.PKCS1v15()),
    SignatureScheme.RSA_PKCS1_SHA512: _Rsa(hashes.SHA512(), padding.PKCS1v15()),
    SignatureScheme.MLDSA44: _MlDsa(mldsa.MLDSA44PublicKey),
    SignatureScheme.MLDSA65: _MlDsa(mldsa.MLDSA65PublicKey),
    SignatureScheme.MLDSA87: _MlDsa(mldsa.MLDSA87PublicKey),
}
