"""Command and response APDUs, ISO/IEC 7816-3 section 12 and 7816-4 section 5.

Four cases: no data (1), an answer expected (2), data sent (3), both (4); each of 2 to 4 as a
short APDU (lengths of one octet) or an extended one (two octets behind a zero).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vmtoken.codec import DecodeError
from vmtoken.iso7816.status import StatusWord

MAX_SHORT_DATA = 255
"""Octets of command data in a short APDU."""

MAX_SHORT_LE = 256
"""Octets of response data that a short APDU can ask for; Le = 00."""

MAX_EXTENDED_DATA = 65535
MAX_EXTENDED_LE = 65536


class CommandApdu(NamedTuple):
    """A command: four octets of header, data, and how many octets are expected back at most.

    A tuple, because a handshake makes dozens and a frozen dataclass costs four times as much.
    """

    cla: int
    ins: int
    p1: int = 0
    p2: int = 0
    data: bytes = b""
    le: int | None = None
    """1 to 65536; None when no data is expected."""

    def encode(self, *, extended: bool = False) -> bytes:
        """The octets to send; extended when asked for or when the lengths demand it."""
        cla, ins, p1, p2, data, le = self
        size = len(data)
        if extended or size > MAX_SHORT_DATA or (le or 0) > MAX_SHORT_LE:
            return bytes((cla, ins, p1, p2)) + self._extended_body()
        tail = b"" if le is None else bytes((le & 0xFF,))
        return bytes((cla, ins, p1, p2, size)) + data + tail if size else bytes((cla, ins, p1, p2)) + tail

    @classmethod
    def decode(cls, octets: bytes) -> CommandApdu:
        """Read a short or extended APDU; raise `DecodeError` if its lengths do not fit."""
        if len(octets) < 4:
            raise DecodeError(f"a command APDU of {len(octets)} octets, at least 4 are needed")
        data, le = _decode_body(octets)
        return cls(octets[0], octets[1], octets[2], octets[3], data, le)

    def _extended_body(self) -> bytes:
        size = len(self.data)
        if size > MAX_EXTENDED_DATA or (self.le or 0) > MAX_EXTENDED_LE:
            raise ValueError(f"{size} octets of data, {self.le} expected: too much for one APDU")
        lengths_differ = b"\x00" if size or self.le is not None else b""
        data = size.to_bytes(2, "big") + self.data if size else b""
        le = b"" if self.le is None else (self.le & 0xFFFF).to_bytes(2, "big")
        return lengths_differ + data + le


@dataclass(frozen=True, slots=True)
class ResponseApdu:
    """An answer: data, if any, and the status word."""

    data: bytes
    status: StatusWord

    def encode(self) -> bytes:
        """The octets as the card sends them."""
        return self.data + self.status.to_bytes(2, "big")

    @classmethod
    def decode(cls, octets: bytes) -> ResponseApdu:
        """Split data and status word; raise `DecodeError` if there are less than two octets."""
        if len(octets) < 2:
            raise DecodeError(f"a response APDU of {len(octets)} octets, at least 2 are needed")
        return cls(octets[:-2], StatusWord(int.from_bytes(octets[-2:], "big")))


def _decode_body(octets: bytes) -> tuple[bytes, int | None]:
    """Data and Le behind the header, ISO/IEC 7816-3 section 12.1.3."""
    size = len(octets) - 4
    if size == 0:
        return b"", None
    if size == 1:
        return b"", octets[4] or MAX_SHORT_LE
    if octets[4] == 0:
        return _decode_extended_body(octets)
    lc = octets[4]
    if size == 1 + lc:
        return octets[5:], None
    if size == 2 + lc:
        return octets[5:-1], octets[-1] or MAX_SHORT_LE
    raise DecodeError(f"Lc says {lc} octets of data, the APDU holds {size - 1} behind it")


def _decode_extended_body(octets: bytes) -> tuple[bytes, int | None]:
    size = len(octets) - 4
    if size == 3:
        return b"", int.from_bytes(octets[5:], "big") or MAX_EXTENDED_LE
    lc = int.from_bytes(octets[5:7], "big")
    if lc and size == 3 + lc:
        return octets[7:], None
    if lc and size == 5 + lc:
        return octets[7:-2], int.from_bytes(octets[-2:], "big") or MAX_EXTENDED_LE
    raise DecodeError(f"the extended Lc says {lc} octets, the APDU holds {max(0, size - 3)} behind it")
