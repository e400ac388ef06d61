"""The octets of a certificate that are compared as octets: names and the SubjectPublicKeyInfo.

`cryptography` writes them anew from what it parsed, which loses the difference between an
rsaEncryption and an id-RSASSA-PSS key; pins and CA names need what the issuer wrote. Only for
certificates that `cryptography` has already parsed, so a walk over the top level is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

_VERSION_TAG = 0xA0


@dataclass(frozen=True, slots=True)
class CertificateFields:
    """RFC 5280 section 4.1, each field with its tag and length."""

    issuer: bytes
    subject: bytes
    subject_public_key_info: bytes

    @classmethod
    def of(cls, certificate: bytes) -> CertificateFields:
        """The fields of a DER certificate; raises `ValueError` if it is not one."""
        try:
            return cls._of(certificate)
        except IndexError:
            raise ValueError("not a DER certificate") from None

    @classmethod
    def _of(cls, certificate: bytes) -> CertificateFields:
        position, _ = _content(certificate, 0)  # Certificate
        position, _ = _content(certificate, position)  # TBSCertificate
        if certificate[position] == _VERSION_TAG:
            position = _end(certificate, position)
        position = _end(certificate, position)  # serialNumber
        issuer = _end(certificate, position)  # where signature ends, issuer begins
        validity = _end(certificate, issuer)
        subject = _end(certificate, validity)
        key = _end(certificate, subject)
        return cls(
            certificate[issuer:validity], certificate[subject:key], certificate[key : _end(certificate, key)]
        )


def _end(data: bytes, position: int) -> int:
    start, length = _content(data, position)
    return start + length


def _content(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at `position` starts, and its length."""
    length = data[position + 1]
    if length < 0x80:
        return position + 2, length
    start = position + 2 + (length & 0x7F)
    return start, int.from_bytes(data[position + 2 : start], "big")
