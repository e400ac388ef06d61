"""Handshake messages out of record fragments (RFC 8446 section 5.1)."""

from __future__ import annotations

from vmtoken.tls.codes import HandshakeType, name_of
from vmtoken.tls.errors import IllegalParameter, UnexpectedMessage
from vmtoken.tls.messages import HEADER_LENGTH

MAX_CERTIFICATE_MESSAGE = 100 * 1024
"""Octets of a Certificate, CertificateRequest or CertificateStatus body: the default of OpenSSL.

Four ML-DSA-87 certificates with an OCSP response are about 40 KiB; long lists of CA names, 60 KiB.
"""

MAX_MESSAGE = 66 * 1024
"""Octets of any other body: the largest ticket or list of extensions (65535) fits."""


class HandshakeReassembler:
    """Takes the content of handshake records and gives whole messages, with their headers."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def is_empty(self) -> bool:
        """True on a message boundary: nothing is held. Keys may change only then (RFC 8446 section 5.1)."""
        return not self._held

    def add(self, fragment: bytes | memoryview) -> None:
        """Take the content of one record; raises `UnexpectedMessage` if it is empty (section 5.1)."""
        if not fragment:
            raise UnexpectedMessage("an empty handshake record")
        self._held += fragment

    def next_message(self) -> bytes | None:
        """The next whole message, None until more has come; raises `IllegalParameter` if it is too long.

        The header alone is enough to refuse, so no more than one message and one record is ever held.
        """
        if len(self._held) < HEADER_LENGTH:
            return None
        length = int.from_bytes(self._held[1:HEADER_LENGTH], "big")
        limit = max_body_length(self._held[0])
        if length > limit:
            name = name_of(HandshakeType, self._held[0])
            raise IllegalParameter(f"{name} has {length} octets, more than the {limit} that we take")
        end = HEADER_LENGTH + length
        if len(self._held) < end:
            return None
        message = bytes(self._held[:end])
        del self._held[:end]
        return message


def max_body_length(handshake_type: int) -> int:
    """The limit of ours for the body of a message, in octets."""
    return MAX_CERTIFICATE_MESSAGE if handshake_type in _WITH_CERTIFICATES else MAX_MESSAGE


_WITH_CERTIFICATES = frozenset(
    {HandshakeType.CERTIFICATE, HandshakeType.CERTIFICATE_REQUEST, HandshakeType.CERTIFICATE_STATUS}
)
