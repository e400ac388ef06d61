"""Data objects of a PIV card (NIST SP 800-73-4 part 1): values to octets, octets to values.

Whatever does not parse raises `DecodeError`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vmtoken.cards.piv_codes import SOFTWARE_LABEL, Algorithm
from vmtoken.codec import DecodeError
from vmtoken.iso7816.tlv import BerTlv, encode_tlv

DATA_TAG = 0x53
"""Around every data object but the discovery object and the biometric template."""

MAX_CERTIFICATE = 1 << 15
"""Octets of a certificate after decompression: a client's has 500 to 3000; more is a bomb."""

MAX_CERTIFICATE_OBJECT = 1856
"""Octets that every card has room for (part 1 appendix A, table 10)."""

GUID_LENGTH = 16

_CERTIFICATE, _CERTIFICATE_INFO, _ERROR_DETECTION = 0x70, 0x71, 0xFE
_GZIP = 0x01
_GZIP_BITS = 0x81
"""CertInfo is a bit string in one edition of the standard and an octet in another; cards follow either."""

_GZIP_WINDOW = 31
"""For zlib: a gzip header, the largest window."""

_GUID = 0x34

_TEMPLATE, _LABEL, _ALGORITHMS, _ALGORITHM = 0x61, 0x50, 0xAC, 0x80

_PUBLIC_KEY, _MODULUS, _EXPONENT, _POINT = 0x7F49, 0x81, 0x82, 0x86
_MIN_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class ApplicationTemplate:
    """Application property template, the answer to SELECT (part 2 section 3.1.1)."""

    label: str = ""
    """For people; empty if the card does not say."""

    algorithms: tuple[int, ...] = ()
    """Algorithm identifiers that the card says it has; most say nothing."""

    @property
    def is_software(self) -> bool:
        """Whether the card says that it is ours and no hardware."""
        return self.label == SOFTWARE_LABEL

    @classmethod
    def decode(cls, octets: bytes) -> ApplicationTemplate:
        """The parts that matter here; an answer of another kind has none."""
        template = _fields(_fields(octets).get(_TEMPLATE, b""))
        algorithms = BerTlv.decode_all(template.get(_ALGORITHMS, b""))
        return cls(
            template.get(_LABEL, b"").decode("utf-8", "replace"),
            tuple(int.from_bytes(item.value, "big") for item in algorithms if item.tag == _ALGORITHM),
        )


def encode_certificate(certificate: bytes) -> bytes:
    """The value of a certificate's data object, without its tag 53; with gzip when it would be too long."""
    plain = _encode_certificate(certificate, 0x00)
    if len(plain) <= MAX_CERTIFICATE_OBJECT:
        return plain
    return _encode_certificate(gzip.compress(certificate, mtime=0), _GZIP)


def decode_certificate(octets: bytes) -> bytes:
    """The certificate, DER as far as this can tell; empty if the object holds none."""
    fields = _fields(octets)
    certificate = fields.get(_CERTIFICATE, b"")
    info = fields.get(_CERTIFICATE_INFO, b"\x00")
    return _decompressed(certificate) if info and info[0] & _GZIP_BITS else certificate


def guid(chuid: bytes) -> str:
    """Hexadecimal GUID of a Card Holder Unique Identifier; empty if there is none or it is all zeros."""
    octets = _fields(chuid).get(_GUID, b"")
    if len(octets) not in (0, GUID_LENGTH):
        raise DecodeError(f"a GUID of {len(octets)} octets")
    return octets.hex() if any(octets) else ""


def decode_public_key(algorithm: Algorithm, octets: bytes) -> bytes:
    """SubjectPublicKeyInfo, DER, of a fresh key (part 2 section 3.3.2)."""
    item = BerTlv.decode(octets)
    if item.tag != _PUBLIC_KEY:
        raise DecodeError(f"tag {item.tag:02X} where a public key is expected")
    try:
        key = _public_key(algorithm, _fields(item.value))
    except (KeyError, ValueError) as error:
        raise DecodeError("a public key that is none") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def encode_public_key(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    """As a card tells it, the reverse of `decode_public_key`."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return encode_tlv(_PUBLIC_KEY, encode_tlv(_POINT, point))
    numbers = key.public_numbers()
    modulus, exponent = _octets(numbers.n), _octets(numbers.e)
    return encode_tlv(_PUBLIC_KEY, encode_tlv(_MODULUS, modulus) + encode_tlv(_EXPONENT, exponent))


_CURVES: Mapping[Algorithm, ec.EllipticCurve] = {
    Algorithm.ECC_P256: ec.SECP256R1(),
    Algorithm.ECC_P384: ec.SECP384R1(),
}

_RSA_BITS: Mapping[Algorithm, int] = {Algorithm.RSA_2048: 2048, Algorithm.RSA_3072: 3072}


def algorithm_of(key: object) -> Algorithm | None:
    """The algorithm identifier of a public key; None for one that a PIV card cannot have."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        known = (algorithm for algorithm, curve in _CURVES.items() if curve.name == key.curve.name)
        return next(known, None)
    if isinstance(key, rsa.RSAPublicKey):
        return next((algorithm for algorithm, bits in _RSA_BITS.items() if bits == key.key_size), None)
    return None


def _public_key(
    algorithm: Algorithm, fields: Mapping[int, bytes]
) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    curve = _CURVES.get(algorithm)
    if curve is not None:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, fields[_POINT])
    modulus, exponent = (int.from_bytes(fields[tag], "big") for tag in (_MODULUS, _EXPONENT))
    if modulus.bit_length() != _RSA_BITS[algorithm] or exponent < _MIN_EXPONENT:
        raise ValueError("an RSA key of another size")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _encode_certificate(certificate: bytes, info: int) -> bytes:
    return (
        encode_tlv(_CERTIFICATE, certificate)
        + encode_tlv(_CERTIFICATE_INFO, bytes((info,)))
        + encode_tlv(_ERROR_DETECTION, b"")
    )


def _decompressed(untrusted_octets: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        octets = stream.decompress(untrusted_octets, MAX_CERTIFICATE)
    except zlib.error as error:
        raise DecodeError("a compressed certificate that cannot be read") from error
    if not stream.eof:
        raise DecodeError(f"a compressed certificate that is cut off or above {MAX_CERTIFICATE} octets")
    return octets


def _fields(octets: bytes) -> dict[int, bytes]:
    return {item.tag: item.value for item in BerTlv.decode_all(octets)}


def _octets(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
