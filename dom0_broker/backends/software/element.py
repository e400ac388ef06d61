"""SoftwareElement: an ISO 7816 card in Python, behind `CardConnection`.

This file is the card's operating system: APDUs in and out, parts of long commands, parts of long
answers, SELECT. What the commands do is in `application.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from dom0_broker.backends.software.application import Application
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.keystore import Keystore
from vmtoken.cards.profile import AID, CLA, Features, Instruction
from vmtoken.codec import DecodeError
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.apdu import MAX_SHORT_DATA, MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.channel import EXTENDED_APDUS, SHORT_APDUS
from vmtoken.iso7816.status import StatusWord

log = logging.getLogger(__name__)

_INS_SELECT = 0xA4
_SELECT_BY_NAME = 0x04
_MORE = 0x01

_MAX_COMMAND: dict[int, int] = {
    Instruction.PROCESS_EAP: 0x10000 + 1024,
    Instruction.PUT_DATA: 0x10000,
    Instruction.TAKE_TICKET: 0x10000 + 256,
    Instruction.CERTIFICATE_REQUEST: 4096,
}
"""Octets of the commands that come in parts: the longest EAP packet and its Start parameters, what a
personalisation needs, the longest NewSessionTicket of RFC 8446."""

_FEATURES = Features.RESUMPTION | Features.PERSONALISATION | Features.KEY_IMPORT | Features.SOFTWARE


@dataclass(frozen=True, slots=True)
class ElementOptions:
    """What kind of card the element plays."""

    extended: bool = False
    """Take extended APDUs as well; else they are refused with 6700, as many readers and cards do."""

    t0: bool = False
    """Be as strict as T=0: no Le behind data, 61xx and 6Cxx (ISO/IEC 7816-3 section 12.2)."""


DEFAULT_OPTIONS = ElementOptions()


class SoftwareElement:
    """A powered card. Any octets are answered with a status word; nothing is raised before `close`."""

    def __init__(
        self,
        keystore: Keystore,
        options: ElementOptions = DEFAULT_OPTIONS,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._keystore = keystore
        self._options = options
        self._random = random
        self._closed = False
        self.reset()

    def transmit(self, command: bytes) -> bytes:
        """See `CardConnection.transmit`."""
        if self._closed:
            raise TokenUnavailable("the software element is closed")
        try:
            return self._answer(CommandApdu.decode(command))
        except CardError as error:
            return error.status.to_bytes(2, "big")
        except DecodeError:
            return StatusWord.WRONG_LENGTH.to_bytes(2, "big")
        except OSError as error:
            log.error("the file of a software element cannot be written", extra={"error": error.strerror})  # noqa: TRY400
            return StatusWord.MEMORY_FAILURE.to_bytes(2, "big")

    def reset(self) -> None:
        """Power down and up: the application is deselected, PINs and handshakes are forgotten."""
        limits = EXTENDED_APDUS if self._options.extended else SHORT_APDUS
        self._application = Application(self._keystore, limits, _FEATURES, self._random)
        self._selected = False
        self._incoming = _IncomingParts()
        self._outgoing = _OutgoingParts(self._options)

    def close(self) -> None:
        """Power down for good."""
        self.reset()
        self._closed = True

    def _answer(self, command: CommandApdu) -> bytes:
        self._check_form(command)
        if command.ins in (Instruction.GET_RESPONSE, Instruction.FETCH) and command.cla in (0x00, CLA):
            return self._outgoing.next_part(command)
        repeated = self._outgoing.repeated(command)
        if repeated is not None:
            return repeated
        whole = self._incoming.add(command)
        if whole is None:
            return StatusWord.SUCCESS.to_bytes(2, "big")
        return self._outgoing.begin(command, self._execute(whole))

    def _check_form(self, command: CommandApdu) -> None:
        """Refuse what a card of this kind could not even receive."""
        is_long = len(command.data) > MAX_SHORT_DATA or (command.le or 0) > MAX_SHORT_LE
        if is_long and not self._options.extended:
            raise CardError(StatusWord.WRONG_LENGTH)
        if self._options.t0 and command.data and command.le is not None:
            raise CardError(StatusWord.WRONG_LENGTH)

    def _execute(self, command: CommandApdu) -> bytes:
        if command.ins == _INS_SELECT:
            return self._select(command)
        if command.cla != CLA:
            raise CardError(StatusWord.CLA_NOT_SUPPORTED)
        if not self._selected:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._application.execute(command)

    def _select(self, command: CommandApdu) -> bytes:
        if command.cla != 0x00:
            raise CardError(StatusWord.CLA_NOT_SUPPORTED)
        if (command.p1, command.p2) != (_SELECT_BY_NAME, 0x00):
            raise CardError(StatusWord.WRONG_P1_P2)
        if command.data != AID:
            raise CardError(StatusWord.FILE_NOT_FOUND)
        self._selected = True
        return self._application.select()


class _IncomingParts:
    """Puts the parts of a command together: bit 1 of P1 says that more follow (draft section 9.2.1)."""

    def __init__(self) -> None:
        self._header = b""
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, command: CommandApdu) -> CommandApdu | None:
        """The whole command, or None while parts are missing. Another command in between drops the parts."""
        limit = _MAX_COMMAND.get(command.ins) if command.cla == CLA else None
        if limit is None:
            self._clear()
            return command
        header = bytes((command.cla, command.ins, command.p1 & ~_MORE, command.p2))
        if header != self._header:
            self._clear()
        if not command.p1 & _MORE and not self._parts:
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


class _OutgoingParts:
    """Gives an answer out in the parts that the interface device asks for.

    Up to 256 octets go out at once where Le allows it. Else 61xx announces up to 255 octets, to be
    had with GET RESPONSE, and 9F00 or 9Fxx longer ones, to be had with FETCH (draft section 9.2.2).
    """

    def __init__(self, options: ElementOptions) -> None:
        self._t0 = options.t0
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

    def repeated(self, command: CommandApdu) -> bytes | None:
        """The answer kept after 6Cxx, when the same command comes with the right Le: it is not executed again."""
        refused, self._refused = self._refused, None
        data = self._left
        self._left = b""
        if refused is None or command.le != len(data):
            return None
        same = dataclasses.replace(refused, le=command.le) == command
        return data + b"\x90\x00" if same else None

    def next_part(self, command: CommandApdu) -> bytes:
        """GET RESPONSE and FETCH."""
        if not self._left or self._refused is not None or command.p1 or command.p2 or command.data:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if command.le is None:
            raise CardError(StatusWord.WRONG_LENGTH)
        if self._t0 and command.le > len(self._left):
            return bytes((0x6C, len(self._left)))
        part, self._left = self._left[: command.le], self._left[command.le :]
        return part + (self._announcement() if self._left else b"\x90\x00")

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
