"""BER-TLV data objects, ISO/IEC 7816-4 section 5.2.2 and ITU-T X.690 section 8.1."""

from __future__ import annotations

from typing import NamedTuple

from vmtoken.codec import DecodeError

_MAX_TAG_OCTETS = 3
"""ISO/IEC 7816-4 section 5.2.2.1 allows one, two or three."""

_MAX_LENGTH_OCTETS = 4
"""ISO/IEC 7816-4 section 5.2.2.2 allows four behind the first."""


class BerTlv(NamedTuple):
    """One data object. The tag is the number that its octets make: 0x6F, 0x7F21."""

    tag: int
    value: bytes

    def encode(self) -> bytes:
        """The octets, with the shortest length."""
        return encode_tlv(self.tag, self.value)

    @classmethod
    def decode(cls, octets: bytes) -> BerTlv:
        """Read exactly one data object; raise `DecodeError` for anything else."""
        objects = cls.decode_all(octets)
        if len(objects) != 1:
            raise DecodeError(f"{len(objects)} data objects where one is expected")
        return objects[0]

    @classmethod
    def decode_all(cls, octets: bytes) -> tuple[BerTlv, ...]:
        """Read data objects to the end of the octets; raise `DecodeError` if one is cut off.

        Lengths may be longer than needed, as BER allows, but never indefinite, and there is no
        padding between objects.
        """
        objects = []
        position, end = 0, len(octets)
        while position < end:
            tag = octets[position]
            if tag & 0x1F != 0x1F and position + 1 < end and octets[position + 1] < 0x80:
                length = octets[position + 1]  # nearly all objects are this simple
                position += 2
            else:
                tag, position = _decode_tag(octets, position)
                length, position = _decode_length(octets, position)
            if length > end - position:
                raise DecodeError(f"data object {tag:02X} is cut off")
            objects.append(cls(tag, octets[position : position + length]))
            position += length
        return tuple(objects)


def encode_tlv(tag: int, value: bytes) -> bytes:
    """A data object with the shortest length."""
    octets = tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")
    size = len(value)
    if size < 0x80:
        return octets + bytes((size,)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return octets + bytes((0x80 | len(length),)) + length + value


def decode_fields(octets: bytes) -> dict[int, bytes]:
    """The values of data objects by tag; raise `DecodeError` if a tag comes twice."""
    objects = BerTlv.decode_all(octets)
    fields = {item.tag: item.value for item in objects}
    if len(fields) != len(objects):
        raise DecodeError("a data object comes twice")
    return fields


def _decode_tag(octets: bytes, position: int) -> tuple[int, int]:
    """The tag at a position and the position behind it."""
    tag = octets[position]
    position += 1
    if tag & 0x1F != 0x1F:
        return tag, position
    for octet in octets[position : position + _MAX_TAG_OCTETS - 1]:
        tag = tag << 8 | octet
        position += 1
        if not octet & 0x80:
            return tag, position
    raise DecodeError("a tag that is cut off or too long")


def _decode_length(octets: bytes, position: int) -> tuple[int, int]:
    """The length at a position and the position behind it."""
    if position >= len(octets):
        raise DecodeError("a data object without a length")
    first = octets[position]
    position += 1
    if first < 0x80:
        return first, position
    size = first & 0x7F
    if not 1 <= size <= _MAX_LENGTH_OCTETS or size > len(octets) - position:
        raise DecodeError(f"a length that begins with {first:02X}")
    return int.from_bytes(octets[position : position + size], "big"), position + size
