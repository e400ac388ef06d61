"""Answer to reset: ISO/IEC 7816-3 section 8, its historical bytes ISO/IEC 7816-4 section 12.1.1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import xor

from vmtoken.codec import DecodeError

_TS = (0x3B, 0x3F)
"""Direct and inverse convention; a reader turns the octets of the latter round."""

_GLOBAL = 15
"""T=15 in a TDi announces interface bytes, no protocol."""

_STATUS_LAST = 0x00
_COMPACT_TLV = 0x80
_CAPABILITIES = 0x7
_CHAINING = 0x80
_EXTENDED = 0x40
_BY_DF_NAME = 0x80
_DATA_CODING = 0x01


@dataclass(frozen=True, slots=True)
class AnswerToReset:
    """Which protocols a card speaks, and what it says about itself."""

    protocols: tuple[int, ...]
    """The numbers behind 'T=', first offered first; at least one."""

    historical: bytes = b""
    """At most 15 octets."""

    @classmethod
    def decode(cls, octets: bytes) -> AnswerToReset:
        """Raises `DecodeError` if octets are missing; TCK is left to the reader, which has checked it."""
        if len(octets) < 2 or octets[0] not in _TS:
            raise DecodeError("an ATR that does not begin with TS and T0")
        protocols, position = _protocols(octets)
        historical = octets[position : position + (octets[1] & 0x0F)]
        if len(historical) < octets[1] & 0x0F:
            raise DecodeError("an ATR that ends within its historical bytes")
        return cls(protocols, historical)

    @classmethod
    def of_card(cls, *, t0: bool = False, extended: bool = False) -> AnswerToReset:
        """What a card says that speaks T=0 alone, or T=1 as well, and takes extended APDUs or not."""
        third = _CHAINING | (_EXTENDED if extended else 0)
        capabilities = bytes((_CAPABILITIES << 4 | 3, _BY_DF_NAME, _DATA_CODING, third))
        return cls((0,) if t0 else (0, 1), bytes((_COMPACT_TLV,)) + capabilities)

    @property
    def extended_apdus(self) -> bool:
        """Whether the card says that it takes them: the third software function table, bit 7."""
        table = next((value for tag, value in _compact_fields(self.historical) if tag == _CAPABILITIES), b"")
        return len(table) >= 3 and bool(table[2] & _EXTENDED)

    def encode(self) -> bytes:
        """Octets as the card sends them, in direct convention and without interface bytes but TDi."""
        only_t0 = self.protocols == (0,)
        announced = (
            b""
            if only_t0
            else bytes(
                protocol | (0x80 if index + 1 < len(self.protocols) else 0)
                for index, protocol in enumerate(self.protocols)
            )
        )
        t0 = (0 if only_t0 else 0x80) | len(self.historical)
        body = bytes((t0,)) + announced + self.historical
        check = b"" if only_t0 else bytes((reduce(xor, body),))
        return bytes((_TS[0],)) + body + check


def _protocols(octets: bytes) -> tuple[tuple[int, ...], int]:
    """The protocols of all TDi, and where the historical bytes begin (section 8.2.3)."""
    found: list[int] = []
    present, position = octets[1] >> 4, 2
    while present & 0x8:
        position += present.bit_count()
        if position > len(octets):
            raise DecodeError("an ATR that ends within its interface bytes")
        announcement = octets[position - 1]
        present = announcement >> 4
        found.append(announcement & 0x0F)
    protocols = dict.fromkeys(each for each in found if each != _GLOBAL)
    return tuple(protocols) or (0,), position + present.bit_count()


def _compact_fields(historical: bytes) -> Iterator[tuple[int, bytes]]:
    """COMPACT-TLV data objects: tag and length in one octet (ISO/IEC 7816-4 section 12.1.1.2)."""
    if not historical or historical[0] not in (_STATUS_LAST, _COMPACT_TLV):
        return
    left = historical[1:-3] if historical[0] == _STATUS_LAST else historical[1:]
    while left:
        length = left[0] & 0x0F
        yield left[0] >> 4, left[1 : 1 + length]
        left = left[1 + length :]
