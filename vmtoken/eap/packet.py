"""EAP packets, RFC 3748 section 4."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmtoken.codec import DecodeError

HEADER_LENGTH = 4
"""Octets of code, identifier and length."""

MAX_PACKET_LENGTH = 0xFFFF
"""The Length field has two octets."""


class EapCode(enum.IntEnum):
    """Section 4."""

    REQUEST = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4


class EapType(enum.IntEnum):
    """Section 5, and RFC 5216 for EAP-TLS. A type that is not listed stays a number."""

    IDENTITY = 1
    NOTIFICATION = 2
    NAK = 3
    EAP_TLS = 13


@dataclass(frozen=True, slots=True)
class EapPacket:
    """One packet. Requests and responses have a type and its data, success and failure have neither."""

    code: EapCode
    identifier: int
    type: int | None = None
    data: bytes = b""

    def encode(self) -> bytes:
        """The octets; raise `ValueError` if the data is too long for the Length field."""
        body = b"" if self.type is None else bytes((self.type,)) + self.data
        length = HEADER_LENGTH + len(body)
        if length > MAX_PACKET_LENGTH:
            raise ValueError(f"an EAP packet of {length} octets, {MAX_PACKET_LENGTH} is the most")
        return bytes((self.code, self.identifier)) + length.to_bytes(2, "big") + body

    @classmethod
    def decode(cls, octets: bytes) -> EapPacket:
        """Read a packet; raise `DecodeError`. Octets behind its Length are padding (section 4.1)."""
        packet, _ = cls.decode_with_tail(octets)
        return packet

    @classmethod
    def decode_with_tail(cls, octets: bytes) -> tuple[EapPacket, bytes]:
        """The packet and the octets behind its Length, for those who put something there."""
        if len(octets) < HEADER_LENGTH:
            raise DecodeError(f"an EAP packet of {len(octets)} octets")
        length = int.from_bytes(octets[2:4], "big")
        if not HEADER_LENGTH <= length <= len(octets):
            raise DecodeError(f"an EAP packet says that it has {length} octets, {len(octets)} are there")
        try:
            code = EapCode(octets[0])
        except ValueError:
            raise DecodeError(f"{octets[0]} is no EAP code") from None
        return cls._decode_body(code, octets, length), octets[length:]

    @classmethod
    def _decode_body(cls, code: EapCode, octets: bytes, length: int) -> EapPacket:
        has_type = code in (EapCode.REQUEST, EapCode.RESPONSE)
        if has_type != (length > HEADER_LENGTH):
            raise DecodeError(f"an EAP {code.name.lower()} of {length} octets")
        if not has_type:
            return cls(code, octets[1])
        return cls(code, octets[1], octets[HEADER_LENGTH], octets[HEADER_LENGTH + 1 : length])
