"""The little DER that tests need to build what `cryptography` does not write."""

from __future__ import annotations

import base64
import textwrap

_RSASSA_PSS_ALGORITHM = bytes.fromhex("300B06092A864886F70D01010A")
"""AlgorithmIdentifier of id-RSASSA-PSS without parameters (RFC 4055 section 1.2)."""


def element(tag: int, content: bytes) -> bytes:
    """One DER element."""
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def sequence(*parts: bytes) -> bytes:
    return element(0x30, b"".join(parts))


def bit_string(content: bytes) -> bytes:
    return element(0x03, b"\0" + content)


def elements(encoded: bytes) -> list[bytes]:
    """The elements inside a constructed element, each with its header."""
    found = []
    position = _header_length(encoded)
    while position < len(encoded):
        rest = encoded[position:]
        size = _header_length(rest) + _content_length(rest)
        found.append(rest[:size])
        position += size
    return found


def replace_element(encoded: bytes, old: bytes, new: bytes) -> bytes:
    """A SEQUENCE with one of its elements replaced."""
    parts = elements(encoded)
    assert old in parts
    return sequence(*(new if part == old else part for part in parts))


def as_rsa_pss_public_key(subject_public_key_info: bytes) -> bytes:
    """SubjectPublicKeyInfo with rsaEncryption replaced by id-RSASSA-PSS."""
    _, key = elements(subject_public_key_info)
    return sequence(_RSASSA_PSS_ALGORITHM, key)


def as_rsa_pss_private_key(pkcs8: bytes) -> bytes:
    """PKCS#8 with rsaEncryption replaced by id-RSASSA-PSS."""
    version, _, key = elements(pkcs8)
    return sequence(version, _RSASSA_PSS_ALGORITHM, key)


def pem(label: str, encoded: bytes) -> bytes:
    """RFC 7468."""
    lines = "\n".join(textwrap.wrap(base64.b64encode(encoded).decode(), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


def _header_length(encoded: bytes) -> int:
    return 2 + (encoded[1] & 0x7F if encoded[1] & 0x80 else 0)


def _content_length(encoded: bytes) -> int:
    if encoded[1] < 0x80:
        return encoded[1]
    return int.from_bytes(encoded[2 : 2 + (encoded[1] & 0x7F)], "big")
