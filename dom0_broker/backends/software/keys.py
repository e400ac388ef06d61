"""Private keys of the software element: made, read back from the file, named to TLS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.csr import request_builder

PrivateKey = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)

_MIN_RSA_BITS = 2048
_RSA_EXPONENT = 65537

_GENERATORS: dict[KeyAlgorithm, Callable[[], PrivateKey]] = {
    KeyAlgorithm.ECDSA_P256: lambda: ec.generate_private_key(ec.SECP256R1()),
    KeyAlgorithm.ECDSA_P384: lambda: ec.generate_private_key(ec.SECP384R1()),
    KeyAlgorithm.ED25519: ed25519.Ed25519PrivateKey.generate,
    KeyAlgorithm.RSA_2048: lambda: rsa.generate_private_key(_RSA_EXPONENT, 2048),
    KeyAlgorithm.RSA_3072: lambda: rsa.generate_private_key(_RSA_EXPONENT, 3072),
    KeyAlgorithm.ML_DSA_44: mldsa.MLDSA44PrivateKey.generate,
    KeyAlgorithm.ML_DSA_65: mldsa.MLDSA65PrivateKey.generate,
    KeyAlgorithm.ML_DSA_87: mldsa.MLDSA87PrivateKey.generate,
}


def generate(algorithm: KeyAlgorithm) -> PrivateKey:
    """A fresh key."""
    return _GENERATORS[algorithm]()


def load(pkcs8: bytes) -> PrivateKey:
    """Read a PKCS#8 key; raise `ValueError` if it does not parse or is of a kind that we do not have."""
    try:
        key = load_der_private_key(pkcs8, None)
    except (UnsupportedAlgorithm, TypeError) as error:
        raise ValueError("a private key that cannot be read") from error
    if not isinstance(key, PrivateKey):
        raise ValueError("a private key of another kind")  # noqa: TRY004
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise ValueError(  # noqa: TRY004
            f"a private key on the curve {key.curve.name}"
        )
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits")
    return key


def pkcs8(key: PrivateKey) -> bytes:
    """The key as the keystore holds it."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def public_key_info(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate_request(key: PrivateKey, subject: str, dns_names: Sequence[str]) -> bytes:
    """PKCS#10, DER, built here from its parts; raise `ValueError` if they are not names."""
    builder = request_builder(subject, dns_names)
    has_hash = isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    digest = hashes.SHA384() if _is_p384(key) else hashes.SHA256()
    return builder.sign(key, digest if has_hash else None).public_bytes(Encoding.DER)


def _is_p384(key: PrivateKey) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
