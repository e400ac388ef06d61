"""What the objects of a token say: its public keys in DER, and the certificates that belong to a key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.backends.pkcs11.codes import KeyType

_LONGEST_CHAIN: Final = 10
"""Certificates; more is a loop in names, or nobody's chain."""

EC_PARAMS: Final = {
    "secp256r1": bytes.fromhex("06082a8648ce3d030107"),
    "secp384r1": bytes.fromhex("06052b81040022"),
}
"""CKA_EC_PARAMS: the curve's object identifier, DER (RFC 5480 section 2.1.1.1)."""

ED25519_PARAMS: Final = (bytes.fromhex("06032b6570"), bytes.fromhex("130c656477617264733235353139"))
"""CKA_EC_PARAMS: an identifier (RFC 8410) or a PrintableString (PKCS#11 v3.0 section 2.3.10)."""

_ED25519_LENGTH: Final = 32

_CURVES: Final[dict[bytes, ec.EllipticCurve]] = {
    EC_PARAMS["secp256r1"]: ec.SECP256R1(),
    EC_PARAMS["secp384r1"]: ec.SECP384R1(),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A certificate object."""

    id: bytes
    value: bytes
    """DER."""

    def public_key(self) -> PublicKeyTypes | None:
        """None if it does not parse, or the key is of a kind that is not known."""
        try:
            return x509.load_der_x509_certificate(self.value).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return None


def public_key(key_type: int, attributes: dict[str, bytes]) -> PublicKeyTypes:
    """Of `modulus` and `public_exponent`, or `ec_params` and `ec_point`. Raises `ValueError`."""
    try:
        match key_type:
            case KeyType.CKK_RSA:
                exponent = int.from_bytes(attributes["public_exponent"], "big")
                modulus = int.from_bytes(attributes["modulus"], "big")
                return rsa.RSAPublicNumbers(exponent, modulus).public_key()
            case KeyType.CKK_EC | KeyType.CKK_EC_EDWARDS:
                return _curve_key(attributes["ec_params"], attributes["ec_point"])
    except KeyError as error:
        raise ValueError(f"a public key without {error}") from error
    raise ValueError(f"a key of type {key_type:#x}")


def spki(key: PublicKeyTypes) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def chain_for(key: bytes, found: Sequence[Found], key_id: bytes) -> tuple[bytes, ...]:
    """The newest certificate of a key (SubjectPublicKeyInfo), and what the token has of its issuers.

    CKA_ID decides between several, but never against the key. Empty without one.
    """
    own = [each for each in found if (public := each.public_key()) is not None and spki(public) == key]
    if not own:
        return ()
    leaf = max(own, key=lambda each: (each.id == key_id, _not_before(each.value)))
    return tuple(_path(leaf.value, [each.value for each in found]))


def _path(leaf: bytes, candidates: Iterable[bytes]) -> Iterator[bytes]:
    """Leaf first, without a root, which the server has itself."""
    certificates = [each for each in map(_parsed, candidates) if each is not None]
    current = x509.load_der_x509_certificate(leaf)
    for _ in range(_LONGEST_CHAIN):
        yield current.public_bytes(Encoding.DER)
        issuers = (each for each in certificates if _has_issued(each, current))
        issuer = next(issuers, None)
        if issuer is None or issuer.subject == issuer.issuer:
            return
        current = issuer


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if issuer.subject != certificate.issuer or issuer == certificate:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # an algorithm that is not known, a key that does not fit: not its issuer
        return False
    return True


def _parsed(certificate: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        return None


def _not_before(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_before_utc.timestamp()


def _curve_key(params: bytes, point: bytes) -> PublicKeyTypes:
    if params in ED25519_PARAMS:
        return ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(point, _ED25519_LENGTH))
    curve = _CURVES.get(params)
    if curve is None:
        raise ValueError("a key on another curve")
    length = 1 + 2 * ((curve.key_size + 7) // 8)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, _unwrapped(point, length))


def _unwrapped(point: bytes, length: int) -> bytes:
    """CKA_EC_POINT is an OCTET STRING with the point, DER; some modules leave the OCTET STRING away."""
    return point[2:] if point[:2] == bytes([0x04, length]) and len(point) == length + 2 else point
