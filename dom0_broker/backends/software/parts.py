"""Parts of long commands and of long answers, as the card sees them."""

from __future__ import annotations

from dom0_broker.backends.software.card_error import CardError
from vmtoken.cards.codes import CLA, Instruction
from vmtoken.iso7816.apdu import MAX_SHORT_DATA, MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.status import StatusWord

_MORE = 0x01

_MAX_COMMAND: dict[int, int] = {
    Instruction.PROCESS_EAP: 0x10000 + 1024,
    Instruction.PUT_DATA: 0x10000,
    Instruction.TAKE_TICKET: 0x10000 + 256,
    Instruction.CERTIFICATE_REQUEST: 4096,
}
"""Octets of the commands that come in parts: the longest EAP packet and its Start parameters, what a
personalisation needs, the longest NewSessionTicket of RFC 8446."""


class IncomingParts:
    """Puts the parts of a command together: bit 1 of P1 says that more follow (draft section 9.2.1)."""

    def __init__(self) -> None:
        self._header = b""
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, command: CommandApdu) -> CommandApdu | None:
        """The whole command, or None while parts are missing. Another command in between drops the parts."""
        if not self._parts and not command.p1 & _MORE:
            return command
        limit = _MAX_COMMAND.get(command.ins) if command.cla == CLA else None
        if limit is None:
            self._clear()
            return command
        header = bytes((command.cla, command.ins, command.p1 & ~_MORE, command.p2))
        if header != self._header:
            self._clear()
            if not command.p1 & _MORE:
                return command
        self._collect(header, command.data, limit)
        if command.p1 & _MORE:
            return None
        data = b"".join(self._parts)
        self._clear()
        return CommandApdu(command.cla, command.ins, command.p1, command.p2, data, command.le)

    def _collect(self, header: bytes, data: bytes, limit: int) -> None:
        self._size += len(data)
        if self._size > limit or not data:
            self._clear()
            raise CardError(StatusWord.NOT_ENOUGH_MEMORY if data else StatusWord.WRONG_LENGTH)
        self._header = header
        self._parts.append(data)

    def _clear(self) -> None:
        self._header = b""
        self._parts.clear()
        self._size = 0


class OutgoingParts:
    """Gives an answer out in the parts that the interface device asks for.

    Up to 256 octets go out at once where Le allows it. Else 61xx announces up to 255 octets, to be
    had with GET RESPONSE, and 9F00 or 9Fxx longer ones, to be had with FETCH (draft section 9.2.2).
    """

    def __init__(self, *, t0: bool) -> None:
        self._t0 = t0
        self._left = b""
        self._sw1 = 0
        self._refused: CommandApdu | None = None

    def begin(self, command: CommandApdu, data: bytes) -> bytes:
        """The first answer to a command that was executed."""
        self._left = b""
        if not data:
            return b"\x90\x00"
        le = self._usable_le(command)
        if le is not None and len(data) <= le:
            if self._t0 and len(data) != le:
                return self._refuse_le(command, data)
            return data + b"\x90\x00"
        self._left = data
        if le is not None and len(data) <= MAX_SHORT_LE:
            return self._refuse_le(command, data)
        self._sw1 = 0x9F if len(data) > MAX_SHORT_DATA else 0x61
        return self._announcement()

    @property
    def is_waiting(self) -> bool:
        """Whether octets of an earlier answer were not read."""
        return bool(self._left)

    def repeated(self, command: CommandApdu) -> bytes | None:
        """The answer kept behind 6Cxx: the same command with the right Le is not executed again."""
        refused, self._refused = self._refused, None
        data = self._left
        self._left = b""
        if refused is None or command.le != len(data):
            return None
        same = refused._replace(le=command.le) == command
        return data + b"\x90\x00" if same else None

    def next_part(self, le: int) -> bytes:
        """GET RESPONSE and FETCH: up to `le` octets of what is left."""
        left = self._left
        if not left or self._refused is not None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if self._t0 and le > len(left):
            return bytes((0x6C, len(left)))
        self._left = left[le:]
        size = len(left) - le
        if size <= 0:
            return left + b"\x90\x00"
        return left[:le] + bytes((self._sw1, size if size <= MAX_SHORT_DATA else 0x00))

    def _usable_le(self, command: CommandApdu) -> int | None:
        """Le, where it can be obeyed: in T=0 not behind data."""
        return None if self._t0 and command.data else command.le

    def _refuse_le(self, command: CommandApdu, data: bytes) -> bytes:
        self._left = data
        self._refused = command
        return bytes((0x6C, len(data) & 0xFF))

    def _announcement(self) -> bytes:
        size = len(self._left)
        return bytes((self._sw1, size if size <= MAX_SHORT_DATA else 0x00))
