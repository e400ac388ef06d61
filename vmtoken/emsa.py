"""RSA encodings of what is signed (RFC 8017 section 9), for keys that do only the arithmetic."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Final

from vmtoken.tls.codes import SignatureScheme

Random = Callable[[int], bytes]
"""So many random octets."""

_PSS: Final = {
    SignatureScheme.RSA_PSS_RSAE_SHA256: "sha256",
    SignatureScheme.RSA_PSS_RSAE_SHA384: "sha384",
    SignatureScheme.RSA_PSS_RSAE_SHA512: "sha512",
    SignatureScheme.RSA_PSS_PSS_SHA256: "sha256",
    SignatureScheme.RSA_PSS_PSS_SHA384: "sha384",
    SignatureScheme.RSA_PSS_PSS_SHA512: "sha512",
}

_PKCS1: Final = {
    SignatureScheme.RSA_PKCS1_SHA256: "sha256",
    SignatureScheme.RSA_PKCS1_SHA384: "sha384",
    SignatureScheme.RSA_PKCS1_SHA512: "sha512",
}

_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
"""DER of DigestInfo up to the digest (section 9.2, note 1)."""

_SHORTEST_PADDING: Final = 8
"""Octets of FF in EMSA-PKCS1-v1_5."""


def encoded_message(
    scheme: SignatureScheme, content: bytes, modulus_bits: int, random: Random = os.urandom
) -> bytes:
    """EM: as long as the modulus, for RSASP1. Raises `ValueError` for other schemes and short keys."""
    if scheme in _PSS:
        name = _PSS[scheme]
        digest = hashlib.new(name, content).digest()
        message = emsa_pss(name, digest, modulus_bits - 1, random(len(digest)))
        return message.rjust((modulus_bits + 7) // 8, b"\0")
    return emsa_pkcs1_v1_5(digest_info(scheme, content), (modulus_bits + 7) // 8)


def digest_info(scheme: SignatureScheme, content: bytes) -> bytes:
    """T of section 9.2: DER of the hash function's identifier and the digest. Raises `ValueError`."""
    name = _PKCS1.get(scheme)
    if name is None:
        raise ValueError(f"{scheme.name} is not an RSA scheme")
    return _DIGEST_INFO[name] + hashlib.new(name, content).digest()


def emsa_pkcs1_v1_5(info: bytes, length: int) -> bytes:
    """Section 9.2, steps 3 to 5: `length` octets. Raises `ValueError` when they do not suffice."""
    padding = length - len(info) - 3
    if padding < _SHORTEST_PADDING:
        raise ValueError(f"an RSA key of {length} octets is too short")
    return b"\x00\x01" + b"\xff" * padding + b"\x00" + info


def emsa_pss(hash_name: str, digest: bytes, bits: int, salt: bytes) -> bytes:
    """Section 9.1.1, steps 3 to 13: `bits` rounded up to octets. Raises `ValueError` for too few."""
    length = (bits + 7) // 8
    padding = length - len(salt) - len(digest) - 2
    if padding < 0:
        raise ValueError(f"an RSA key of {bits + 1} bits is too short")
    h = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
    db = bytes(padding) + b"\x01" + salt
    masked = bytearray(a ^ b for a, b in zip(db, _mgf1(hash_name, h, len(db)), strict=True))
    masked[0] &= 0xFF >> (8 * length - bits)
    return bytes(masked) + h + b"\xbc"


def _mgf1(hash_name: str, seed: bytes, length: int) -> bytes:
    """Appendix B.2.1."""
    size = hashlib.new(hash_name).digest_size
    blocks = (
        hashlib.new(hash_name, seed + counter.to_bytes(4, "big")).digest()
        for counter in range(-(-length // size))
    )
    return b"".join(blocks)[:length]
