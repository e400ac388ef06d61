"""CardChannel: whole commands and whole answers over a connection that carries single APDUs.

Long command data goes out in parts, long answers are fetched in parts, and the status word of
the last part decides. What a card may cost us in rounds and octets is bounded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmtoken.iso7816.apdu import (
    MAX_EXTENDED_DATA,
    MAX_EXTENDED_LE,
    MAX_SHORT_DATA,
    MAX_SHORT_LE,
    CommandApdu,
    ResponseApdu,
)
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError

_MAX_ANSWER = 1 << 17
"""Octets of one answer: above the longest flight that a TLS handshake has, far below what hurts."""

_MAX_ROUNDS = 1024
"""APDUs for one answer: enough for `_MAX_ANSWER` in parts of 128 octets; a card that stalls is cut off."""

_INS_GET_RESPONSE = 0xC0
_FETCH = bytes.fromhex("A0 12 00 00")
_CLA_CHAINING = 0x10

_LE = tuple(bytes((le,)) for le in range(256))
_SUCCESS = 0x9000
_SW1_GET_RESPONSE = 0x61
_SW1_WRONG_LE = 0x6C
_SW1_MORE = (0x61, 0x9F)


class Chaining(enum.Enum):
    """Where a card looks for 'more parts of this command follow'."""

    CLA = "bit 5 of CLA"
    """ISO/IEC 7816-4 section 5.3.3."""

    P1 = "bit 1 of P1"
    """draft-urien-eap-smartcard section 9.2.1."""


@dataclass(frozen=True, slots=True)
class ApduLimits:
    """What one APDU carries."""

    command_data: int = MAX_SHORT_DATA
    """Octets; above 255 extended APDUs are used."""

    response_data: int = MAX_SHORT_LE
    """Octets; above 256 extended APDUs are used."""

    @property
    def extended(self) -> bool:
        """Whether the lengths need extended APDUs."""
        return self.command_data > MAX_SHORT_DATA or self.response_data > MAX_SHORT_LE


SHORT_APDUS = ApduLimits()
EXTENDED_APDUS = ApduLimits(MAX_EXTENDED_DATA, MAX_EXTENDED_LE)


class CardMisbehaved(Exception):
    """The card's answers make no sense: too short, endless or contradictory."""


class CardChannel:
    """Sends a command, however long, and returns its answer, however long."""

    def __init__(
        self,
        connection: CardConnection,
        limits: ApduLimits = SHORT_APDUS,
        *,
        chaining: Chaining = Chaining.CLA,
        le_with_data: bool = True,
    ) -> None:
        """`le_with_data` is False for T=0, where no Le follows data (ISO/IEC 7816-3 section 12.2)."""
        self._connection = connection
        self._extended = limits.extended
        self._chaining = chaining
        self._le_with_data = le_with_data
        self._limits = limits
        self.apdus = 0
        """APDUs sent so far."""

        self.octets = 0
        """Octets that went over the connection so far, both ways."""

    @property
    def limits(self) -> ApduLimits:
        """What one APDU carries; may be changed once the card has said what it takes."""
        return self._limits

    @limits.setter
    def limits(self, limits: ApduLimits) -> None:
        self._limits = limits
        self._extended = limits.extended

    def send(self, command: CommandApdu) -> bytes:
        """The data that answers a command; raise `StatusWordError` unless the card says 9000."""
        data, status = self._run(command)
        if status != _SUCCESS:
            raise StatusWordError(StatusWord(status), command.ins)
        return data

    def exchange(self, command: CommandApdu) -> ResponseApdu:
        """The whole answer to a command, whatever its status word; raise `CardMisbehaved`."""
        data, status = self._run(command)
        return ResponseApdu(data, StatusWord(status))

    def reset(self) -> None:
        """Reset the card."""
        self._connection.reset()

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _run(self, command: CommandApdu) -> tuple[bytes, int]:
        """Data and status word; plain numbers and octets, for a handshake takes dozens of APDUs."""
        if len(command.data) > self._limits.command_data:
            command = self._send_all_but_last_part(command)
        data, status = self._transmit(self._encode(command))
        if status >> 8 == _SW1_WRONG_LE:
            data, status = self._transmit(self._encode(_with_le(command, status & 0xFF or MAX_SHORT_LE)))
        return self._fetch(command, data, status) if status >> 8 in _SW1_MORE else (data, status)

    def _send_all_but_last_part(self, command: CommandApdu) -> CommandApdu:
        """The last part is a command of its own, with the Le of the whole."""
        cla, ins, p1, p2, data, le = command
        if self._chaining is Chaining.CLA:
            part_header = (cla | _CLA_CHAINING, ins, p1, p2)
        else:
            part_header = (cla, ins, p1 | 1, p2)
        limit = self._limits.command_data
        start = 0
        while len(data) - start > limit:
            part = CommandApdu(*part_header, data[start : start + limit])
            _, status = self._transmit(part.encode(extended=self._extended))
            if status != _SUCCESS:
                raise StatusWordError(StatusWord(status), ins)
            start += limit
        return CommandApdu(cla, ins, p1, p2, data[start:], le)

    def _encode(self, command: CommandApdu) -> bytes:
        if command.data and command.le is not None and not self._le_with_data:
            command = _with_le(command, None)
        return command.encode(extended=self._extended)

    def _fetch(self, command: CommandApdu, data: bytes, status: int) -> tuple[bytes, int]:
        """Collect what the card announced with 61xx (GET RESPONSE) or 9Fxx (FETCH); SW2 is the next Le."""
        get_response = bytes((command.cla & ~_CLA_CHAINING, _INS_GET_RESPONSE, 0, 0))
        parts, size = [data], len(data)
        transmit = self._transmit
        for _ in range(_MAX_ROUNDS):
            header = get_response if status >> 8 == _SW1_GET_RESPONSE else _FETCH
            data, status = transmit(header + _LE[status & 0xFF])
            if status >> 8 == _SW1_WRONG_LE:
                data, status = transmit(header + _LE[status & 0xFF])
            parts.append(data)
            size += len(data)
            if status >> 8 not in _SW1_MORE:
                return b"".join(parts), status
            if size > _MAX_ANSWER:
                break
        raise CardMisbehaved(f"the card's answer to INS {command.ins:02X} has no end")

    def _transmit(self, command: bytes) -> tuple[bytes, int]:
        answer = self._connection.transmit(command)
        if len(answer) < 2:
            raise CardMisbehaved("the card's answer has no status word")
        self.apdus += 1
        self.octets += len(command) + len(answer)
        return answer[:-2], answer[-2] << 8 | answer[-1]


def _with_le(command: CommandApdu, le: int | None) -> CommandApdu:
    return command._replace(le=le)
