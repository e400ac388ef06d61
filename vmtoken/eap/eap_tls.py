"""The data of an EAP-TLS packet, RFC 5216 section 3; RFC 9190 keeps it for TLS 1.3."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmtoken.codec import DecodeError

FLAGS_LENGTH = 1
TLS_LENGTH_LENGTH = 4


class EapTlsFlags(enum.IntFlag):
    """Section 3.1."""

    LENGTH_INCLUDED = 0x80
    MORE_FRAGMENTS = 0x40
    START = 0x20


# Numbers: arithmetic with enum members costs more than the rest of a packet.
_LENGTH_INCLUDED = int(EapTlsFlags.LENGTH_INCLUDED)
_MORE_FRAGMENTS = int(EapTlsFlags.MORE_FRAGMENTS)
_START = int(EapTlsFlags.START)


@dataclass(frozen=True, slots=True)
class EapTlsMessage:
    """Flags, the length of the whole TLS message if it is said, and a piece of TLS data."""

    data: bytes = b""
    more_fragments: bool = False
    start: bool = False
    tls_message_length: int | None = None
    """Octets of all fragments together; the first fragment says so."""

    @property
    def is_acknowledgement(self) -> bool:
        """No data, no flags: answers a fragment, or a flight that needs no other answer (section 2.1.5)."""
        return not (self.data or self.start or self.more_fragments or self.tls_message_length)

    def encode(self) -> bytes:
        """The octets behind the EAP type."""
        flags = (_MORE_FRAGMENTS if self.more_fragments else 0) | (_START if self.start else 0)
        if self.tls_message_length is None:
            return bytes((flags,)) + self.data
        length = self.tls_message_length.to_bytes(TLS_LENGTH_LENGTH, "big")
        return bytes((flags | _LENGTH_INCLUDED,)) + length + self.data

    @classmethod
    def decode(cls, octets: bytes) -> EapTlsMessage:
        """Read the octets behind the EAP type; raise `DecodeError`. Reserved flags are ignored."""
        if not octets:
            raise DecodeError("an EAP-TLS packet without flags")
        flags = octets[0]
        start = FLAGS_LENGTH
        length = None
        if flags & _LENGTH_INCLUDED:
            start += TLS_LENGTH_LENGTH
            if len(octets) < start:
                raise DecodeError("an EAP-TLS packet whose TLS message length is cut off")
            length = int.from_bytes(octets[FLAGS_LENGTH:start], "big")
        return cls(
            octets[start:],
            more_fragments=bool(flags & _MORE_FRAGMENTS),
            start=bool(flags & _START),
            tls_message_length=length,
        )


ACKNOWLEDGEMENT = EapTlsMessage()
"""The empty message: a fragment arrived, send the next (section 2.1.5)."""
