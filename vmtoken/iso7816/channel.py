"""CardChannel: whole commands and whole answers over a connection that carries single APDUs.

Long command data goes out in parts, long answers are fetched in parts, and the status word of
the last part decides. What a card may cost us in rounds and octets is bounded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmtoken.codec import DecodeError
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
_INS_FETCH = 0x12
_CLA_FETCH = 0xA0
_CLA_CHAINING = 0x10


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
        self._chaining = chaining
        self._le_with_data = le_with_data
        self.limits = limits
        self.apdus = 0
        """APDUs sent so far."""

        self.octets = 0
        """Octets that went over the connection so far, both ways."""

    def send(self, command: CommandApdu) -> bytes:
        """The data that answers a command; raise `StatusWordError` unless the card says 9000."""
        answer = self.exchange(command)
        if answer.status != StatusWord.SUCCESS:
            raise StatusWordError(answer.status, command.ins)
        return answer.data

    def exchange(self, command: CommandApdu) -> ResponseApdu:
        """The whole answer to a command, whatever its status word; raise `CardMisbehaved`."""
        last = self._last_part(command)
        encoded = self._encode(last)
        answer = self._transmit(encoded)
        correct_le = answer.status.correct_le
        if correct_le is not None:
            answer = self._transmit(self._encode(_with_le(last, correct_le)))
        if answer.status.octets_left is None:
            return answer
        return self._fetch(command, answer)

    def reset(self) -> None:
        """Reset the card."""
        self._connection.reset()

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _last_part(self, command: CommandApdu) -> CommandApdu:
        """Send all but the last part of a long command."""
        size, limit = len(command.data), self.limits.command_data
        if size <= limit:
            return command
        start = 0
        while size - start > limit:
            self._send_part(command, command.data[start : start + limit])
            start += limit
        return CommandApdu(command.cla, command.ins, command.p1, command.p2, command.data[start:], command.le)

    def _send_part(self, command: CommandApdu, data: bytes) -> None:
        cla, p1 = command.cla, command.p1
        if self._chaining is Chaining.CLA:
            cla |= _CLA_CHAINING
        else:
            p1 |= 1
        part = CommandApdu(cla, command.ins, p1, command.p2, data)
        status = self._transmit(part.encode(extended=self.limits.extended)).status
        if status != StatusWord.SUCCESS:
            raise StatusWordError(status, command.ins)

    def _encode(self, command: CommandApdu) -> bytes:
        if command.data and command.le is not None and not self._le_with_data:
            command = _with_le(command, None)
        return command.encode(extended=self.limits.extended)

    def _fetch(self, command: CommandApdu, answer: ResponseApdu) -> ResponseApdu:
        """Collect what the card announced with 61xx (GET RESPONSE) or 9Fxx (FETCH)."""
        parts = [answer.data] if answer.data else []
        size = len(answer.data)
        for _ in range(_MAX_ROUNDS):
            octets_left = answer.status.octets_left
            if octets_left is None:
                return ResponseApdu(b"".join(parts), answer.status)
            answer = self._fetch_part(command, answer.status.sw1, octets_left)
            parts.append(answer.data)
            size += len(answer.data)
            if size > _MAX_ANSWER:
                break
        raise CardMisbehaved(f"the card's answer to INS {command.ins:02X} has no end")

    def _fetch_part(self, command: CommandApdu, sw1: int, octets: int) -> ResponseApdu:
        if sw1 == 0x61:
            part = CommandApdu(command.cla & ~_CLA_CHAINING, _INS_GET_RESPONSE, le=octets)
        else:
            part = CommandApdu(_CLA_FETCH, _INS_FETCH, le=octets)
        answer = self._transmit(part.encode())
        correct_le = answer.status.correct_le
        return answer if correct_le is None else self._transmit(_with_le(part, correct_le).encode())

    def _transmit(self, command: bytes) -> ResponseApdu:
        octets = self._connection.transmit(command)
        self.apdus += 1
        self.octets += len(command) + len(octets)
        try:
            return ResponseApdu.decode(octets)
        except DecodeError as error:
            raise CardMisbehaved(str(error)) from error


def _with_le(command: CommandApdu, le: int | None) -> CommandApdu:
    return CommandApdu(command.cla, command.ins, command.p1, command.p2, command.data, le)
