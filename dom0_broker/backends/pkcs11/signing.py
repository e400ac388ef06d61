"""How a PKCS#11 key makes the signatures that TLS wants: which mechanism, over what, giving what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from dom0_broker.backends.pkcs11.codes import Digest, Mechanism, Mgf
from vmtoken.emsa import digest_info, encoded_message
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey

PssParameters = tuple[int, int, int]
"""CK_RSA_PKCS_PSS_PARAMS: hash, mask generation function, length of the salt in octets."""


@dataclass(frozen=True, slots=True)
class Way:
    """One mechanism that makes signatures of a scheme."""

    mechanism: Mechanism
    prepare: Callable[[SignatureScheme, bytes, int], bytes]
    """Content to what C_Sign is given; the number is the size of the key in bits."""

    parameters: PssParameters | None = None
    finish: Callable[[bytes], bytes] = bytes
    """What C_Sign gives to what TLS wants. Raises `ValueError`."""


def ways_of(key: PublicKeyTypes, mechanisms: Collection[int]) -> dict[SignatureScheme, Way]:
    """What a key can do in a token with these mechanisms, best first: the first way that there is.

    RSA keys count as rsaEncryption: PKCS#11 does not know keys that are for PSS alone.
    """
    found: dict[SignatureScheme, Way] = {}
    for scheme in PublicKey(key).schemes():
        way = next((way for way in _WAYS.get(scheme, ()) if way.mechanism in mechanisms), None)
        if way is not None and not _is_other_curve(scheme, key):
            found[scheme] = way
    return found


def bits_of(key: PublicKeyTypes) -> int:
    """The size of a key, for encodings that depend on it."""
    return key.key_size if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else 0


def is_usable(key: PublicKeyTypes) -> bool:
    """Whether TLS here has schemes for keys of this kind."""
    return isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)


def _is_other_curve(scheme: SignatureScheme, key: PublicKeyTypes) -> bool:
    """TLS 1.2 lets any curve go with any hash; tokens often do not, and nobody needs it."""
    curve = _CURVES.get(scheme)
    return curve is not None and not (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == curve)


def _whole(scheme: SignatureScheme, content: bytes, bits: int) -> bytes:
    return content


def _hashed(scheme: SignatureScheme, content: bytes, bits: int) -> bytes:
    return hashlib.new(_HASHES[scheme], content).digest()


def _digest_info(scheme: SignatureScheme, content: bytes, bits: int) -> bytes:
    return digest_info(scheme, content)


def _ecdsa_der(raw: bytes) -> bytes:
    """r and s behind one another (PKCS#11 v3.0 section 2.3.1) to ECDSA-Sig-Value (RFC 3279)."""
    half, odd = divmod(len(raw), 2)
    if odd or not raw:
        raise ValueError(f"an ECDSA signature of {len(raw)} octets")
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def _ecdsa(hashing: Mechanism) -> tuple[Way, ...]:
    return (
        Way(Mechanism.CKM_ECDSA, _hashed, finish=_ecdsa_der),
        Way(hashing, _whole, finish=_ecdsa_der),
    )


def _pss(hashing: Mechanism, digest: Digest, mgf: Mgf, salt: int) -> tuple[Way, ...]:
    """A salt as long as the digest (RFC 8446 section 4.2.3); without PSS in the module we pad ourselves."""
    return (
        Way(Mechanism.CKM_RSA_PKCS_PSS, _hashed, (digest, mgf, salt)),
        Way(hashing, _whole, (digest, mgf, salt)),
        Way(Mechanism.CKM_RSA_X_509, encoded_message),
    )


def _pkcs1(hashing: Mechanism) -> tuple[Way, ...]:
    return (
        Way(Mechanism.CKM_RSA_PKCS, _digest_info),
        Way(hashing, _whole),
        Way(Mechanism.CKM_RSA_X_509, encoded_message),
    )


_WAYS: Final[dict[SignatureScheme, tuple[Way, ...]]] = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: _ecdsa(Mechanism.CKM_ECDSA_SHA256),
    SignatureScheme.ECDSA_SECP384R1_SHA384: _ecdsa(Mechanism.CKM_ECDSA_SHA384),
    SignatureScheme.ED25519: (Way(Mechanism.CKM_EDDSA, _whole),),
    SignatureScheme.RSA_PSS_RSAE_SHA256: _pss(
        Mechanism.CKM_SHA256_RSA_PKCS_PSS, Digest.CKM_SHA256, Mgf.CKG_MGF1_SHA256, 32
    ),
    SignatureScheme.RSA_PSS_RSAE_SHA384: _pss(
        Mechanism.CKM_SHA384_RSA_PKCS_PSS, Digest.CKM_SHA384, Mgf.CKG_MGF1_SHA384, 48
    ),
    SignatureScheme.RSA_PSS_RSAE_SHA512: _pss(
        Mechanism.CKM_SHA512_RSA_PKCS_PSS, Digest.CKM_SHA512, Mgf.CKG_MGF1_SHA512, 64
    ),
    SignatureScheme.RSA_PKCS1_SHA256: _pkcs1(Mechanism.CKM_SHA256_RSA_PKCS),
    SignatureScheme.RSA_PKCS1_SHA384: _pkcs1(Mechanism.CKM_SHA384_RSA_PKCS),
    SignatureScheme.RSA_PKCS1_SHA512: _pkcs1(Mechanism.CKM_SHA512_RSA_PKCS),
}

_CURVES: Final = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: "secp256r1",
    SignatureScheme.ECDSA_SECP384R1_SHA384: "secp384r1",
}

_HASHES: Final = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: "sha256",
    SignatureScheme.ECDSA_SECP384R1_SHA384: "sha384",
    SignatureScheme.RSA_PSS_RSAE_SHA256: "sha256",
    SignatureScheme.RSA_PSS_RSAE_SHA384: "sha384",
    SignatureScheme.RSA_PSS_RSAE_SHA512: "sha512",
}
